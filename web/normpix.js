// Brightness and contrast of removed patches, estimated from the visible ones: as
// `mae_core.normpix`, whose docstrings say why.

import { finer, gridOf, patchStatistics, patchify } from './patches.js';

/** @typedef {import('../app/stage/masking.js').Grid} Grid */

/** Cells along a side of a patch from which its mean is estimated. */
const MEAN_CELLS = 4;

const FILL_TOLERANCE = 1e-5;
const FILL_STEPS = 1000;
const TINY = 1e-30;

/**
 * Mean and variance of every patch, as far as the visible patches tell.
 * @param {Float32Array} images (3, H, W), normalised; removed pixels are never looked at
 * @param {readonly string[]} rows of the mask; at least one patch visible
 * @param {number} side of a patch in pixels
 * @returns {import('./patches.js').Statistics}
 */
export function estimateStatistics(images, rows, side) {
  const [h, w] = gridOf(rows);
  const cells = Math.min(MEAN_CELLS, side);
  const raw = patchStatistics(patchify(images, [h, w], side), h * w);
  const hidden = finer(rows, 1);
  const grey = pooled(greyOf(images), [h * side, w * side], [h * cells, w * cells]);
  const filled = fillSmoothly(grey, finer(rows, cells), [h * cells, w * cells]);
  const mean = pooled(filled, [h * cells, w * cells], [h, w]);
  return {
    mean: mean.map((value, patch) => (hidden[patch] ? value : raw.mean[patch])),
    variance: fillSmoothly(raw.variance, hidden, [h, w]),
  };
}

/** @param {Float32Array} images (3, H, W) */
function greyOf(images) {
  const pixels = images.length / 3;
  return Float32Array.from({ length: pixels }, (_, i) =>
    (images[i] + images[pixels + i] + images[2 * pixels + i]) / 3);
}

/**
 * Means over windows that cover a (H, W) map, as `adaptive_avg_pool2d`: where the sizes do not
 * divide, windows overlap.
 * @param {Float32Array} values
 * @param {Grid} from
 * @param {Grid} to
 * @returns {Float32Array}
 */
function pooled(values, [height, width], [h, w]) {
  const [down, across] = [windows(height, h), windows(width, w)];
  return Float32Array.from({ length: h * w }, (_, at) => {
    const [top, bottom] = down[Math.floor(at / w)];
    const [left, right] = across[at % w];
    let sum = 0;
    for (let i = top; i < bottom; ++i) {
      for (let j = left; j < right; ++j) sum += values[i * width + j];
    }
    return sum / ((bottom - top) * (right - left));
  });
}

/**
 * @param {number} length
 * @param {number} count
 */
function windows(length, count) {
  return Array.from({ length: count }, (_, i) =>
    [Math.floor(i * length / count), Math.ceil((i + 1) * length / count)]);
}

/**
 * Continue known values into holes, as a stretched membrane would: Laplace's equation by conjugate
 * gradients.
 * @param {Float32Array} values (h, w); those that are hidden are never looked at
 * @param {Uint8Array} hidden (h, w), 1 = to be filled; not all
 * @param {Grid} grid
 * @returns {Float32Array} (h, w)
 */
export function fillSmoothly(values, hidden, grid) {
  const filled = Float64Array.from(values);
  const known = filled.filter((_, i) => !hidden[i]);
  const level = known.reduce((sum, value) => sum + value, 0) / known.length;
  hidden.forEach((hole, i) => { if (hole) filled[i] = level; });
  const residual = laplacian(filled, hidden, grid).map((value) => -value);
  const direction = residual.slice();
  let size = dot(residual, residual);
  const goal = FILL_TOLERANCE ** 2 * size;
  for (let done = 0; done < FILL_STEPS && size > goal; ++done) {
    const change = laplacian(direction, hidden, grid);
    const step = size / (dot(direction, change) + TINY);
    for (let i = 0; i < filled.length; ++i) {
      filled[i] += step * direction[i];
      residual[i] -= step * change[i];
    }
    const previous = size;
    size = dot(residual, residual);
    const turn = size / (previous + TINY);
    for (let i = 0; i < filled.length; ++i) direction[i] = residual[i] + turn * direction[i];
  }
  return Float32Array.from(filled);
}

/**
 * @param {Float64Array} a
 * @param {Float64Array} b
 */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i] * b[i];
  return sum;
}

/**
 * Four times each hidden value less its four neighbours, edges repeated; 0 where it is known.
 * @param {Float64Array} x (h, w)
 * @param {Uint8Array} hidden
 * @param {Grid} grid
 */
function laplacian(x, hidden, [h, w]) {
  const result = new Float64Array(x.length);
  for (let at = 0; at < x.length; ++at) {
    if (!hidden[at]) continue;
    const column = at % w;
    const right = column < w - 1 ? at + 1 : at;
    const left = column > 0 ? at - 1 : at;
    const below = at + w < h * w ? at + w : at;
    const above = at >= w ? at - w : at;
    result[at] = 4 * x[at] - (x[right] + x[left]) - x[below] - x[above];
  }
  return result;
}
