// Pictures made smaller or larger, to the bytes of Pillow's `resize` and `reduce`.

/**
 * A picture in RGB, row by row.
 * @typedef {{width: number, height: number, data: Uint8Array}} Picture
 */

// Weights are in fixed point. A sum of their products with 8-bit values stays below 32 bits.
const BITS = 22;
const ONE = 2 ** BITS;
const HALF = ONE / 2;

/**
 * Bicubic with antialiasing: `picture.resize(size, BICUBIC).crop(box)`.
 * @param {Picture} picture
 * @param {[number, number]} size width and height of all of it afterwards
 * @param {import('../app/stage/geometry.js').Box} box part of that which is computed
 * @returns {Picture}
 */
export function resize(picture, size, box) {
  const across = weightsOf(picture.width, size[0], box.x, box.width);
  const down = weightsOf(picture.height, size[1], box.y, box.height);
  return resizeDown(resizeAcross(picture, across, down.starts[0], down.ends[box.height - 1]), down);
}

/**
 * @typedef {object} Weights of each line of an axis
 * @property {Int32Array} starts first line that counts for it
 * @property {Int32Array} ends the line after the last
 * @property {Int32Array} weights `most` for each line
 * @property {number} most lines that count
 */

/**
 * Weights of the lines `first` to `first + count` of an axis of `to` lines, made from `from` lines.
 * @param {number} from
 * @param {number} to
 * @param {number} first
 * @param {number} count
 * @returns {Weights}
 */
function weightsOf(from, to, first, count) {
  const scale = from / to;
  const stretch = Math.max(1, scale);
  const reach = 2 * stretch;
  const most = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(count);
  const ends = new Int32Array(count);
  const weights = new Int32Array(count * most);
  for (let line = 0; line < count; line += 1) {
    const middle = (first + line + 0.5) * scale;
    const start = Math.max(0, Math.trunc(middle - reach + 0.5));
    const end = Math.min(from, Math.trunc(middle + reach + 0.5));
    const shares = Array.from(
      { length: end - start }, (_, i) => cubic((i + start - middle + 0.5) * (1 / stretch)),
    );
    const sum = shares.reduce((total, share) => total + share, 0);
    shares.forEach((share, i) => {
      const fixed = share / sum * ONE;
      weights[line * most + i] = Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    });
    [starts[line], ends[line]] = [start, end];
  }
  return { starts, ends, weights, most };
}

/**
 * Keys' cubic convolution, a = -1/2.
 * @param {number} signed distance
 */
function cubic(signed) {
  const x = Math.abs(signed);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/**
 * The rows `top` to `bottom` with other columns.
 * @param {Picture} picture
 * @param {Weights} weights
 * @param {number} top
 * @param {number} bottom
 */
function resizeAcross({ width, data }, { starts, ends, weights, most }, top, bottom) {
  const out = new Uint8ClampedArray((bottom - top) * starts.length * 3);
  let at = 0;
  for (let row = top; row < bottom; row += 1) {
    for (let column = 0; column < starts.length; column += 1) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      const start = starts[column];
      for (let x = start, pixel = (row * width + x) * 3; x < ends[column]; x += 1, pixel += 3) {
        const weight = weights[column * most + x - start];
        red += weight * data[pixel];
        green += weight * data[pixel + 1];
        blue += weight * data[pixel + 2];
      }
      out[at] = red >> BITS;
      out[at + 1] = green >> BITS;
      out[at + 2] = blue >> BITS;
      at += 3;
    }
  }
  return { width: starts.length, top, data: out };
}

/**
 * Other rows.
 * @param {{width: number, top: number, data: Uint8ClampedArray}} picture its rows from `top` on
 * @param {Weights} weights
 */
function resizeDown({ width, top, data }, { starts, ends, weights, most }) {
  const length = width * 3;
  const out = new Uint8ClampedArray(starts.length * length);
  const sums = new Int32Array(length);
  for (let row = 0; row < starts.length; row += 1) {
    sums.fill(HALF);
    for (let y = starts[row]; y < ends[row]; y += 1) {
      const weight = weights[row * most + y - starts[row]];
      const from = (y - top) * length;
      for (let i = 0; i < length; i += 1) sums[i] += weight * data[from + i];
    }
    for (let i = 0; i < length; i += 1) out[row * length + i] = sums[i] >> BITS;
  }
  return { width, height: starts.length, data: new Uint8Array(out.buffer) };
}

/**
 * Boxes of `factor` x `factor` pixels averaged, those at the right and at the bottom of what is
 * left: `picture.reduce(factor)`.
 * @param {Picture} picture
 * @param {number} factor whole
 * @returns {Picture}
 */
export function reduce(picture, factor) {
  if (factor === 1) return picture;
  const { width, height, data } = picture;
  const size = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  const length = size.width * 3;
  const out = new Uint8Array(size.height * length);
  const sums = new Uint32Array(length);
  for (let row = 0; row < size.height; row += 1) {
    const bottom = Math.min(height, (row + 1) * factor);
    const rows = bottom - row * factor;
    sums.fill(0);
    for (let y = row * factor; y < bottom; y += 1) addRow(data, y * width, width, factor, sums);
    for (let column = 0; column < size.width; column += 1) {
      const pixels = rows * (Math.min(width, (column + 1) * factor) - column * factor);
      const half = Math.floor(pixels / 2);
      const part = Math.floor(2 ** 24 / pixels);
      for (let i = column * 3; i < column * 3 + 3; i += 1) {
        out[row * length + i] = (sums[i] + half) * part >>> 24;
      }
    }
  }
  return { ...size, data: out };
}

/**
 * @param {Uint8Array} data
 * @param {number} start the row's first pixel
 * @param {number} width
 * @param {number} factor
 * @param {Uint32Array} sums of each box, in RGB; added to
 */
function addRow(data, start, width, factor, sums) {
  let pixel = start * 3;
  for (let left = 0, box = 0; left < width; left += factor, box += 3) {
    for (let right = Math.min(width, left + factor), x = left; x < right; x += 1, pixel += 3) {
      sums[box] += data[pixel];
      sums[box + 1] += data[pixel + 1];
      sums[box + 2] += data[pixel + 2];
    }
  }
}
