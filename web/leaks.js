// Proof that hidden pixels do not reach a prediction, as `mae_core.inside.leaks`.

import { Mersenne } from '../app/stage/mersenne.js';
import { clamped, denormalise, toRaster } from './arithmetic.js';
import { finer } from './patches.js';

const { fround } = Math;

/**
 * A picture whose removed patches are noise, uniform in 0 to 1.
 * @param {Float32Array} images (3, H, W), normalised
 * @param {readonly string[]} rows of the mask
 * @param {import('./arithmetic.js').Units} units
 * @param {number} seed of the noise
 * @returns {{pixels: Float32Array, images: Float32Array}} (3, H, W) each: in 0 to 1, and normalised
 */
export function scramble(images, rows, { mean, std, patch_size: side }, seed) {
  const removed = finer(rows, side);
  const generator = new Mersenne(seed);
  const pixels = clamped(denormalise(images, mean, std));
  const scrambled = images.slice();
  for (let i = 0; i < pixels.length; ++i) {
    const noise = generator.float();
    if (!removed[i % removed.length]) continue;
    const channel = Math.floor(i / removed.length);
    pixels[i] = noise;
    scrambled[i] = fround(noise - fround(mean[channel])) / fround(std[channel]);
  }
  return { pixels, images: scrambled };
}

/**
 * Two predictions, compared without tolerance.
 * @param {import('./reconstruction.js').Reconstruction} before
 * @param {import('./reconstruction.js').Reconstruction} after
 */
export function comparison(before, after) {
  let [changed, largest] = [0, 0];
  for (let i = 0; i < before.pixels.length; ++i) {
    const change = Math.abs(fround(before.pixels[i] - after.pixels[i]));
    if (change) ++changed;
    largest = Math.max(largest, change);
  }
  return {
    before: toRaster(before.pixels, before.width), after: toRaster(after.pixels, before.width),
    same: !changed, changed_values: changed, values: before.pixels.length, largest_change: largest,
  };
}
