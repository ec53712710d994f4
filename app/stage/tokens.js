// Pictures of patches and tokens, as a model has them at one stage.

import { colourOf } from './colours.js';
import { canvas } from './elements.js';

/** @typedef {(context: CanvasRenderingContext2D, x: number, y: number, side: number) => void} Cell */

export const CLASS_TOKEN = '#0d9488';
export const MASK_TOKEN = 'rgb(128 128 128)';

/** Canvas pixels for each pixel of the page. */
const SHARP = 2;
/** Of a picture of patches, in pixels of the page. */
const SIDE = 196;
/** Width and length of a column of tokens, likewise; and of one that lies across a narrow page. */
const COLUMN = [32, 340], LYING = [32, 256];

/**
 * Patches in rows and columns, as in a picture.
 * @param {string} label
 * @param {number} columns
 * @param {Cell[]} cells row by row
 */
export function grid(label, columns, cells) {
  const rows = Math.ceil(cells.length / columns);
  return picture(label, [columns, rows], SIDE / Math.max(columns, rows), cells, (i) => [
    i % columns, Math.floor(i / columns),
  ]);
}

/**
 * Tokens in a column, several abreast where they are many.
 * @param {string} label
 * @param {boolean} across whether the column lies on its side
 * @param {Cell[]} cells
 */
export function column(label, across, cells) {
  const [width, length] = across ? LYING : COLUMN;
  const side = Math.min(Math.sqrt(width * length / cells.length), width);
  const abreast = Math.max(Math.round(width / side), 1);
  const rows = Math.ceil(cells.length / abreast);
  const fitting = Math.min(length / rows, width / abreast);
  const place = (/** @type {number} */ i) => [i % abreast, Math.floor(i / abreast)];
  return picture(label, across ? [rows, abreast] : [abreast, rows], fitting, cells, (i) => {
    return across ? place(i).reverse() : place(i);
  });
}

/**
 * A patch of a picture.
 * @param {ImageBitmap} image
 * @param {number[]} size rows and columns of the grid
 * @param {number} patch its number
 * @param {number} alpha
 * @returns {Cell}
 */
export function thumbnail(image, [h, w], patch, alpha = 1) {
  const width = image.width / w, height = image.height / h;
  return (context, x, y, side) => {
    context.globalAlpha = alpha;
    context.drawImage(image, patch % w * width, Math.floor(patch / w) * height, width, height,
      x, y, side, side);
    context.globalAlpha = 1;
  };
}

/**
 * @param {string} colour
 * @returns {Cell}
 */
export function plain(colour) {
  return (context, x, y, side) => {
    context.fillStyle = colour;
    context.fillRect(x, y, side, side);
  };
}

/**
 * @param {number} value 0 to 1
 * @returns {Cell}
 */
export function shade(value) {
  return plain(`rgb(${colourOf(value).join(' ')})`);
}

/**
 * @param {string} label
 * @param {number[]} size columns and rows
 * @param {number} side of a cell with its gap, in pixels of the page
 * @param {Cell[]} cells
 * @param {(i: number) => number[]} place column and row of a cell
 */
function picture(label, [columns, rows], side, cells, place) {
  const made = canvas(label);
  made.width = Math.round(columns * side * SHARP);
  made.height = Math.round(rows * side * SHARP);
  made.style.width = `${made.width / SHARP}px`;
  const context = /** @type {CanvasRenderingContext2D} */ (made.getContext('2d'));
  const gap = side > 4 ? SHARP : side > 2 ? 1 : 0;
  cells.forEach((cell, i) => {
    const [x, y] = place(i).map((at) => Math.round(at * side * SHARP));
    cell(context, x, y, Math.max(Math.round(side * SHARP) - gap, 1));
  });
  return made;
}
