// Proof that hidden pixels do not reach a prediction: scrambled, they leave it as it was.

import { button, element, fill } from './elements.js';
import { Question, asking } from './question.js';
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

/**
 * @typedef {object} More
 * @property {string} original address of an image
 * @property {number} noise
 * @property {string} scrambled address of an image
 * @property {Comparison | null} answer
 * @typedef {Comparison & More} Answer
 */

// Survives a change of language.
const leak = new Question();

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Proof(host);
}

class Proof {
  /** @type {Answer | null} */
  drawn = null;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { texts } = host;
    this.texts = texts;
    this.start = button('', () => this.ask(), { class: 'main' });
    this.verdict = element('p', { class: 'verdict', role: 'status' });
    this.pictures = element('div');
    this.answer = element('div', { class: 'show' }, this.verdict, this.pictures);
    host.element.append(
      asking(leak, host, this.start), this.answer,
      element('p', { class: 'said' }, texts.proves));
    leak.addEventListener('change', () => this.show(), { signal: host.signal });
    this.show();
  }

  /** The newest answer. */
  get shown() {
    return /** @type {Answer | undefined} */ (leak.parts.at(-1));
  }

  ask() {
    if (!stage.view) return;
    const { settings, original } = stage.view;
    const noise = this.shown ? this.shown.noise + 1 : 0;
    // The view that uses the answer is compared beside another.
    const request = settings.view === 'answer' ? { ...settings, view: 'estimated' } : settings;
    leak.ask({ kind: 'leak', noise, request }, async (part) => ({ ...part, original, noise }));
  }

  show() {
    const { texts, shown } = this;
    this.start.textContent = texts[shown ? (leak.old ? 'again' : 'another') : 'scramble'];
    this.answer.classList.toggle('old', leak.old);
    if (!shown || shown === this.drawn) return;
    this.drawn = shown;
    this.draw(shown);
  }

  /** @param {Answer} shown */
  draw(shown) {
    const { texts } = this;
    const { original, noise, scrambled, before, after, answer } = shown;
    this.judge(this.verdict, shown, 'leaks');
    this.pictures.replaceChildren(element('div', { class: 'screens' },
      figure(original, texts.original), figure(scrambled, fill(texts.scrambled, { noise })),
      figure(before, texts.before), figure(after, texts.after)));
    if (!answer) {
      this.pictures.append(element('p', { class: 'said' }, texts.raw));
      return;
    }
    const verdict = element('p', { class: 'verdict' });
    this.judge(verdict, answer, 'answer_differs');
    this.pictures.append(
      element('h2', {}, texts.answer), verdict,
      element('div', { class: 'screens' },
        figure(answer.before, texts.before), figure(answer.after, texts.after)));
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
