// Tabs, of which one is open. Each has a part of the stage, drawn when it is opened first.

import { button, element } from '../app/stage/elements.js';
import { Host } from './host.js';

/** Parts that need no server, by the names of their modules. */
const TABS = ['film', 'doubt', 'origin', 'compare', 'inside', 'proof', 'keep'];

const STEPS = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1 });

export class Tabs {
  /** @type {Set<string>} parts that are drawn */
  #drawn = new Set();

  /** @param {HTMLElement} root */
  constructor(root) {
    this.tabs = TABS.map((name) => button('', () => this.open(name), {
      role: 'tab', id: `tab-${name}`, 'data-tab-id': name, 'aria-controls': `tabpanel-${name}`,
    }));
    this.panels = TABS.map((name) => element('div', {
      role: 'tabpanel', id: `tabpanel-${name}`, class: 'tabitem', 'aria-labelledby': `tab-${name}`,
    }, element('div', { id: name }, element('section', { class: 'part' }))));
    const list = element('div', { role: 'tablist', class: 'tab-wrapper' }, ...this.tabs);
    list.addEventListener('keydown', (event) => this.#step(event));
    root.append(list, ...this.panels);
  }

  /** @param {Record<string, string>} labels */
  label(labels) {
    this.tabs.forEach((tab, i) => { tab.textContent = labels[`tab_${TABS[i]}`]; });
  }

  /**
   * @param {string} name of a part; of any other, nothing is done
   */
  open(name) {
    const at = TABS.indexOf(name);
    if (at < 0) return;
    this.tabs.forEach((tab, i) => {
      tab.setAttribute('aria-selected', String(i === at));
      tab.tabIndex = i === at ? 0 : -1;
      this.panels[i].hidden = i !== at;
    });
    if (this.#drawn.has(name)) return;
    this.#drawn.add(name);
    new Host(name).mount();
  }

  /** @param {KeyboardEvent} event */
  #step(event) {
    const at = this.tabs.findIndex((tab) => tab === event.target);
    if (!(event.key in STEPS) || at < 0) return;
    event.preventDefault();
    const next = (at + STEPS[event.key] + TABS.length) % TABS.length;
    this.tabs[next].focus();
    this.open(TABS[next]);
  }
}
