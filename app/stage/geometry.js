// Where the panels lie in a picture of any size, by the rules of `mae_core`.

import { halfToEven } from './rounding.js';

/** @typedef {{x: number, y: number, width: number, height: number}} Box */

/**
 * The part of a picture that the panels show, in its own whole pixels: `fitted_box`.
 * @param {[number, number]} size width and height of the picture, upright
 * @param {string} fit `crop`, `squash` or `whole`
 * @param {number} side of a panel, which is square in a crop
 * @returns {Box}
 */
export function shownPart([width, height], fit, side) {
  if (fit !== 'crop') return { x: 0, y: 0, width, height };
  const short = Math.min(width, height);
  const [left, right] = middle(width, short, side);
  const [top, bottom] = middle(height, short, side);
  return { x: left, y: top, width: right - left, height: bottom - top };
}

/**
 * Both ends of the middle square along one side of the picture.
 * @param {number} length of this side
 * @param {number} short the shorter side
 * @param {number} side of the square after scaling
 */
function middle(length, short, side) {
  const scaled = Math.floor(length * side / short);
  const start = halfToEven((scaled - side) / 2);
  return [start, start + side].map((edge) => halfToEven(edge * length / scaled));
}

/**
 * The removed patches in whole pixels: a pixel belongs to the patch that its middle lies in.
 * @param {string[]} mask rows of 0 and 1, 1 = removed
 * @param {Box} part of the picture that the mask covers
 * @returns {Box[]}
 */
export function removedBoxes(mask, part) {
  const edge = (/** @type {number} */ i, /** @type {number} */ of, /** @type {number} */ length) =>
    Math.ceil((2 * i * length - of) / (2 * of));
  return mask.flatMap((row, i) => [...row].flatMap((cell, j) => {
    if (cell === '0') return [];
    const [left, right] = [j, j + 1].map((at) => edge(at, row.length, part.width));
    const [top, bottom] = [i, i + 1].map((at) => edge(at, mask.length, part.height));
    return { x: part.x + left, y: part.y + top, width: right - left, height: bottom - top };
  }));
}
