// Where the panels lie in a picture of any size, by the rules of `mae_core`.

import { halfToEven } from './rounding.js';

/** @typedef {{x: number, y: number, width: number, height: number}} Box */

// A whole frame's long side is at most this many times its short side.
const WHOLE_MAX_ASPECT = 4;

/**
 * The part of a picture that the panels show, in its own whole pixels: `fitted_box`.
 * @param {[number, number]} size width and height of the picture, upright
 * @param {string} fit `crop`, `squash` or `whole`
 * @param {number} side of a panel, which is square in a crop
 * @returns {Box}
 */
export function shownPart(size, fit, side) {
  if (fit !== 'crop') return { x: 0, y: 0, width: size[0], height: size[1] };
  const { scaled, box } = cropped(size, side);
  const [[left, right], [top, bottom]] = [box.x, box.y].map((start, axis) =>
    [start, start + side].map((edge) => halfToEven(edge * size[axis] / scaled[axis])));
  return { x: left, y: top, width: right - left, height: bottom - top };
}

/**
 * The picture in a crop: its size after scaling, and the middle square that is kept of it.
 * @param {[number, number]} size width and height of the picture
 * @param {number} side of the square
 * @returns {{scaled: [number, number], box: Box}}
 */
export function cropped([width, height], side) {
  const short = Math.min(width, height);
  /** @type {[number, number]} */
  const scaled = [Math.floor(width * side / short), Math.floor(height * side / short)];
  const [x, y] = scaled.map((length) => halfToEven((length - side) / 2));
  return { scaled, box: { x, y, width: side, height: side } };
}

/**
 * Width and height of the model's image that a picture becomes: `fitted_size`.
 * @param {[number, number]} size width and height of the picture
 * @param {string} fit `crop`, `squash` or `whole`
 * @param {number} imageSize
 * @param {number} patchSize
 * @returns {[number, number]}
 */
export function fittedSize([width, height], fit, imageSize, patchSize) {
  if (fit !== 'whole') return [imageSize, imageSize];
  const scale = Math.min(
    imageSize / Math.min(width, height), WHOLE_MAX_ASPECT * imageSize / Math.max(width, height),
  );
  const fitted = (/** @type {number} */ side) =>
    Math.max(1, Math.floor(side * scale / patchSize + 0.5)) * patchSize;
  return [fitted(width), fitted(height)];
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
