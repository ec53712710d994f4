// Sets the page's controls for the other parts of the stage.

import {stage} from './stage.js';

/** @param {import('./stage.js').Host} host */
export function mount({props, trigger}) {
  stage.opener = (settings) => {
    props.value = settings;
    trigger('input');
  };
  if (stage.early) stage.opener(stage.early);
  stage.early = null;
}
