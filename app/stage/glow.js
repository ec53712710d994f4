// A picture whose patches glow by values, and in which patches are pointed at.

import { colourOf } from './colours.js';
import { canvas, element, svg } from './elements.js';
import { paint } from './painting.js';
import { pin, pinAt, pointedAt, steppedTo } from './patches.js';

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
    this.canvas = canvas(labels.picture);
    this.grid = /** @type {SVGSVGElement} */ (svg('svg', {
      role: 'application', tabindex: '0', 'aria-label': labels.grid, preserveAspectRatio: 'none',
    }));
    this.veil = svg('path', { class: 'veil' });
    this.marks = svg('g', { class: 'marks' });
    this.outline = pin();
    this.grid.append(this.veil, this.marks, this.outline);
    this.element = element('div', { class: 'picture' }, this.canvas, this.grid);
    this.grid.addEventListener('pointermove', (event) => {
      if (event.pointerType !== 'touch') this.#hover(this.#patchAt(event));
    });
    this.grid.addEventListener('pointerleave', () => this.#hover(null));
    this.grid.addEventListener('click', (event) => this.choose(this.#patchAt(event)));
    this.grid.addEventListener('keydown', (event) => this.#press(event));
  }

  /**
   * @param {ImageBitmap[]} images original and reconstruction
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
    pinAt(this.outline, this.#place(patch));
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
    return this.#number(pointedAt(event, this.grid, [this.h, this.w]));
  }

  /** @param {number | null} patch */
  #hover(patch) {
    if (patch === this.hovered) return;
    this.hovered = patch;
    this.hover(patch);
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    const to = steppedTo(event.key, this.#place(this.pin), [this.h, this.w]);
    if (!to) return;
    event.preventDefault();
    this.choose(this.#number(to));
  }

  /**
   * @param {number} patch
   * @returns {import('./patches.js').Place}
   */
  #place(patch) {
    return [Math.floor(patch / this.w), patch % this.w];
  }

  /** @param {import('./patches.js').Place} place */
  #number([row, column]) {
    return row * this.w + column;
  }
}
