// Two answers of which one thing differs: side by side, with a divider, and their difference.

import { AskError } from './backend.js';
import { colourOf, paintMap } from './colours.js';
import { difference } from './difference.js';
import { button, element, fill } from './elements.js';
import { loadImage, paint } from './painting.js';
import { caption, decimals, figures, pixelsOf, samePixels } from './sides.js';
import { stage } from './stage.js';

/** @typedef {import('./sides.js').Side} Side */

const DIFFERS = ['model', 'seed', 'ratio', 'strategy', 'view'];
const CHOICES = {
  strategy: ['random', 'block', 'grid'], view: ['estimated', 'answer', 'normalized'],
};
const MODES = /** @type {const} */ (['side', 'swipe', 'difference']);
const PANELS = /** @type {const} */ (['reconstruction', 'pasted']);

// What survives a change of language.
/** @type {{a: Side, b: Side} | null} */
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
  /** @type {AbortController | null} */
  asking = null;
  /** @type {{name: string, state: string, bytes: number | null}[]} */
  models = [];
  listed = false;

  /** @param {import('./stage.js').Host} host */
  constructor({ element: into, texts, signal }) {
    this.texts = texts;
    this.what = choice(texts.what, DIFFERS.map((name) => [name, texts[name]]));
    this.what.addEventListener('change', () => this.offer());
    /** @type {HTMLInputElement | HTMLSelectElement} */
    this.value = this.what;
    this.go = button(texts.compare, () => this.ask(), { class: 'main' });
    this.cancel = button(texts.cancel, () => this.asking?.abort(), { hidden: '' });
    this.keep = button(texts.keep, () => this.pin(), { title: texts.keep_hint });
    this.said = element('span', { class: 'said', role: 'status' });
    this.alert = element('p', { class: 'failed', role: 'alert' });
    this.modes = group(texts.show_as, MODES, texts, (name) => { mode = name; this.show(); });
    this.panels = group(texts.what_picture, PANELS, texts, (name) => {
      panel = name;
      this.show();
    });
    this.original = button(texts.hold, () => {}, {
      'aria-pressed': 'false', title: texts.hold_hint,
    });
    this.pictures = element('div', { class: 'pictures', tabindex: '-1' });
    this.notes = element('div', { class: 'notes', role: 'status' });
    this.table = element('div', { class: 'figures' });
    this.result = element('div', { class: 'result' },
      element('div', { class: 'bar' }, this.modes, this.panels, this.original),
      element('div', { class: 'shown' }, this.pictures, this.table), this.notes);
    into.append(
      element('p', {}, texts.intro),
      element('div', { class: 'bar' },
        element('span', {}, texts.what), this.what, this.go, this.cancel,
        element('span', {}, texts.or), this.keep, this.said),
      this.alert, this.result);
    this.hear(into, signal);
    this.offer();
    this.follow(following);
  }

  /**
   * @param {HTMLElement} into
   * @param {AbortSignal} signal
   */
  hear(into, signal) {
    stage.addEventListener('view', () => this.update(), { signal });
    signal.addEventListener('abort', () => this.asking?.abort());
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
    try {
      for await (const part of stage.ask({ kind: 'models' }, new AbortController().signal)) {
        this.models = part.models;
      }
    } catch { /* The other things can still be compared. */ }
    // What has to be fetched first is not offered by itself.
    if (!this.other && this.what.value === 'model' && !pair) this.what.value = 'seed';
    this.offer();
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
    const { mask } = stage.view?.settings ?? { mask: { seed: 0, ratio: 0.75 } };
    const { texts } = this;
    const before = this.value.dataset.of === this.what.value ? this.value.value : null;
    /** @type {Record<string, () => HTMLInputElement | HTMLSelectElement>} */
    const made = {
      model: () => choice(texts.model, this.models.map(({ name, state, bytes }) => [
        name, state === 'ready' ? name : fill(texts[`model_${state}`] ?? texts.model_pending, {
          name, size: bytes ? Math.round(bytes / 1e6) : '?',
        }),
      ])),
      seed: () => number(texts.seed, { min: '0', step: '1', value: String(mask.seed + 1) }),
      ratio: () => number(texts.ratio, {
        min: '0.05', max: '0.95', step: '0.01', value: mask.ratio > 0.6 ? '0.5' : '0.9',
      }),
      strategy: () => choice(texts.strategy, CHOICES.strategy.map((name) => [name, texts[name]])),
      view: () => choice(texts.view, CHOICES.view.map((name) => [name, texts[name]])),
    };
    const value = made[this.what.value]();
    value.dataset.of = this.what.value;
    const others = {
      model: this.other,
      strategy: CHOICES.strategy.find((name) => name !== mask.strategy),
      view: CHOICES.view.find((name) => name !== stage.view?.settings.view),
    };
    value.value = before ?? Reflect.get(others, this.what.value) ?? value.value;
    const focused = this.value === document.activeElement;
    if (this.value === this.what) this.what.after(value);
    else this.value.replaceWith(value);
    this.value = value;
    if (focused) value.focus();
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
    if (!stage.view || !this.value.reportValidity()) return;
    this.follow(false);
    this.asking?.abort();
    const asking = this.asking = new AbortController();
    const a = { view: stage.view, images: stage.images };
    this.busy(true);
    try {
      const question = { kind: 'single', request: this.changed(a.view.settings) };
      for await (const part of stage.ask(question, asking.signal)) {
        if (part.waiting) this.said.textContent = part.waiting;
        else await this.answer(a, /** @type {any} */ (part), asking.signal);
      }
    } catch (error) {
      if (!asking.signal.aborted) this.fail(error);
    } finally {
      if (this.asking === asking) this.busy(false);
    }
    this.list();
  }

  /**
   * @param {Side} a
   * @param {import('./stage.js').View} view
   * @param {AbortSignal} signal
   */
  async answer(a, view, signal) {
    const images = await Promise.all([view.original, view.reconstruction].map(loadImage));
    if (signal.aborted) return;
    pair = { a, b: { view, images } };
    this.show();
  }

  /** @param {boolean} busy */
  busy(busy) {
    this.cancel.hidden = !busy;
    this.said.textContent = busy ? this.texts.asking : '';
    if (busy) this.alert.replaceChildren();
  }

  /** @param {unknown} error */
  fail(error) {
    this.alert.replaceChildren(
      error instanceof AskError ? error.message : this.texts.lost, ' ',
      button(this.texts.again, () => this.ask()));
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
    this.asking?.abort();
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
    if (!this.listed) this.list();
    this.show();
  }

  /** Show A and B. */
  show() {
    const shown = pair;
    this.result.hidden = !shown;
    if (!shown) return;
    press(this.modes, MODES, mode);
    press(this.panels, PANELS, panel);
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
   * @param {{a: Side, b: Side}} pair
   * @returns {HTMLElement}
   */
  side({ a, b }) {
    const { texts } = this;
    const [one, other] = this.canvases([['A', a], ['B', b]]);
    return element('div', { class: 'side' },
      element('figure', {}, element('figcaption', {}, caption(texts, 'A', a, b)), one),
      element('figure', {}, element('figcaption', {}, caption(texts, 'B', b, a)), other));
  }

  /**
   * @param {{a: Side, b: Side}} pair
   * @returns {HTMLElement}
   */
  swipe({ a, b }) {
    const { texts } = this;
    const canvases = this.canvases([['A', a], ['B', b]]);
    const range = /** @type {HTMLInputElement} */ (element('input', {
      type: 'range', min: '0', max: '100', value: String(this.at), 'aria-label': texts.divider,
    }));
    const stack = element('div', { class: 'stack' }, ...canvases,
      element('b', {}, 'A'), element('b', {}, 'B'), range, element('i'));
    const move = () => {
      this.at = Number(range.value);
      stack.style.setProperty('--at', `${this.at}%`);
      range.setAttribute('aria-valuetext', fill(texts.divided, { a: this.at, b: 100 - this.at }));
    };
    range.addEventListener('input', move);
    move();
    return element('figure', { class: 'swipe' }, stack, element('figcaption', {},
      `${caption(texts, 'A', a, b)} | ${caption(texts, 'B', b, a)}`));
  }

  /**
   * Canvases of what is compared, or of the originals while they are asked for.
   * @param {[string, Side][]} sides
   */
  canvases(sides) {
    const made = sides.map(([name]) => /** @type {HTMLCanvasElement} */ (element('canvas', {
      role: 'img', 'aria-label': `${name}: ${this.texts[panel]}`,
    })));
    this.repaint = () => sides.forEach(([, { view, images }], i) => {
      paint(made[i], this.held ? 'original' : panel, images, view.mask);
    });
    return made;
  }

  /**
   * @param {{a: Side, b: Side}} pair
   * @returns {HTMLElement}
   */
  map({ a, b }) {
    const { texts } = this;
    const [one, other] = [a, b].map(({ images }) => pixelsOf(images[1]));
    const { values, mean, max, share } = difference(one, other, [a.view.mask, b.view.mask]);
    const canvas = /** @type {HTMLCanvasElement} */ (element('canvas', {
      role: 'img', 'aria-label': texts.difference,
    }));
    const image = new ImageData(one.width, one.height);
    paintMap(image, values, max);
    this.repaint = () => {
      if (this.held) return paint(canvas, 'original', a.images, a.view.mask);
      canvas.width = image.width;
      canvas.height = image.height;
      canvas.getContext('2d')?.putImageData(image, 0, 0);
    };
    if (!share) return element('p', {}, texts.none_in_common);
    const scale = element('span', { class: 'scale', 'aria-hidden': 'true' });
    const colours = Array.from({ length: 9 }, (_, i) => `rgb(${colourOf(i / 8).join(' ')})`);
    scale.style.background = `linear-gradient(to right, ${colours.join(', ')})`;
    return element('figure', { class: 'map' }, canvas, element('figcaption', {},
      element('span', { class: 'legend' }, '0', scale, decimals(max, 1)),
      fill(texts.map, {
        mean: decimals(mean, 1), max: decimals(max, 1), percent: Math.round(100 * share),
      })));
  }

  /**
   * What one has to know to read the pictures and figures.
   * @param {{a: Side, b: Side}} pair
   * @param {boolean} comparable
   * @returns {string[]}
   */
  remarks({ a, b }, comparable) {
    const { texts } = this;
    const [before, after] = [a, b].map(({ view: { facts } }) => `${facts.width} × ${facts.height}`);
    const said = [];
    if (following && a.view === b.view) said.push(texts.follow_hint);
    else if (!following && a.view !== stage.view) said.push(texts.older);
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
 * @param {string} label
 * @param {string[][]} options value and text
 */
function choice(label, options) {
  return /** @type {HTMLSelectElement} */ (element('select', { 'aria-label': label },
    ...options.map(([value, text]) => element('option', { value }, text))));
}

/**
 * @param {string} label
 * @param {Record<string, string>} attributes
 */
function number(label, attributes) {
  return /** @type {HTMLInputElement} */ (element('input', {
    type: 'number', 'aria-label': label, required: '', ...attributes,
  }));
}

/**
 * Buttons of which one is pressed.
 * @template {string} Name
 * @param {string} label
 * @param {readonly Name[]} names
 * @param {Record<string, string>} texts
 * @param {(name: Name) => void} does
 */
function group(label, names, texts, does) {
  return element('span', { class: 'choice', role: 'group', 'aria-label': label },
    ...names.map((name) => button(texts[name], () => does(name))));
}

/**
 * @param {HTMLElement} buttons a `group`
 * @param {readonly string[]} names
 * @param {string} pressed
 */
function press(buttons, names, pressed) {
  [...buttons.children].forEach((one, i) => {
    one.setAttribute('aria-pressed', String(names[i] === pressed));
  });
}
