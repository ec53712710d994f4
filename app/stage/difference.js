// How far two predictions are apart, pixel by pixel.

/** @typedef {{data: Uint8ClampedArray, width: number, height: number}} Pixels an ImageData */

/**
 * The absolute difference, averaged over the colours, where both models had to guess.
 * @param {Pixels} one
 * @param {Pixels} other of the same size
 * @param {string[][]} masks of both, rows of 0 and 1; their grids may differ
 * @returns {{values: Float32Array, mean: number, max: number, share: number}} 0 to 255, NaN where
 *   one of them saw the pixel; mean and largest of the others, and their share of all pixels
 */
export function difference(one, other, masks) {
  const { width, height } = one;
  const values = new Float32Array(width * height).fill(NaN);
  let sum = 0, max = 0, count = 0;
  for (let at = 0; at < values.length; ++at) {
    const x = at % width, y = Math.floor(at / width);
    if (!masks.every((rows) => isRemoved(rows, x / width, y / height))) continue;
    let apart = 0;
    for (let i = 4 * at; i < 4 * at + 3; ++i) apart += Math.abs(one.data[i] - other.data[i]);
    values[at] = apart / 3;
    sum += apart / 3;
    max = Math.max(max, apart / 3);
    ++count;
  }
  return { values, mean: count ? sum / count : 0, max, share: count / values.length };
}

/**
 * @param {string[]} rows of a mask
 * @param {number} x from 0 to less than 1
 * @param {number} y likewise
 */
function isRemoved(rows, x, y) {
  return rows[Math.floor(y * rows.length)][Math.floor(x * rows[0].length)] === '1';
}
