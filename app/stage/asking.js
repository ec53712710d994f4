// One question of a part at a time: the newest wins, and it can be cancelled.

import { AskError } from './backend.js';
import { button, element } from './elements.js';
import { stage } from './stage.js';

export class Asking {
  /** @type {AbortController | null} */
  #asking = null;

  /** Takes the keyboard as an answer ends. @type {HTMLElement | SVGElement | null} */
  next = null;

  /**
   * @param {Pick<import('./stage.js').Host, 'texts' | 'signal'>} host with the texts `cancel`,
   *   `progress`, `stopped` and `failed`
   * @param {() => void} changed as an answer begins, goes on and ends
   */
  constructor({ texts, signal }, changed) {
    this.texts = texts;
    this.changed = changed;
    this.cancel = button(texts.cancel, () => this.stop(), { hidden: '' });
    this.progress = /** @type {HTMLProgressElement} */ (
      element('progress', { 'aria-label': texts.progress, hidden: '' }));
    this.said = element('p', { class: 'said', role: 'status' });
    this.alert = element('p', { role: 'alert' });
    signal.addEventListener('abort', () => this.stop());
  }

  get busy() {
    return this.#asking !== null;
  }

  stop() {
    this.#asking?.abort();
  }

  /**
   * Ask about the view on show.
   * @param {Record<string, any>} question
   * @param {(part: Record<string, any>) => void} take
   * @returns {Promise<boolean>} whether the answer is whole
   */
  async ask(question, take) {
    this.stop();
    const asking = this.#asking = new AbortController();
    const { signal } = asking;
    this.said.textContent = this.alert.textContent = '';
    this.#update();
    let problem = '';
    try {
      await this.#take(stage.ask(question, signal), signal, take);
    } catch (error) {
      problem = error instanceof AskError ? error.message : this.texts.failed;
    }
    // A newer question has taken its place.
    if (this.#asking !== asking) return false;
    this.#asking = null;
    if (signal.aborted) this.said.textContent = this.texts.stopped;
    else this.alert.textContent = problem;
    this.#update();
    return !signal.aborted && !problem;
  }

  /**
   * @param {AsyncIterable<Record<string, any>>} parts
   * @param {AbortSignal} signal
   * @param {(part: Record<string, any>) => void} take
   */
  async #take(parts, signal, take) {
    for await (const part of parts) {
      if (signal.aborted) return;
      this.said.textContent = part.waiting ?? '';
      if (!part.waiting) take(part);
      this.changed();
    }
  }

  #update() {
    const at = document.activeElement;
    this.cancel.hidden = this.progress.hidden = !this.busy;
    this.changed();
    if (at instanceof HTMLElement && at.hidden) {
      (this.busy ? this.cancel : this.next)?.focus({ preventScroll: true });
    }
  }
}

/**
 * Whether a view is still the one on show.
 * @param {import('./stage.js').View} view
 */
export function isOnShow(view) {
  const key = (/** @type {import('./stage.js').View | null} */ one) => one && JSON.stringify(
    [one.original, one.reconstruction, one.mask, one.settings, one.image.path]);
  return key(view) === key(stage.view);
}
