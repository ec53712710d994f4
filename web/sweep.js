// The film of the mask ratio, as `mae_core.inside.sweep`.

import { halfToEven } from '../app/stage/rounding.js';
import { removedPsnr } from './metrics.js';
import { finer } from './patches.js';

/** @typedef {import('./arithmetic.js').Raster} Raster */

/** The panels of a frame, from left to right. */
const PANELS = /** @type {const} */ (['masked', 'reconstruction', 'pasted']);

/** Of a frame, in pixels: between panels, and of the bar below them. */
const [GAP, BAR] = [8, 6];
const BAR_COLOUR = [0x1f, 0x6f, 0xeb];
const BAR_GROUND = [0xd0, 0xd7, 0xde];

/**
 * Evenly spaced mask ratios from 0.95 to 0.05.
 * @param {number} frames
 */
export function filmRatios(frames) {
  const step = (0.05 - 0.95) / (frames - 1);
  return Array.from({ length: frames }, (_, i) => Number((0.95 + step * i).toFixed(6)));
}

/**
 * One frame of a film: panels side by side on white, below them a bar as long as the ratio.
 * @param {Record<typeof PANELS[number], Raster>} panels of one size
 * @param {number} ratio fraction removed
 * @returns {Raster}
 */
export function filmFrame(panels, ratio) {
  const { width, height } = panels.masked;
  const length = PANELS.length * (width + GAP) - GAP;
  const rows = height + GAP + BAR;
  const frame = { width: length, height: rows, data: new Uint8Array(3 * length * rows).fill(255) };
  PANELS.forEach((name, i) => {
    for (let row = 0; row < height; ++row) {
      const line = panels[name].data.subarray(3 * row * width, 3 * (row + 1) * width);
      frame.data.set(line, 3 * (row * length + i * (width + GAP)));
    }
  });
  paint(frame, height + GAP, length, BAR_GROUND);
  paint(frame, height + GAP, halfToEven(length * ratio), BAR_COLOUR);
  return frame;
}

/**
 * Paint all rows below one, from the left.
 * @param {Raster} frame is changed
 * @param {number} top
 * @param {number} length
 * @param {number[]} colour
 */
function paint({ width, height, data }, top, length, colour) {
  for (let row = top; row < height; ++row) {
    for (let column = 0; column < length; ++column) data.set(colour, 3 * (row * width + column));
  }
}

/**
 * PSNR in dB of the removed patches, filled with the mean of the visible pixels. (Telea's
 * inpainting is OpenCV's, which takes a server.)
 * @param {Raster} original
 * @param {readonly string[]} rows of the mask
 * @returns {{mean_colour: number | null}} null where nothing was removed, or it is filled without
 *   error
 */
export function baselines({ width, data }, rows) {
  const removed = finer(rows, width / rows[0].length);
  const original = new Float32Array(data.length);
  const filled = new Float32Array(data.length);
  for (let channel = 0; channel < 3; ++channel) {
    const start = channel * removed.length;
    let [sum, count] = [0, 0];
    for (let i = 0; i < removed.length; ++i) {
      original[start + i] = data[3 * i + channel] / 255;
      if (removed[i]) continue;
      sum += original[start + i];
      ++count;
    }
    filled.fill(sum / count, start, start + removed.length);
  }
  return { mean_colour: removedPsnr(filled, original, removed) };
}
