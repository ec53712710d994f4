// PSNR and SSIM over removed pixels, as `mae_core.metrics`.
//
// Images are (3, H, W) in 0 to 1; `removed` is (H, W), 1 = removed.

/** The window of SSIM and its constants (Wang et al. 2004), for pixels in 0 to 1. */
const HALF = 5;
const SIGMA = 1.5;
const [C1, C2] = [0.01 ** 2, 0.03 ** 2];

/** Of the middle of the window, and of both pixels at each distance from it. */
const WEIGHTS = weights();

function weights() {
  const kernel = Array.from({ length: HALF + 1 }, (_, i) => Math.exp(-(i ** 2) / (2 * SIGMA ** 2)));
  const sum = 2 * kernel.reduce((total, value) => total + value) - kernel[0];
  return kernel.map((value) => value / sum);
}

/**
 * @param {Float32Array} pixels
 * @param {Float32Array} original
 * @param {Uint8Array} removed
 * @returns {number | null} in dB; null where nothing was removed, or there is no error
 */
export function removedPsnr(pixels, original, removed) {
  let [error, count] = [0, 0];
  for (let i = 0; i < pixels.length; ++i) {
    if (!removed[i % removed.length]) continue;
    error += (pixels[i] - original[i]) ** 2;
    ++count;
  }
  return error ? -10 * Math.log10(error / count) : null;
}

/**
 * Structural similarity of the pasted image, averaged over removed pixels and channels.
 * @param {Float32Array} pixels
 * @param {Float32Array} original
 * @param {Uint8Array} removed
 * @param {number} width
 * @returns {number | null} at most 1; null where nothing was removed, or a side is too short for
 *   the window
 */
export function removedSsim(pixels, original, removed, width) {
  const size = removed.length;
  const count = removed.reduce((sum, cell) => sum + cell, 0);
  if (!count || Math.min(width, size / width) <= HALF) return null;
  let sum = 0;
  for (let start = 0; start < pixels.length; start += size) {
    const x = new Float64Array(size);
    const y = new Float64Array(size);
    for (let i = 0; i < size; ++i) {
      const value = removed[i] ? pixels[start + i] : original[start + i];
      x[i] = Math.min(Math.max(value, 0), 1);
      y[i] = original[start + i];
    }
    sum += similarity(x, y, removed, width);
  }
  return sum / (3 * count);
}

/**
 * Of one channel, summed over removed pixels.
 * @param {Float64Array} x
 * @param {Float64Array} y
 * @param {Uint8Array} removed
 * @param {number} width
 */
function similarity(x, y, removed, width) {
  const [products, squares] = [new Float64Array(x.length), new Float64Array(x.length)];
  for (let i = 0; i < x.length; ++i) {
    products[i] = x[i] * y[i];
    squares[i] = x[i] * x[i] + y[i] * y[i];
  }
  const [meanX, meanY, product, square] = [x, y, products, squares].map((map) => blur(map, width));
  let sum = 0;
  for (let i = 0; i < x.length; ++i) {
    if (!removed[i]) continue;
    const both = meanX[i] * meanY[i];
    const apart = meanX[i] ** 2 + meanY[i] ** 2;
    // Both variances are needed only together.
    const luminance = (2 * both + C1) / (apart + C1);
    sum += luminance * (2 * (product[i] - both) + C2) / (square[i] - apart + C2);
  }
  return sum;
}

/**
 * Weighted means over the window at each pixel, edges mirrored.
 * @param {Float64Array} map (H, W)
 * @param {number} width
 */
function blur(map, width) {
  return alongLines(alongLines(map, width), map.length / width);
}

/**
 * Weighted means along each line of a map, which comes out transposed.
 * @param {Float64Array} map (H, W)
 * @param {number} width
 * @returns {Float64Array} (W, H)
 */
function alongLines(map, width) {
  const height = map.length / width;
  const [w0, w1, w2, w3, w4, w5] = WEIGHTS;
  const result = new Float64Array(map.length);
  const line = new Float64Array(width + 2 * HALF);
  for (let i = 0; i < height; ++i) {
    for (let j = 0; j < line.length; ++j) line[j] = map[i * width + mirrored(j - HALF, width)];
    for (let j = 0; j < width; ++j) {
      result[j * height + i] = w0 * line[j + 5] + w1 * (line[j + 4] + line[j + 6])
        + w2 * (line[j + 3] + line[j + 7]) + w3 * (line[j + 2] + line[j + 8])
        + w4 * (line[j + 1] + line[j + 9]) + w5 * (line[j] + line[j + 10]);
    }
  }
  return result;
}

/**
 * @param {number} at
 * @param {number} length
 */
function mirrored(at, length) {
  if (at < 0) return -at;
  return at < length ? at : 2 * (length - 1) - at;
}
