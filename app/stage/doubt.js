// Doubt: where the model errs and where it disagrees with itself, over many masks of one ratio.

import { button, canvas, choice, element, fill, svg } from './elements.js';
import { legend } from './legend.js';
import { loadImage, paint, paintValues, pixelsOf } from './painting.js';
import { pin, pinAt, pointedAt, steppedTo } from './patches.js';
import { Question, asking } from './question.js';
import { percent, quantile, ticksOver } from './scale.js';
import { stage } from './stage.js';

/**
 * @typedef {object} DoubtMap
 * @property {string} picture address of 16 bits in red and green; blue is 0 where there is no value
 * @property {number} scale value of level 65535
 * @property {(number | null)[][]} patches
 *
 * @typedef {object} Result
 * @property {number} runs
 * @property {number} mask_ratio
 * @property {number[][]} hidden in how many masks each patch was
 * @property {number | null} mean_psnr
 * @property {number | null} single_psnr
 * @property {DoubtMap} error
 * @property {DoubtMap} disagreement
 * @property {Record<string, ImageBitmap>} images
 */

const MASKS = [4, 8, 16, 32, 64];
const PICTURES = ['original', 'mean', 'error', 'disagreement'];
const MAPS = /** @type {const} */ (['error', 'disagreement']);
/** Of the pixels, on the scale; single pixels far above it would leave the others dark. */
const SHARE_ON_SCALE = 0.99;
const STEPS = 5;

/**
 * Doubt is about all of a view but the visitor's own mask.
 * @param {import('./stage.js').View} view
 */
const about = ({ settings: { picture, fit, model, image_size: size, view, mask } }) =>
  [picture, fit, model, size, view, mask.strategy, mask.seed, mask.ratio];

// These survive a change of language.
const doubt = new Question(about);
let masks = 16;
/** The patch that is marked. @type {import('./patches.js').Place} */
let place = [0, 0];

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Maps(host);
}

class Maps {
  /** @type {Result | null} */
  drawn = null;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { texts, signal } = host;
    this.texts = texts;
    this.own = element('p', { class: 'said', hidden: '' }, texts.own);
    const choices = choice(texts.masks, MASKS.map((count) => [count, String(count)]), masks,
      (count) => { masks = count; });
    const start = button(texts.start, () => this.start(), { class: 'main' });
    this.measured = element('p', { class: 'measured' });
    this.canvases = PICTURES.map((name) => canvas(texts[name]));
    this.pins = PICTURES.map(pin);
    this.grids = this.pins.map((each) => svg('svg', { 'aria-hidden': 'true' }, each));
    this.pictures = element('div', {
      class: 'screens', tabindex: '0', role: 'application', 'aria-label': texts.pictures,
    }, ...PICTURES.map((name, i) => element('figure', {}, element('figcaption', {}, texts[name]),
      element('div', { class: 'picture' }, this.canvases[i], this.grids[i]))));
    for (const event of ['pointermove', 'pointerdown']) {
      this.pictures.addEventListener(event, (at) => this.point(/** @type {PointerEvent} */ (at)));
    }
    this.pictures.addEventListener('keydown', (event) => this.key(event));
    this.patch = element('output', { class: 'patch' });
    this.legend = element('div', { class: 'legend' });
    this.show = element('div', { class: 'show', hidden: '' },
      this.measured, this.pictures, this.patch, this.legend, element('p', {}, texts.read));
    host.element.append(
      element('p', {}, texts.what),
      element('div', { class: 'bar' }, texts.masks, choices, asking(doubt, host, start)),
      element('p', { class: 'said' }, texts.cost), this.own, this.show);
    doubt.addEventListener('change', () => this.update(), { signal });
    stage.addEventListener('ask', (event) => {
      const wanted = /** @type {CustomEvent} */ (event).detail === 'doubt';
      if (wanted && !doubt.running && (doubt.old || !doubt.parts.length)) this.start();
    }, { signal });
    this.update();
  }

  /** What was measured, once it is there. */
  get result() {
    const last = doubt.parts.at(-1);
    return last?.hidden ? /** @type {Result} */ (last) : null;
  }

  start() {
    doubt.ask({ kind: 'doubt', masks }, async (part) => {
      if (!part.hidden) return part;
      place = worst(part.error.patches);
      const addresses = [part.original, part.mean, part.error.picture, part.disagreement.picture];
      const images = await Promise.all(addresses.map(loadImage));
      return { ...part, images: Object.fromEntries(PICTURES.map((name, i) => [name, images[i]])) };
    });
  }

  update() {
    const { result } = this;
    this.own.hidden = !stage.view?.settings.mask.rows.length;
    this.show.hidden = !result;
    this.show.classList.toggle('old', doubt.old);
    if (!result || result === this.drawn) return;
    this.drawn = result;
    this.draw(result);
    this.mark();
  }

  /** @param {Result} result */
  draw(result) {
    const { runs, mask_ratio: ratio, mean_psnr: mean, single_psnr: single, hidden, images } = result;
    const measured = fill(this.texts.measured, { runs, ratio: percent(ratio) });
    const psnr = mean === null || single === null ? []
      : [fill(this.texts.psnr, { mean: mean.toFixed(1), single: single.toFixed(1) })];
    this.measured.replaceChildren(element('strong', {}, measured),
      ...psnr.map((words) => element('span', {}, words)));
    this.canvases.forEach((screen, i) => paint(screen, 'original', [images[PICTURES[i]]], []));
    const values = MAPS.map((name) => valuesOf(pixelsOf(images[name]), result[name].scale));
    const high = Math.max(...values.map((pixels) => quantile(pixels, SHARE_ON_SCALE)));
    const ticks = ticksOver(0, 100 * high, STEPS);
    const max = ticks[ticks.length - 1];
    MAPS.forEach((name, i) => paintValues(
      this.canvases[PICTURES.indexOf(name)], values[i], images[name].width, max / 100));
    this.grids.forEach((grid) => {
      grid.setAttribute('viewBox', `0 0 ${hidden[0].length} ${hidden.length}`);
    });
    this.scale(ticks);
  }

  /** @param {number[]} ticks in per cent */
  scale(ticks) {
    const { texts } = this;
    const none = /** @type {HTMLCanvasElement} */ (element('canvas', { 'aria-hidden': 'true' }));
    paintValues(none, new Float32Array(64).fill(NaN), 8, 1);
    const last = ticks.length - 1;
    this.legend.replaceChildren(element('span', {}, texts.scale),
      legend(ticks.map((tick, i) => `${i === last ? '≥ ' : ''}${tick}%`)),
      element('span', { class: 'none' }, none, texts.none));
  }

  /** @param {PointerEvent} event */
  point(event) {
    const picture = event.target instanceof Element && event.target.closest('.picture');
    if (!picture || !this.result) return;
    this.go(pointedAt(event, picture, gridOf(this.result)));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const to = this.result && steppedTo(event.key, place, gridOf(this.result));
    if (!to) return;
    event.preventDefault();
    this.go(to);
  }

  /** @param {import('./patches.js').Place} to */
  go(to) {
    if (to.join() === place.join()) return;
    place = to;
    this.mark();
  }

  /** Mark the patch in all pictures, and say what is known of it. */
  mark() {
    const { texts } = this;
    const { hidden, runs, error, disagreement } = /** @type {Result} */ (this.result);
    const [row, column] = place;
    for (const each of this.pins) pinAt(each, place);
    const shown = (/** @type {DoubtMap} */ { patches }) => {
      const value = patches[row][column];
      return value === null ? texts.unknown : percent(value, 1);
    };
    this.patch.textContent = fill(texts.patch, {
      row: row + 1, column: column + 1, error: shown(error), disagreement: shown(disagreement),
      hidden: hidden[row][column], runs,
    });
  }
}

/**
 * @param {Result} result
 * @returns {import('./masking.js').Grid}
 */
function gridOf({ hidden }) {
  return [hidden.length, hidden[0].length];
}

/**
 * The place of the largest value.
 * @param {(number | null)[][]} rows
 * @returns {import('./patches.js').Place}
 */
function worst(rows) {
  const values = rows.flat().map((value) => value ?? -1);
  const at = values.indexOf(Math.max(...values));
  return [Math.floor(at / rows[0].length), at % rows[0].length];
}

/**
 * Values of a map; NaN where there is none.
 * @param {ImageData} picture
 * @param {number} scale value of level 65535
 */
function valuesOf({ data }, scale) {
  return Float32Array.from({ length: data.length / 4 }, (_, at) =>
    (data[4 * at + 2] ? (256 * data[4 * at] + data[4 * at + 1]) / 65535 * scale : NaN));
}
