// Patches of a picture: found by pointer and arrow key, and outlined.

import { svg } from './elements.js';

/** @typedef {[row: number, column: number]} Place */

/** @type {Record<string, Place>} */
const ARROWS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
};

/**
 * The patch at a point, or the nearest one.
 * @param {[y: number, x: number]} point in patches
 * @param {import('./masking.js').Grid} grid
 * @returns {Place}
 */
export function patchAt([y, x], [h, w]) {
  return [
    Math.min(Math.max(Math.floor(y), 0), h - 1), Math.min(Math.max(Math.floor(x), 0), w - 1),
  ];
}

/**
 * The patch that a pointer is at, or the nearest one.
 * @param {{clientX: number, clientY: number}} event
 * @param {Element} picture
 * @param {import('./masking.js').Grid} grid
 */
export function pointedAt({ clientX, clientY }, picture, [h, w]) {
  const { left, top, width, height } = picture.getBoundingClientRect();
  return patchAt([(clientY - top) / height * h, (clientX - left) / width * w], [h, w]);
}

/**
 * The patch that an arrow key leads to, which is the same one at the edge.
 * @param {string} key
 * @param {Place} from
 * @param {import('./masking.js').Grid} grid
 * @returns {Place | null} null if it is another key
 */
export function steppedTo(key, [row, column], grid) {
  if (!(key in ARROWS)) return null;
  const [down, across] = ARROWS[key];
  return patchAt([row + down, column + across], grid);
}

/** An outline, for an `svg` whose units are patches. */
export function pin() {
  const square = { width: '1', height: '1' };
  return svg('g', { class: 'pin' }, svg('rect', square), svg('rect', square));
}

/**
 * @param {SVGElement} outline
 * @param {Place} place
 */
export function pinAt(outline, [row, column]) {
  for (const square of outline.children) {
    square.setAttribute('x', String(column));
    square.setAttribute('y', String(row));
  }
}
