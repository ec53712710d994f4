// A question about the view on show: on its way, given up, or with an answer of an older view.

import { AskError } from './backend.js';
import { button, element, fill } from './elements.js';
import { stage } from './stage.js';

const SIGNS = ['done', 'of', 'waiting'];

/** Its event `change` follows each change. It outlives the elements that show it. */
export class Question extends EventTarget {
  /** Of the newest answer that has begun to come. @type {Record<string, any>[]} */
  parts = [];

  /** Of the view that they are about. */
  key = '';

  /** @type {AbortController | null} while an answer is on its way */
  running = null;

  /**
   * Its last part, with `waiting`: its place in line, in words, if that came later.
   * @type {Record<string, any>}
   */
  last = {};

  /** How it ended before its end. @type {'' | 'cancelled' | 'lost' | AskError} */
  ended = '';

  /** Key of the view that was asked about last. */
  asked = '';

  /** @param {(view: import('./stage.js').View) => unknown[]} about what of a view counts */
  constructor(about = all) {
    super();
    this.about = about;
    stage.addEventListener('view', () => {
      if (this.asked !== this.keyNow) this.cancel();
      this.changed();
    });
  }

  get keyNow() {
    return stage.view ? JSON.stringify(this.about(stage.view)) : '';
  }

  /** Whether the answer is about another view than the one on show. */
  get old() {
    return this.parts.length > 0 && this.key !== this.keyNow;
  }

  /**
   * Ask about the view on show, in place of what was asked before; the answer to that stays until
   * the new one begins to come.
   * @param {Record<string, any>} plan
   * @param {(part: Record<string, any>) => Promise<Record<string, any>>} prepare each part
   * @returns {Promise<boolean>} whether the answer is whole
   */
  async ask(plan, prepare = async (part) => part) {
    if (!stage.view) return false;
    this.running?.abort();
    const running = new AbortController();
    const { signal } = running;
    this.asked = this.keyNow;
    Object.assign(this, { running, last: {}, ended: '' });
    this.changed();
    /** @type {typeof this.ended} */
    let ended = '';
    try {
      await this.#take(stage.ask(plan, signal), signal, prepare);
    } catch (error) {
      ended = error instanceof AskError ? error : 'lost';
    }
    if (signal.aborted) return false;
    Object.assign(this, { running: null, ended });
    this.changed();
    return !ended;
  }

  /**
   * @param {AsyncIterable<Record<string, any>>} answer
   * @param {AbortSignal} signal
   * @param {(part: Record<string, any>) => Promise<Record<string, any>>} prepare
   */
  async #take(answer, signal, prepare) {
    const key = this.asked;
    const parts = [];
    for await (const part of answer) {
      if (signal.aborted) return;
      // What says only how far the answer is takes no result's place.
      const isSign = Object.keys(part).every((name) => SIGNS.includes(name));
      if (!isSign) parts.push(await prepare(part));
      if (signal.aborted) return;
      if (parts.length) Object.assign(this, { parts, key });
      this.last = part.waiting ? { ...this.last, ...part } : part;
      this.changed();
    }
  }

  cancel() {
    if (!this.running) return;
    this.running.abort();
    Object.assign(this, { running: null, ended: 'cancelled' });
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event('change'));
  }
}

/** @param {import('./stage.js').View} view */
function all({ original, reconstruction, mask, settings, image }) {
  return [original, reconstruction, mask, settings, image.path];
}

/**
 * Buttons that ask a question, and beside them how far the answer is.
 * @param {Question} question
 * @param {Pick<import('./stage.js').Host, 'texts' | 'signal'>} host
 * @param {HTMLElement} first that asks
 * @param {...HTMLElement} others
 */
export function asking(question, { texts: { question: texts }, signal }, first, ...others) {
  const progress = element('progress', { 'aria-label': texts.progress });
  const count = element('span', { class: 'count' });
  const cancel = button(texts.cancel, () => question.cancel(), { class: 'cancel' });
  const said = element('span', { class: 'said', role: 'status' });
  const alert = element('p', { role: 'alert', hidden: '' });
  const starts = [first, ...others];
  for (const start of starts) {
    start.addEventListener('click', (event) => {
      if (question.running) event.stopImmediatePropagation();
    }, { capture: true });
  }
  const show = () => {
    const { running, last: { done, of }, ended } = question;
    for (const start of starts) {
      start.toggleAttribute('disabled', !stage.view);
      // Not disabled, as the keyboard's focus would be lost.
      start.setAttribute('aria-disabled', String(Boolean(running)));
    }
    if (!running && document.activeElement === cancel) first.focus({ preventScroll: true });
    progress.hidden = cancel.hidden = count.hidden = !running;
    if (of) {
      progress.setAttribute('max', of);
      progress.setAttribute('value', done);
    } else {
      progress.removeAttribute('value');
    }
    count.textContent = of ? fill(texts.count, { done, of }) : '';
    said.textContent = status(question, texts);
    alert.hidden = !ended || ended === 'cancelled';
    alert.textContent = ended instanceof AskError ? ended.message : texts.lost;
  };
  question.addEventListener('change', show, { signal });
  show();
  return element('div', { class: 'asking' },
    element('div', { class: 'bar' }, ...starts, progress, count, cancel, said), alert);
}

/**
 * @param {Question} question
 * @param {Record<string, string>} texts
 */
function status({ running, last, ended, old }, texts) {
  if (running) return last.waiting ?? '';
  if (old) return texts.old;
  if (ended === 'cancelled') return texts.cancelled;
  return stage.view ? '' : texts.nothing;
}
