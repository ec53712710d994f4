// Doubt: where a model errs and where it disagrees with itself, over many masks of one picture. As
// `mae_core.inside.uncertainty`: a pixel counts in the masks that removed it.

import { halfToEven } from '../app/stage/rounding.js';
import { toRaster } from './arithmetic.js';
import { Problem } from './problem.js';

/** @typedef {import('./reconstruction.js').Reconstruction} Reconstruction */

/** Error and disagreement of the reconstructions of one picture, added one at a time. */
export class Doubt {
  /** Reconstructions that were added. */
  runs = 0;

  /** @type {number[]} PSNR of each */
  psnrs = [];

  /** @param {Reconstruction} first of the picture; it is not added */
  constructor({ width, height, side, original }) {
    this.width = width;
    this.height = height;
    this.side = side;
    this.original = original;
    /** (H, W) how many masks removed each pixel. */
    this.hidden = new Uint16Array(width * height);
    // Of the masks in which a pixel was removed: mean (3, H, W); over the channels, (H, W), sums of
    // squared differences from that mean (Welford 1962) and from the original.
    this.means = new Float64Array(original.length);
    this.squares = new Float64Array(width * height);
    this.errors = new Float64Array(width * height);
  }

  /**
   * Count one more mask.
   * @param {Reconstruction} result of the same picture
   * @throws {Problem} if its view has other pixels than the original
   */
  add({ view, pixels, removed, psnr }) {
    if (view === 'normalized') throw new Problem('not_comparable');
    const { hidden, means, squares, errors, original } = this;
    this.runs += 1;
    if (psnr !== null) this.psnrs.push(psnr);
    removed.forEach((cell, pixel) => {
      if (!cell) return;
      hidden[pixel] += 1;
      for (let i = pixel; i < pixels.length; i += removed.length) {
        const change = pixels[i] - means[i];
        means[i] += change / hidden[pixel];
        squares[pixel] += change * (pixels[i] - means[i]);
        errors[pixel] += (pixels[i] - original[i]) ** 2;
      }
    });
  }

  /** The answer to a plan, but for its mask ratio. */
  get part() {
    const { runs, hidden, means, original, width, psnrs } = this;
    const pixels = hidden.length;
    // Of the masks that removed a pixel, else the original.
    const mean = original.map((value, i) => (hidden[i % pixels] ? means[i] : value));
    return {
      runs,
      hidden: this.patches((corner) => hidden[corner]),
      original: toRaster(original, width),
      mean: toRaster(mean, width),
      mean_psnr: this.meanPsnr,
      single_psnr: psnrs.length ? psnrs.reduce((sum, psnr) => sum + psnr, 0) / psnrs.length : null,
      error: this.map(this.errors, 1),
      disagreement: this.map(this.squares, 2),
    };
  }

  /** Of the mean picture in dB, over the pixels that were ever removed. */
  get meanPsnr() {
    const { hidden, means, original } = this;
    let [sum, count] = [0, 0];
    for (let i = 0; i < means.length; ++i) {
      if (!hidden[i % hidden.length]) continue;
      sum += (means[i] - original[i]) ** 2;
      ++count;
    }
    return sum ? -10 * Math.log10(sum / count) : null;
  }

  /**
   * A map for the browser, of the roots of means of sums. Its `picture` has 16 bits a pixel in red
   * and green, the share of `scale`; blue is 255 where there is a value. `patches` has null where
   * there is none.
   * @param {Float64Array} sums (H, W)
   * @param {number} least masks that have to count
   */
  map(sums, least) {
    const { hidden, width, height, side } = this;
    const roots = sums.map((sum, i) =>
      (hidden[i] < least ? NaN : Math.sqrt(sum / (3 * hidden[i]))));
    const scale = roots.reduce((most, root) => (root > most ? root : most), 0);
    const data = new Uint8Array(3 * roots.length);
    roots.forEach((root, i) => {
      if (Number.isNaN(root)) return;
      const level = halfToEven(root / (scale || 1) * 65535);
      data.set([level >> 8, level & 255, 255], 3 * i);
    });
    const patches = this.patches((corner) => {
      let sum = 0;
      for (let i = 0; i < side ** 2; ++i) {
        sum += roots[corner + Math.floor(i / side) * width + i % side] ** 2;
      }
      return Number.isNaN(sum) ? null : Number(Math.sqrt(sum / side ** 2).toFixed(6));
    });
    return { picture: { width, height, data }, scale, patches };
  }

  /**
   * @template T
   * @param {(corner: number) => T} value of a patch, by the number of its first pixel
   * @returns {T[][]} (h, w)
   */
  patches(value) {
    const { width, height, side } = this;
    return Array.from({ length: height / side }, (_, i) =>
      Array.from({ length: width / side }, (__, j) => value(i * side * width + j * side)));
  }
}

/**
 * The seeds of so many masks: `seed` and those after it, which may be beyond what a number holds.
 * @param {number} seed
 * @param {number} masks
 * @returns {bigint[]}
 */
export function doubtSeeds(seed, masks) {
  return Array.from({ length: masks }, (_, i) => BigInt(seed) + BigInt(i));
}
