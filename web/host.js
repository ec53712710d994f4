// What a part of the stage is drawn into, where no Gradio is: see `Host` in `app/stage/stage.js`.

import { mount } from '../app/stage/stage.js';

/** A part and what it and the page tell each other. Its event is what the part triggers. */
export class Host extends EventTarget {
  /** @type {Record<string, any>} */
  props = { value: null };

  /** @type {[names: string[], changed: () => void][]} */
  #watchers = [];

  /** @param {string} name of the part's module, and of its element */
  constructor(name) {
    super();
    this.name = name;
  }

  mount() {
    return mount(this.name, {
      element: /** @type {HTMLElement} */ (document.getElementById(this.name)),
      props: this.props,
      trigger: (event) => this.dispatchEvent(new Event(event)),
      watch: (names, changed) => this.#watchers.push([names, changed]),
    });
  }

  /**
   * Give the part a value.
   * @param {string} name
   * @param {unknown} value
   */
  set(name, value) {
    this.props[name] = value;
    for (const [names, changed] of this.#watchers) {
      if (names.includes(name)) changed();
    }
  }
}
