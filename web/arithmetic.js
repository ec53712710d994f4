// From bytes to a model's numbers and back, in float32 as `mae_core` has it, so that the bytes are
// the same. A result of one operation in float64 that is stored as float32 is that of float32.

import { estimateStatistics } from './normpix.js';
import {
  denormalizePatches, gridOf, normalizePatches, patchStatistics, patchify, unpatchify,
} from './patches.js';
import { Problem } from './problem.js';

const { fround } = Math;

/** Of one deviation of a patch's pixels in the view `normalized`, in pixels of 0 to 1. */
const NORMALIZED_CONTRAST = 0.25;

/** @typedef {import('./model.js').Description} Description */
/** @typedef {Pick<Description, 'target' | 'mean' | 'std' | 'patch_size'>} Units of numbers */

/**
 * A picture as the model takes it.
 * @param {Uint8Array | Uint8ClampedArray} bytes (H, W, 3)
 * @param {number[]} mean
 * @param {number[]} std
 * @returns {Float32Array} (3, H, W)
 */
export function normalise(bytes, mean, std) {
  const pixels = bytes.length / 3;
  const planar = new Float32Array(bytes.length);
  for (let channel = 0; channel < 3; ++channel) {
    const levels = Float32Array.from({ length: 256 }, (_, level) =>
      fround(fround(level / 255) - fround(mean[channel])) / fround(std[channel]));
    for (let i = 0; i < pixels; ++i) planar[channel * pixels + i] = levels[bytes[3 * i + channel]];
  }
  return planar;
}

/**
 * Undo the normalisation; values are not clamped.
 * @param {Float32Array} planar (3, H, W)
 * @param {number[]} mean
 * @param {number[]} std
 * @returns {Float32Array} (3, H, W)
 */
export function denormalise(planar, mean, std) {
  const pixels = planar.length / 3;
  const plain = new Float32Array(planar.length);
  for (let channel = 0; channel < 3; ++channel) {
    const [scale, shift] = [fround(std[channel]), fround(mean[channel])];
    for (let i = channel * pixels; i < (channel + 1) * pixels; ++i) {
      plain[i] = fround(planar[i] * scale) + shift;
    }
  }
  return plain;
}

/**
 * A prediction as an image: `mae_core.reconstruct.rebuild`, which says what the views are.
 * @param {Float32Array} pred (L, P)
 * @param {Float32Array} images (3, H, W), normalised
 * @param {readonly string[]} rows of the mask
 * @param {Units} units
 * @param {string} view means nothing where the model predicts pixels
 * @returns {Float32Array} (3, H, W) in 0 to 1
 */
export function toPixels(pred, images, rows, units, view) {
  const { target, mean, std, patch_size: side } = units;
  const grid = gridOf(rows);
  if (target === 'pixels') return clamped(denormalise(unpatchify(pred, grid, side), mean, std));
  if (view === 'normalized') {
    const [shift, scale] = [0.5, NORMALIZED_CONTRAST].map((value) => [value, value, value]);
    return clamped(denormalise(unpatchify(pred, grid, side), shift, scale));
  }
  const statistics = view === 'answer'
    ? patchStatistics(patchify(images, grid, side), grid[0] * grid[1])
    : estimateStatistics(images, rows, side);
  const patches = denormalizePatches(pred, statistics);
  return clamped(denormalise(unpatchify(patches, grid, side), mean, std));
}

/**
 * @param {Float32Array} values are changed
 * @returns {Float32Array} the same, within 0 to 1
 */
export function clamped(values) {
  for (let i = 0; i < values.length; ++i) values[i] = Math.min(Math.max(values[i], 0), 1);
  return values;
}

/**
 * Mean squared error of what the model predicts, over removed patches.
 * @param {Float32Array} pred (L, P)
 * @param {Float32Array} images (3, H, W), normalised
 * @param {readonly string[]} rows of the mask
 * @param {Units} units
 * @returns {number | null} null where nothing was removed
 */
export function lossOf(pred, images, rows, { target, patch_size: side }) {
  const cells = rows.join('');
  let wanted = patchify(images, gridOf(rows), side);
  if (target === 'norm_pix') wanted = normalizePatches(wanted, cells.length);
  const values = pred.length / cells.length;
  let [sum, count] = [0, 0];
  for (let i = 0; i < pred.length; ++i) {
    if (cells[Math.floor(i / values)] === '0') continue;
    sum += (pred[i] - wanted[i]) ** 2;
    ++count;
  }
  return count ? sum / count : null;
}

/**
 * @typedef {{width: number, height: number, data: Uint8Array}} Raster a picture; `data` is (height,
 *   width, 3)
 */

/**
 * An image as a picture; values outside 0 to 1 are clamped.
 * @param {Float32Array} planar (3, H, W)
 * @param {number} width
 * @returns {Raster}
 * @throws {Problem} if a value is not finite
 */
export function toRaster(planar, width) {
  const pixels = planar.length / 3;
  const data = new Uint8ClampedArray(planar.length);
  for (let i = 0; i < planar.length; ++i) {
    if (!Number.isFinite(planar[i])) throw new Problem('not_finite');
    // Such an array clamps, and rounds halves to even.
    data[i % pixels * 3 + Math.floor(i / pixels)] = fround(planar[i] * 255);
  }
  return { width, height: pixels / width, data: new Uint8Array(data.buffer) };
}
