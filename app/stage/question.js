// A question with an answer of many runs: asked, on its way, given up, or about an older view.

import { AskError } from './backend.js';
import { button, element, fill } from './elements.js';
import { stage } from './stage.js';

/** Its event `change` follows each change. It outlives the elements that show it. */
export class Question extends EventTarget {
  /** Of the answer, as far as they have come. @type {Record<string, any>[]} */
  parts = [];

  /** Of the view that was asked about. */
  key = '';

  /** @type {AbortController | null} while the answer is on its way */
  running = null;

  /** Where the question is in line, in words. */
  waiting = '';

  /** How it ended before its end. @type {'' | 'cancelled' | 'lost' | AskError} */
  ended = '';

  /** @param {(settings: Record<string, any>) => unknown[]} about what of a view's settings counts */
  constructor(about) {
    super();
    this.about = about;
    stage.addEventListener('view', () => {
      if (this.key !== this.keyNow) this.cancel();
      this.changed();
    });
  }

  get keyNow() {
    return stage.view ? JSON.stringify(this.about(stage.view.settings)) : '';
  }

  /** Whether the answer is about another view than the one on show. */
  get old() {
    return this.parts.length > 0 && this.key !== this.keyNow;
  }

  /**
   * Ask about the view on show, unless an answer is on its way.
   * @param {Record<string, any>} plan
   * @param {(part: Record<string, any>) => Promise<Record<string, any>>} prepare each part
   */
  async ask(plan, prepare = async (part) => part) {
    if (this.running || !stage.view) return;
    const running = new AbortController();
    Object.assign(this, { parts: [], key: this.keyNow, running, waiting: '', ended: '' });
    this.changed();
    try {
      for await (const part of stage.ask(plan, running.signal)) {
        this.waiting = part.waiting ?? '';
        if (!part.waiting) this.parts.push(await prepare(part));
        this.changed();
      }
    } catch (error) {
      if (running.signal.aborted) this.ended = 'cancelled';
      else this.ended = error instanceof AskError ? error : 'lost';
    }
    this.running = null;
    this.changed();
  }

  cancel() {
    this.running?.abort();
  }

  changed() {
    this.dispatchEvent(new Event('change'));
  }
}

/**
 * Buttons that ask a question, and beside them how far the answer is.
 * @param {Question} question
 * @param {import('./stage.js').Host} host its texts have progress, cancel, cancelled, lost and old
 * @param {HTMLElement} first that asks
 * @param {...HTMLElement} others
 */
export function asking(question, { texts, signal }, first, ...others) {
  const progress = element('progress', { 'aria-label': texts.progress });
  const count = element('span', { class: 'count' });
  const cancel = button(texts.cancel, () => question.cancel(), { class: 'cancel' });
  const said = element('span', { class: 'said', role: 'status' });
  const alert = element('p', { role: 'alert', hidden: '' });
  const show = () => {
    const { running, parts, ended } = question;
    for (const start of [first, ...others]) {
      start.toggleAttribute('disabled', !stage.view);
      // Not disabled, as the keyboard's focus would be lost.
      start.setAttribute('aria-disabled', String(Boolean(running)));
    }
    if (!running && document.activeElement === cancel) first.focus();
    progress.hidden = cancel.hidden = count.hidden = !running;
    const { done, of } = parts.at(-1) ?? {};
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
    element('div', { class: 'bar' }, first, ...others, progress, count, cancel, said), alert);
}

/**
 * @param {Question} question
 * @param {Record<string, string>} texts
 */
function status({ running, waiting, ended, old }, texts) {
  if (running) return waiting;
  if (old) return texts.old;
  return ended === 'cancelled' ? texts.cancelled : '';
}
