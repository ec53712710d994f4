// A picture whose patches glow by values, and in which patches are pointed at.

import { colourOf } from './colours.js';
import { element, fill, svg } from './elements.js';
import { paint } from './painting.js';

/** @type {Record<string, [number, number]>} */
const ARROWS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
};

export class Glow {
  h = 0;
  w = 0;
  /** The patch that the keyboard moves. */
  pin = 0;
  /** @type {number | null} */
  hovered = null;

  /**
   * @param {{picture: string, grid: string}} labels for screen readers
   * @param {(patch: number | null) => void} hover null when the pointer leaves
   * @param {(patch: number) => void} choose by click, tap or arrow key
   */
  constructor(labels, hover, choose) {
    this.hover = hover;
    this.choose = choose;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      element('canvas', { role: 'img', 'aria-label': labels.picture }));
    this.grid = /** @type {SVGSVGElement} */ (svg('svg', {
      role: 'application', tabindex: '0', 'aria-label': labels.grid, preserveAspectRatio: 'none',
    }));
    this.veil = svg('path', { class: 'veil' });
    this.marks = svg('g');
    this.outline = svg('rect', { class: 'pin', width: '1', height: '1' });
    this.grid.append(this.veil, this.marks, this.outline);
    this.element = element('div', { class: 'glow' }, this.canvas, this.grid);
    this.grid.addEventListener('pointermove', (event) => {
      if (event.pointerType !== 'touch') this.#hover(this.#patchAt(event));
    });
    this.grid.addEventListener('pointerleave', () => this.#hover(null));
    this.grid.addEventListener('click', (event) => this.choose(this.#patchAt(event)));
    this.grid.addEventListener('keydown', (event) => this.#press(event));
  }

  /**
   * @param {HTMLImageElement[]} images original and reconstruction
   * @param {string[]} mask
   */
  show(images, mask) {
    [this.h, this.w] = [mask.length, mask[0].length];
    paint(this.canvas, 'pasted', images, mask);
    this.grid.setAttribute('viewBox', `0 0 ${this.w} ${this.h}`);
    this.element.style.maxWidth = `${80 * this.canvas.width / this.canvas.height}vh`;
    this.veil.setAttribute('d', mask.flatMap((row, i) => [...row].map((cell, j) =>
      (cell === '1' ? `M${j} ${i}h1v1h-1z` : ''))).join(''));
  }

  /**
   * @param {number} patch the one outlined
   * @param {import('./study.js').Values} values
   * @param {number} max the value of the brightest glow
   */
  draw(patch, values, max) {
    this.outline.setAttribute('x', String(patch % this.w));
    this.outline.setAttribute('y', String(Math.floor(patch / this.w)));
    this.marks.replaceChildren(...[...values].map(([at, value]) => {
      const t = max > 0 ? value / max : 0;
      // A frame within the patch, the more the thicker, so that the picture can be seen.
      const width = 0.05 + 0.16 * t;
      const side = String(1 - width);
      return svg('rect', {
        x: String(at % this.w + width / 2), y: String(Math.floor(at / this.w) + width / 2),
        width: side, height: side, 'stroke-width': String(width),
        stroke: `rgb(${colourOf(t)})`, fill: `rgb(${colourOf(t)})`,
        opacity: String(0.4 + 0.6 * t), 'fill-opacity': String(0.4 * t),
        'data-patch': String(at), 'data-value': String(value),
      });
    }));
  }

  /** @param {MouseEvent} event */
  #patchAt(event) {
    const box = this.grid.getBoundingClientRect();
    const place = (/** @type {number} */ share, /** @type {number} */ count) =>
      Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    return place((event.clientY - box.top) / box.height, this.h) * this.w
      + place((event.clientX - box.left) / box.width, this.w);
  }

  /** @param {number | null} patch */
  #hover(patch) {
    if (patch === this.hovered) return;
    this.hovered = patch;
    this.hover(patch);
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    const [down, across] = ARROWS[event.key];
    const i = Math.min(Math.max(Math.floor(this.pin / this.w) + down, 0), this.h - 1);
    const j = Math.min(Math.max(this.pin % this.w + across, 0), this.w - 1);
    this.choose(i * this.w + j);
  }
}

/** The colour scale from left to right, as CSS. */
export const SCALE = `linear-gradient(to right, ${
  Array.from({ length: 9 }, (_, i) => `rgb(${colourOf(i / 8)})`).join(', ')})`;

/**
 * @param {number} share
 * @param {string} text with a place for its `value`
 */
export function percent(share, text) {
  return fill(text, { value: (100 * share).toFixed(2) });
}
