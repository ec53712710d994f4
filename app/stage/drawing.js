// A black-and-white picture as a mask.

/** @typedef {{data: Uint8ClampedArray, width: number, height: number}} Pixels an ImageData */

/**
 * A patch is removed if more than half of it is not black, as `mae_core.reconstruct` reads a
 * drawing. What is transparent is black.
 * @param {Pixels} picture fitted as the image is, in any size
 * @param {import('./masking.js').Grid} grid
 * @returns {string[]} h rows of w characters, 1 = removed; all may be 1
 */
export function fromPicture(picture, [h, w]) {
  return Array.from({ length: h }, (_, i) => {
    const rows = overlaps(i, h, picture.height);
    return Array.from({ length: w }, (_, j) => {
      const white = whiteShare(picture, rows, overlaps(j, w, picture.width));
      // Halves are no more than a half, whatever the rounding.
      return white > 0.5 + 1e-9 ? '1' : '0';
    }).join('');
  });
}

/**
 * The rows or columns of pixels that a patch covers.
 * @param {number} at which patch
 * @param {number} patches of that side
 * @param {number} pixels of that side
 * @returns {[pixel: number, share: number][]} with shares of the patch, which sum to 1
 */
function overlaps(at, patches, pixels) {
  const size = pixels / patches;
  const [start, stop] = [at * size, (at + 1) * size];
  /** @type {[number, number][]} */
  const found = [];
  for (let pixel = Math.floor(start); pixel < Math.min(stop, pixels); ++pixel) {
    found.push([pixel, (Math.min(pixel + 1, stop) - Math.max(pixel, start)) / size]);
  }
  return found;
}

/**
 * @param {Pixels} picture
 * @param {[number, number][]} rows
 * @param {[number, number][]} columns
 */
function whiteShare({ data, width }, rows, columns) {
  let share = 0;
  for (const [y, height] of rows) {
    for (const [x, across] of columns) {
      if (isWhite(data, 4 * (y * width + x))) share += height * across;
    }
  }
  return share;
}

/**
 * Whether a pixel's grey value on black, which is rounded, is not 0.
 * @param {Uint8ClampedArray} data
 * @param {number} at
 */
function isWhite(data, at) {
  const grey = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
  return grey * data[at + 3] / 255 >= 0.5;
}
