// Sets the page's controls for the other parts of the stage, and for the link in the address.

import { button, element as make } from './elements.js';
import { fromFragment } from './link.js';
import './recorder.js';
import { stage } from './stage.js';

let turn = 0;
/** @type {(problem: string) => void} */
let settle = () => {};
let started = false;

/** @param {import('./stage.js').Host} host */
export function mount({ element, texts, signal, props, trigger, watch }) {
  stage.opener = (settings) => new Promise((resolve) => {
    if (settings.request?.mask?.seed > Number.MAX_SAFE_INTEGER) {
      resolve(texts.large_seed);
      return;
    }
    // Of several at once the last one counts.
    settle('');
    settle = resolve;
    props.value = { ...settings, turn: ++turn };
    trigger('input');
  });
  stage.dispatchEvent(new Event('opener'));
  watch(['answer'], () => {
    if (props.answer.turn === turn) settle(props.answer.problem);
  });

  /** @param {string} text @param {string} role */
  const say = (text, role) => {
    element.replaceChildren();
    if (!text) return;
    const close = button(texts.close, () => say('', role));
    element.append(make('div', { class: 'bar' }, make('p', { role }, text), close));
  };
  const follow = async () => {
    let link;
    try {
      link = fromFragment(location.hash);
    } catch {
      say(texts.damaged, 'alert');
    }
    if (!link) return;
    const problem = await stage.open(link);
    if (problem) say(`${texts.refused} ${problem}`, 'alert');
    else say(link.request && !link.example ? texts.without_picture : '', 'status');
  };
  addEventListener('hashchange', follow, { signal });
  if (!started) follow();
  started = true;
}
