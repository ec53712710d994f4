// Proof that hidden pixels do not reach a prediction: scrambled, they leave it as it was.

import { Asking, isOnShow } from './asking.js';
import { button, element, fill } from './elements.js';
import { stage } from './stage.js';

/**
 * Two predictions: from the original, and from the picture with its hidden pixels scrambled.
 * @typedef {object} Comparison
 * @property {string} before address of an image
 * @property {string} after
 * @property {boolean} same to the last bit
 * @property {number} changed_values
 * @property {number} values
 * @property {number} largest_change of a value, in 0..1
 */

/** @typedef {Comparison & {scrambled: string, answer: Comparison | null}} Answer */

// The last answer and what it is of; it survives a change of language.
/** @type {{view: import('./stage.js').View, noise: number, answer: Answer} | null} */
let shown = null;

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Proof(host);
}

class Proof {
  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { texts } = host;
    this.texts = texts;
    this.start = button('', () => this.ask(), { class: 'main' });
    this.count = element('span', { class: 'count' });
    this.asking = new Asking(host, () => this.show());
    this.asking.next = this.start;
    this.verdict = element('p', { class: 'verdict', role: 'status' });
    this.pictures = element('div', { class: 'pictures' });
    this.answer = element('div', {});
    const { cancel, progress, said, alert } = this.asking;
    host.element.append(
      element('div', { class: 'bar' }, this.start, cancel, progress, this.count),
      said, alert, this.verdict, this.pictures, this.answer,
      element('p', { class: 'said' }, texts.proves));
    stage.addEventListener('view', () => this.follow(), { signal: host.signal });
    this.draw();
    this.show();
  }

  follow() {
    if (this.asked && !isOnShow(this.asked)) this.asking.stop();
    this.show();
  }

  async ask() {
    const { view } = stage;
    if (!view) return;
    this.asked = view;
    const noise = shown ? shown.noise + 1 : 0;
    // The view that uses the answer is compared beside another.
    const { settings } = view;
    const request = settings.view === 'answer' ? { ...settings, view: 'estimated' } : settings;
    await this.asking.ask({ kind: 'leak', noise, request }, (part) => {
      shown = { view, noise, answer: /** @type {Answer} */ (part) };
      this.draw();
    });
  }

  show() {
    const { texts, asking: { busy } } = this;
    const old = shown !== null && !isOnShow(shown.view);
    this.start.hidden = busy || !stage.view;
    this.start.textContent = texts[shown ? (old ? 'again' : 'another') : 'scramble'];
    this.count.textContent = stage.view ? (old ? texts.old : '') : texts.nothing;
    for (const one of [this.pictures, this.answer]) one.classList.toggle('old', old);
  }

  draw() {
    if (!shown) return;
    const { texts } = this;
    const { view, noise, answer } = shown;
    this.judge(this.verdict, answer, 'leaks');
    this.pictures.replaceChildren(
      figure(view.original, texts.original),
      figure(answer.scrambled, fill(texts.scrambled, { noise })),
      figure(answer.before, texts.before), figure(answer.after, texts.after));
    if (!answer.answer) {
      this.answer.replaceChildren(element('p', { class: 'said' }, texts.raw));
      return;
    }
    const verdict = element('p', { class: 'verdict' });
    this.judge(verdict, answer.answer, 'answer_differs');
    this.answer.replaceChildren(
      element('h3', {}, texts.answer), verdict,
      element('div', { class: 'pictures' },
        figure(answer.answer.before, texts.before), figure(answer.answer.after, texts.after)));
  }

  /**
   * @param {HTMLElement} verdict
   * @param {Comparison} comparison
   * @param {string} why name of the text that says why they differ
   */
  judge(verdict, { same, changed_values: changed, values, largest_change: largest }, why) {
    const number = new Intl.NumberFormat(stage.language);
    const sentence = fill(this.texts[same ? 'same' : 'differs'], {
      changed: number.format(changed), values: number.format(values),
      largest: (100 * largest).toPrecision(3),
    });
    verdict.replaceChildren(element('strong', {}, sentence));
    if (!same) verdict.append(' ', this.texts[why]);
  }
}

/**
 * @param {string} address
 * @param {string} caption
 */
function figure(address, caption) {
  return element('figure', {}, element('img', { src: address, alt: '' }),
    element('figcaption', {}, caption));
}
