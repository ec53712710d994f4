// Two answers of which one thing differs: side by side, with a divider, and their difference.

import { difference } from './difference.js';
import { button, canvas, choice, element, fill, list } from './elements.js';
import { legend } from './legend.js';
import { LEAST_RATIO, MOST_RATIO, STRATEGIES } from './masking.js';
import { loadImage, paint, paintValues, pixelsOf } from './painting.js';
import { Question, asking } from './question.js';
import { captions, decimals, figures, samePixels } from './sides.js';
import { stage } from './stage.js';

/**
 * @typedef {import('./sides.js').Side} Side
 * @typedef {import('./sides.js').Pair} Pair
 */

const DIFFERS = ['model', 'seed', 'ratio', 'strategy', 'view'];
const VIEWS = ['estimated', 'answer', 'normalized'];
const MODES = /** @type {const} */ (['side', 'swipe', 'difference']);
const PANELS = /** @type {const} */ (['reconstruction', 'pasted']);

// These survive a change of language. A pair stays as it is whatever the page shows.
const question = new Question(() => []);
const models = new Question(() => []);
/** @type {Pair | null} */
let pair = null;
/** Whether B is what the page shows. */
let following = false;
/** @type {typeof MODES[number]} */
let mode = 'side';
/** @type {typeof PANELS[number]} */
let panel = 'reconstruction';

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Compare(host);
}

class Compare {
  held = false;
  /** Where the divider is, in percent. */
  at = 50;
  /** Paints the canvases anew. */
  repaint = () => {};
  /** @type {Pair | null} */
  drawn = null;
  listed = false;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { element: into, texts } = host;
    this.texts = texts;
    this.what = list(texts.what, DIFFERS.map((name) => [name, texts[name]]));
    this.what.addEventListener('change', () => this.offer());
    /** @type {HTMLInputElement | HTMLSelectElement} */
    this.value = this.what;
    const go = button(texts.compare, () => this.ask(), { class: 'main' });
    this.keep = button(texts.keep, () => this.pin(), { title: texts.keep_hint });
    const modes = choice(texts.show_as, MODES.map((name) => [name, texts[name]]), mode, (name) => {
      mode = name;
      this.show();
    });
    this.panels = choice(texts.what_picture, PANELS.map((name) => [name, texts[name]]), panel,
      (name) => {
        panel = name;
        this.show();
      });
    this.original = button(texts.hold, () => {}, {
      'aria-pressed': 'false', title: texts.hold_hint,
    });
    this.pictures = element('div', { class: 'pictures', tabindex: '-1' });
    this.notes = element('div', { class: 'notes', role: 'status' });
    this.table = element('div', { class: 'figures' });
    this.result = element('div', {},
      element('div', { class: 'bar' }, modes, this.panels, this.original),
      element('div', { class: 'shown' }, this.pictures, this.table), this.notes);
    const bar = element('div', { class: 'bar' },
      texts.what, this.what, asking(question, host, go), texts.or, this.keep);
    // What is on its way is an answer to what was chosen before.
    bar.addEventListener('input', () => question.cancel());
    into.append(element('p', {}, texts.intro), bar, this.result);
    this.hear(host);
    this.offer();
    this.follow(following);
  }

  /** @param {import('./stage.js').Host} host */
  hear({ element: into, signal }) {
    stage.addEventListener('view', () => this.update(), { signal });
    question.addEventListener('change', () => { if (pair !== this.drawn) this.show(); }, { signal });
    this.original.addEventListener('pointerdown', () => this.hold(true));
    into.addEventListener('keydown', ({ key, target, ctrlKey, metaKey }) => {
      const pressed = target === this.original && (key === ' ' || key === 'Enter');
      const letter = key.toLowerCase() === 'o' && !ctrlKey && !metaKey;
      if (pressed || (letter && !(target instanceof HTMLSelectElement))) this.hold(true);
    });
    const release = () => this.hold(false);
    for (const event of ['pointerup', 'pointercancel', 'keyup']) {
      document.addEventListener(event, release, { signal });
    }
    window.addEventListener('blur', release, { signal });
  }

  /** Ask for the models that there are; how far one is changes. */
  async list() {
    this.listed = true;
    // Without an answer the other things can still be compared.
    await models.ask({ kind: 'models' });
    // What has to be fetched first is not offered by itself.
    if (!this.other && this.what.value === 'model' && !pair) this.what.value = 'seed';
    this.offer();
  }

  /** @returns {{name: string, state: string, bytes: number | null}[]} */
  get models() {
    return models.parts.at(-1)?.models ?? [];
  }

  /** A model on this machine, but not that of A. */
  get other() {
    const own = stage.view?.settings.model;
    return this.models.find(({ name, state }) => {
      return name !== own && (state === 'ready' || state === 'here');
    })?.name;
  }

  /** Offer values of what B differs in. */
  offer() {
    const settings = stage.view?.settings ?? { mask: { seed: 0, ratio: 0.75 } };
    const { mask } = settings;
    const what = this.what.value;
    // What A has is no other; nothing is chosen where the models are not known yet.
    const own = String(mask[what] ?? settings[what]);
    const chosen = this.value.dataset.of === what && !['', own].includes(this.value.value);
    const value = this.field(what, mask);
    value.dataset.of = what;
    value.required = true;
    for (const option of value.querySelectorAll('option')) option.disabled = option.value === own;
    value.value = chosen ? this.value.value : this.suggested(what, own) ?? value.value;
    const focused = this.value === document.activeElement;
    if (this.value === this.what) this.what.after(value);
    else this.value.replaceWith(value);
    this.value = value;
    if (focused) value.focus();
  }

  /**
   * @param {string} what B differs in
   * @param {string} own value of A
   * @returns {string | undefined}
   */
  suggested(what, own) {
    if (what === 'model') return this.other ?? '';
    return { strategy: STRATEGIES, view: VIEWS }[what]?.find((name) => name !== own);
  }

  /**
   * @param {string} what B differs in
   * @param {Record<string, number>} mask of A
   */
  field(what, mask) {
    const { texts } = this;
    const named = (/** @type {readonly string[]} */ names) => names.map((name) => [name, texts[name]]);
    if (what === 'model') {
      const none = this.other ? [] : [['', texts.no_model]];
      return list(texts.model, [...none, ...this.models.map((model) => this.option(model))]);
    }
    if (what === 'strategy') return list(texts.strategy, named(STRATEGIES));
    if (what === 'view') return list(texts.view, named(VIEWS));
    const numbers = what === 'seed' ? { min: '0', step: '1', value: String(mask.seed + 1) }
      : {
        min: String(LEAST_RATIO), max: String(MOST_RATIO), step: '0.01',
        value: mask.ratio > 0.6 ? '0.5' : '0.9',
      };
    return /** @type {HTMLInputElement} */ (element('input', {
      type: 'number', 'aria-label': texts[what], ...numbers,
    }));
  }

  /** @param {{name: string, state: string, bytes: number | null}} model */
  option({ name, state, bytes }) {
    if (state === 'ready') return [name, name];
    const text = this.texts[`model_${state}`] ?? this.texts.model_pending;
    return [name, fill(text, { name, size: bytes ? Math.round(bytes / 1e6) : '?' })];
  }

  /**
   * The request of A with one thing changed.
   * @param {Record<string, any>} settings
   */
  changed(settings) {
    const what = this.what.value, { value } = this.value;
    if (what === 'model' || what === 'view') return { ...settings, [what]: value };
    const drawn = what === 'strategy' ? value : Number(value);
    return { ...settings, mask: { ...settings.mask, rows: [], [what]: drawn } };
  }

  /** Ask for B, and compare it with what is on show now. */
  async ask() {
    const { view, images } = stage;
    if (!view || !this.value.reportValidity()) return;
    this.follow(false);
    const plan = { kind: 'single', request: this.changed(view.settings) };
    const whole = await question.ask(plan, async (part) => ({
      view: part, images: await Promise.all([part.original, part.reconstruction].map(loadImage)),
    }));
    if (whole) {
      pair = { a: { view, images }, b: /** @type {Side} */ (question.parts.at(-1)) };
      question.changed();
    }
    this.list();
  }

  /** @param {boolean} on whether A is kept, and B is what the page shows */
  follow(on) {
    following = on;
    this.keep.setAttribute('aria-pressed', String(on));
    this.update();
  }

  /** Keep what is on show as A, or no longer. */
  pin() {
    if (!stage.view) return;
    question.cancel();
    const side = { view: stage.view, images: stage.images };
    if (!following) pair = { a: side, b: side };
    this.follow(!following);
  }

  /** Bring everything up to what the page shows. */
  update() {
    if (!stage.view) return;
    if (following && pair) pair = { a: pair.a, b: { view: stage.view, images: stage.images } };
    this.what.querySelector('[value=view]')
      ?.toggleAttribute('disabled', stage.view.facts.view === null);
    // A model of the visitor's own may have come since.
    const { model } = stage.view.settings;
    if (!this.listed || !this.models.some(({ name }) => name === model)) this.list();
    this.offer();
    this.show();
  }

  /** Show A and B. */
  show() {
    const shown = pair;
    this.result.hidden = !shown;
    if (!shown) return;
    this.drawn = shown;
    for (const one of this.panels.querySelectorAll('button')) one.disabled = mode === 'difference';
    const comparable = samePixels(shown.a.images[0], shown.b.images[0]);
    const drawn = {
      side: () => this.side(shown), swipe: () => this.swipe(shown),
      difference: () => comparable ? this.map(shown) : element('p', {}, this.texts.no_map),
    }[mode];
    this.repaint = () => {};
    this.pictures.replaceChildren(drawn());
    this.repaint();
    const remarks = this.remarks(shown, comparable);
    this.notes.replaceChildren(...remarks.map((text) => element('p', {}, text)));
    this.table.replaceChildren(figures(this.texts, shown));
  }

  /**
   * @param {Pair} pair
   * @returns {HTMLElement}
   */
  side(pair) {
    const texts = captions(this.texts, pair);
    return element('div', { class: 'side' }, ...this.canvases(pair).map((screen, i) =>
      element('figure', {}, element('figcaption', {}, texts[i]), screen)));
  }

  /**
   * @param {Pair} pair
   * @returns {HTMLElement}
   */
  swipe(pair) {
    const { texts } = this;
    const range = /** @type {HTMLInputElement} */ (element('input', {
      type: 'range', min: '0', max: '100', value: String(this.at), 'aria-label': texts.divider,
    }));
    const stack = element('div', { class: 'stack' }, ...this.canvases(pair),
      element('b', {}, 'A'), element('b', {}, 'B'), range, element('i'));
    const move = () => {
      this.at = Number(range.value);
      stack.style.setProperty('--at', `${this.at}%`);
      range.setAttribute('aria-valuetext', fill(texts.divided, { a: this.at, b: 100 - this.at }));
    };
    range.addEventListener('input', move);
    move();
    return element('figure', { class: 'swipe' }, stack,
      element('figcaption', {}, captions(texts, pair).join(' | ')));
  }

  /**
   * Canvases of what is compared, or of the originals while they are asked for.
   * @param {Pair} pair
   */
  canvases({ a, b }) {
    const made = ['A', 'B'].map((name) => canvas(`${name}: ${this.texts[panel]}`));
    this.repaint = () => [a, b].forEach(({ view, images }, i) => {
      paint(made[i], this.held ? 'original' : panel, images, view.mask);
    });
    return made;
  }

  /**
   * @param {Pair} pair
   * @returns {HTMLElement}
   */
  map({ a, b }) {
    const { texts } = this;
    const [one, other] = [a, b].map(({ images }) => pixelsOf(images[1]));
    const { values, mean, max, share } = difference(one, other, [a.view.mask, b.view.mask]);
    if (!share) return element('p', {}, texts.none_in_common);
    const screen = canvas(texts.difference);
    this.repaint = () => {
      if (this.held) paint(screen, 'original', a.images, a.view.mask);
      else paintValues(screen, values, one.width, max);
    };
    return element('figure', { class: 'map' }, screen, element('figcaption', {},
      legend(['0', decimals(max, 1)]),
      fill(texts.map, {
        mean: decimals(mean, 1), max: decimals(max, 1), percent: Math.round(100 * share),
      })));
  }

  /**
   * What one has to know to read the pictures and figures.
   * @param {Pair} pair
   * @param {boolean} comparable
   * @returns {string[]}
   */
  remarks({ a, b }, comparable) {
    const { texts } = this;
    const [before, after] = [a, b].map(({ view: { facts } }) => `${facts.width} × ${facts.height}`);
    const said = [];
    if (following && a.view === b.view) said.push(texts.follow_hint);
    else if (!following && stage.view && !alike(a.view, stage.view)) said.push(texts.older);
    else if (alike(a.view, b.view)) said.push(texts.alike);
    if (before !== after) said.push(fill(texts.scaled, { a: before, b: after }));
    else if (!comparable) said.push(texts.other_picture);
    if (a.view.mask.join() !== b.view.mask.join()) said.push(texts.other_patches);
    return said;
  }

  /** @param {boolean} on whether the original is shown in place of what is compared */
  hold(on) {
    if (this.held === on || !pair) return;
    this.held = on;
    this.original.setAttribute('aria-pressed', String(on));
    this.repaint();
  }
}

/**
 * Whether two views answer the same request about one picture.
 * @param {import('./stage.js').View} one
 * @param {import('./stage.js').View} other
 */
function alike({ settings: one }, { settings: other }) {
  return JSON.stringify(one) === JSON.stringify(other);
}
