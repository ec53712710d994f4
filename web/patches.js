// Images cut into patches and put together again, as `mae_core.model.patches` does it.
//
// An image is planar: (3, H, W). Its patches are (L, P), in row-major order, and the P values of
// each in the order (row, column, channel).

/** @typedef {import('../app/stage/masking.js').Grid} Grid */

/** Added to a patch's variance before the root. */
const EPSILON = Math.fround(1e-6);

/**
 * @param {readonly string[]} rows of a mask
 * @returns {Grid}
 */
export function gridOf(rows) {
  return [rows.length, rows[0].length];
}

/**
 * @param {Float32Array} planar (3, H, W)
 * @param {Grid} grid
 * @param {number} side of a patch in pixels
 * @returns {Float32Array} (L, P)
 */
export function patchify(planar, grid, side) {
  const places = placesOf(grid, side);
  const patches = new Float32Array(planar.length);
  for (let i = 0; i < patches.length; ++i) patches[i] = planar[places[i]];
  return patches;
}

/**
 * The inverse of `patchify`.
 * @param {Float32Array} patches (L, P)
 * @param {Grid} grid
 * @param {number} side of a patch in pixels
 * @returns {Float32Array} (3, H, W)
 */
export function unpatchify(patches, grid, side) {
  const places = placesOf(grid, side);
  const planar = new Float32Array(patches.length);
  for (let i = 0; i < patches.length; ++i) planar[places[i]] = patches[i];
  return planar;
}

/**
 * Where each value of the patches is in the image.
 * @param {Grid} grid
 * @param {number} side
 */
function placesOf([h, w], side) {
  const pixels = h * w * side ** 2;
  const places = new Uint32Array(3 * pixels);
  let at = 0;
  for (let patch = 0; patch < h * w; ++patch) {
    const corner = Math.floor(patch / w) * side * w * side + patch % w * side;
    for (let pixel = 0; pixel < side ** 2; ++pixel) {
      const place = corner + Math.floor(pixel / side) * w * side + pixel % side;
      for (let channel = 0; channel < 3; ++channel) places[at++] = channel * pixels + place;
    }
  }
  return places;
}

/** @typedef {{mean: Float32Array, variance: Float32Array}} Statistics (L) each */

/**
 * Mean and unbiased variance of each patch over its P values.
 * @param {Float32Array} patches (L, P)
 * @param {number} length L
 * @returns {Statistics}
 */
export function patchStatistics(patches, length) {
  const values = patches.length / length;
  const mean = new Float32Array(length);
  const variance = new Float32Array(length);
  for (let patch = 0; patch < length; ++patch) {
    const [start, end] = [patch * values, (patch + 1) * values];
    let [sum, squares] = [0, 0];
    for (let i = start; i < end; ++i) sum += patches[i];
    const middle = sum / values;
    for (let i = start; i < end; ++i) squares += (patches[i] - middle) ** 2;
    mean[patch] = middle;
    variance[patch] = squares / (values - 1);
  }
  return { mean, variance };
}

/**
 * @param {Float32Array} patches (L, P)
 * @param {number} length L
 * @returns {Float32Array} (L, P), each patch normalised by its own statistics
 */
export function normalizePatches(patches, length) {
  const { mean, variance } = patchStatistics(patches, length);
  return eachPatch(patches, variance, (value, patch, deviation) =>
    Math.fround(value - mean[patch]) / deviation);
}

/**
 * Undo `normalizePatches`, by the statistics given.
 * @param {Float32Array} patches (L, P)
 * @param {Statistics} statistics
 * @returns {Float32Array} (L, P)
 */
export function denormalizePatches(patches, { mean, variance }) {
  return eachPatch(patches, variance, (value, patch, deviation) =>
    Math.fround(value * deviation) + mean[patch]);
}

/**
 * @param {Float32Array} patches
 * @param {Float32Array} variance
 * @param {(value: number, patch: number, deviation: number) => number} change
 */
function eachPatch(patches, variance, change) {
  const changed = new Float32Array(patches.length);
  const values = patches.length / variance.length;
  for (let patch = 0; patch < variance.length; ++patch) {
    const deviation = Math.fround(Math.sqrt(Math.fround(variance[patch] + EPSILON)));
    for (let i = patch * values; i < (patch + 1) * values; ++i) {
      changed[i] = change(patches[i], patch, deviation);
    }
  }
  return changed;
}

/**
 * A mask of patches as one of smaller cells, such as pixels.
 * @param {readonly string[]} rows 1 = removed
 * @param {number} side cells along a side of a patch
 * @returns {Uint8Array} (h * side, w * side), 1 = removed
 */
export function finer(rows, side) {
  const width = rows[0].length * side;
  const cells = new Uint8Array(rows.length * side * width);
  rows.forEach((row, i) => {
    const line = Uint8Array.from({ length: width }, (_, j) => Number(row[Math.floor(j / side)]));
    for (let k = 0; k < side; ++k) cells.set(line, (i * side + k) * width);
  });
  return cells;
}
