// Masks drawn from a seed: the same as those of `mae_core.model.masking`, whose docstrings say why.

import { Mersenne } from './mersenne.js';
import { halfToEven } from './rounding.js';

/** @typedef {[h: number, w: number]} Grid rows and columns of patches */
/** @typedef {'random' | 'block' | 'grid'} Strategy */

// A block's share of the image, and the logarithm of its height over width.
const BLOCK_AREA = [16 / 196, 75 / 196];
const BLOCK_LOG_ASPECT = [Math.log(0.3), Math.log(1 / 0.3)];
const BLOCKS = 192;

/** Noise over the L patches of a grid; those of the lowest noise are kept. */
const NOISES = { random: randomNoise, block: blockNoise, grid: gridNoise };

/** Mask ratios that may be asked for: `app/request.py`. */
export const [LEAST_RATIO, MOST_RATIO] = [0.05, 0.95];

export const STRATEGIES = /** @type {Strategy[]} */ (Object.keys(NOISES));

/**
 * Draw the mask of one image.
 * @param {Strategy} strategy
 * @param {Grid} grid
 * @param {number} ratio fraction removed, 0 to 1
 * @param {number | bigint} seed 0 to 2^63 - 1, see `Mersenne`
 * @returns {{rows: string[], idsKeep: number[], idsRestore: number[]}} h rows of w characters,
 *   1 = removed; the K visible patches in shuffled order; the place of each of the L patches in
 *   the shuffled order
 * @throws {RangeError} if an argument is not allowed
 */
export function drawMask(strategy, grid, ratio, seed) {
  if (!Object.hasOwn(NOISES, strategy)) {
    throw new RangeError(`no strategy is called ${strategy}; choose ${STRATEGIES.join(', ')}`);
  }
  const [h, w] = grid;
  const visible = numVisible(h * w, ratio);
  const noise = NOISES[strategy](grid, new Mersenne(seed));
  const idsShuffle = noise.map((_, patch) => patch).sort((a, b) => noise[a] - noise[b]);
  /** @type {number[]} */
  const idsRestore = new Array(h * w);
  idsShuffle.forEach((patch, place) => { idsRestore[patch] = place; });
  const cells = idsRestore.map((place) => (place < visible ? '0' : '1')).join('');
  const rows = Array.from({ length: h }, (_, i) => cells.slice(i * w, (i + 1) * w));
  return { rows, idsKeep: idsShuffle.slice(0, visible), idsRestore };
}

/**
 * K: how many of `length` patches stay visible, at least 1.
 * @param {number} length L
 * @param {number} ratio fraction removed, 0 to 1
 * @returns {number}
 * @throws {RangeError} if the ratio is not allowed
 */
export function numVisible(length, ratio) {
  if (!(ratio >= 0 && ratio <= 1)) {
    throw new RangeError(`the mask ratio is ${ratio}; give a number from 0 to 1, such as 0.75`);
  }
  // Nine decimals are far finer than 1 / L and far coarser than the rounding error.
  return Math.max(Math.floor(Number((length * (1 - ratio)).toFixed(9))), 1);
}

/**
 * @param {Grid} grid
 * @param {Mersenne} generator
 */
function randomNoise([h, w], generator) {
  return Array.from({ length: h * w }, () => generator.float());
}

/**
 * The later a patch is removed the lower its noise.
 * @param {Grid} grid
 * @param {Mersenne} generator
 */
function blockNoise([h, w], generator) {
  const blocks = Array.from({ length: BLOCKS }, () => drawBlock([h, w], generator));
  return randomNoise([h, w], generator).map((uncovered, patch) => {
    const [i, j] = [Math.floor(patch / w), patch % w];
    const block = blocks.findIndex(({ top, left, height, width }) =>
      i >= top && i < top + height && j >= left && j < left + width);
    // Within a block from left to right and downwards; below 1 where no block was.
    return block < 0 ? uncovered : (BLOCKS - block) * (h * w) - patch;
  });
}

/**
 * @param {Grid} grid
 * @param {Mersenne} generator
 */
function drawBlock([h, w], generator) {
  const [smallest, largest] = BLOCK_AREA;
  const [low, high] = BLOCK_LOG_ASPECT;
  const area = h * w * (smallest + (largest - smallest) * generator.float());
  const aspect = Math.exp(low + (high - low) * generator.float());
  const height = Math.min(Math.max(halfToEven(Math.sqrt(area * aspect)), 1), h);
  const width = Math.min(Math.max(halfToEven(Math.sqrt(area / aspect)), 1), w);
  const top = halfToEven((h - height) * generator.float());
  const left = halfToEven((w - width) * generator.float());
  return { top, left, height, width };
}

/**
 * Bayer's order: the low bits of (row, column) decide first.
 * @param {Grid} grid
 * @param {Mersenne} generator
 */
function gridNoise([h, w], generator) {
  const bits = 32 - Math.clz32(Math.max(h - 1, w - 1, 1));
  const [down, across] = [generator.draw() % 2 ** bits, generator.draw() % 2 ** bits];
  return Array.from({ length: h * w }, (_, patch) => {
    const [i, j] = [Math.floor(patch / w) + down, patch % w + across];
    let order = 0;
    for (let bit = 0; bit < bits; ++bit) {
      const [rowBit, columnBit] = [(i >> bit) & 1, (j >> bit) & 1];
      order = order * 4 + 2 * (rowBit ^ columnBit) + columnBit;
    }
    return order;
  });
}
