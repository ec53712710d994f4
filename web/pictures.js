// Picture files as a person sees them, cut and scaled for the model, to the bytes of `mae_core`
// where the browser decodes as Pillow does: docs/browser.md says where it does not.

import { cropped, fittedSize } from '../app/stage/geometry.js';
import { readHeader, takeOrientation } from './formats.js';
import { Problem } from './problem.js';
import { reduce, resize } from './resize.js';

/** @typedef {import('./resize.js').Picture} Picture */

/** What a picture may measure: `ImageLimits`. */
export const LIMITS = {
  maxBytes: 20 * 2 ** 20,
  maxPixels: 50_000_000,
  // Of files other than JPEG.
  maxWholePixels: 2 ** 25,
  keepPixels: 4_194_304,
  minSide: 16,
  maxAspect: 20,
};

// Pixels that are read back at a time.
const STRIP_PIXELS = 2 ** 20;

/**
 * The picture in a file, upright, on white, of at most `keepPixels` pixels; of an animation the
 * first.
 * @param {Blob} blob
 * @returns {Promise<Picture>}
 * @throws {Problem} `picture_…`
 */
export async function openPicture(blob) {
  if (blob.size > LIMITS.maxBytes) {
    const allowed = LIMITS.maxBytes / 2 ** 20;
    throw new Problem('picture_bytes', { given: Math.ceil(blob.size / 2 ** 20), allowed });
  }
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const header = readHeader(bytes);
  checkSize(header, header.format);
  const orientation = takeOrientation(bytes, header);
  const bitmap = await decoded(bytes, header);
  try {
    // It may be another than the header said.
    checkSize(bitmap, header.format);
    return turned(readBack(bitmap, factorOf(bitmap, header.format)), orientation);
  } finally {
    bitmap.close();
  }
}

/**
 * @param {{width: number, height: number}} size
 * @param {string} format
 */
function checkSize({ width, height }, format) {
  const most = format === 'JPEG' ? LIMITS.maxPixels : LIMITS.maxWholePixels;
  const given = { width, height };
  if (width * height > most) {
    throw new Problem('picture_pixels', { ...given, allowed: Math.floor(most / 1e5) / 10 });
  }
  if (Math.min(width, height) < LIMITS.minSide) {
    throw new Problem('picture_small', { ...given, allowed: LIMITS.minSide });
  }
  if (Math.max(width, height) > LIMITS.maxAspect * Math.min(width, height)) {
    throw new Problem('picture_long', { ...given, allowed: LIMITS.maxAspect });
  }
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {import('./formats.js').Header} header
 */
async function decoded(bytes, { format, profile }) {
  try {
    return await createImageBitmap(new Blob([bytes], { type: `image/${format.toLowerCase()}` }), {
      // Else colours are rounded twice.
      premultiplyAlpha: 'none',
      // Of what tells a file's colours, Python knows profiles alone.
      colorSpaceConversion: profile ? 'default' : 'none',
    });
  } catch {
    throw new Problem('picture_damaged');
  }
}

/**
 * The whole factor that a picture is reduced by, in Python by libjpeg first, then by Pillow.
 * @param {{width: number, height: number}} size
 * @param {string} format
 */
function factorOf({ width, height }, format) {
  const needed = (/** @type {number} */ of) => {
    let factor = 1;
    const side = (/** @type {number} */ length) => Math.ceil(Math.ceil(length / of) / factor);
    while (side(width) * side(height) > LIMITS.keepPixels) factor += 1;
    return factor;
  };
  const factor = needed(1);
  const first = format === 'JPEG' ? [8, 4, 2, 1].find((scale) => scale <= factor) ?? 1 : 1;
  return first * needed(first);
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} factor that it is reduced by
 * @returns {Picture}
 */
function readBack(bitmap, factor) {
  const { width, height } = bitmap;
  const size = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  const data = new Uint8Array(size.width * size.height * 3);
  const rows = factor * Math.max(1, Math.floor(STRIP_PIXELS / width / factor));
  const canvas = new OffscreenCanvas(width, Math.min(height, rows));
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (
    canvas.getContext('2d', { willReadFrequently: true }));
  context.fillStyle = '#fff';
  for (let top = 0; top < height; top += rows) {
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, width, Math.min(rows, height - top));
    const { data: part } = reduce({ width, height: strip.height, data: rgb(strip.data) }, factor);
    data.set(part, top / factor * size.width * 3);
  }
  return { ...size, data };
}

/** @param {Uint8ClampedArray} rgba */
function rgb(rgba) {
  const data = new Uint8Array(rgba.length / 4 * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return data;
}

/**
 * A picture as it is seen, by its EXIF orientation of 1 to 8.
 * @param {Picture} picture
 * @param {number} orientation
 * @returns {Picture}
 */
function turned(picture, orientation) {
  if (orientation === 1) return picture;
  const lies = orientation >= 5;
  const [width, height] = lies
    ? [picture.height, picture.width] : [picture.width, picture.height];
  const right = [2, 3, 6, 7].includes(orientation);
  const bottom = [3, 4, 7, 8].includes(orientation);
  const data = new Uint8Array(picture.data.length);
  for (let y = 0, to = 0; y < height; y += 1) {
    const row = bottom ? height - 1 - y : y;
    for (let x = 0; x < width; x += 1, to += 3) {
      const column = right ? width - 1 - x : x;
      const from = (lies ? column * picture.width + row : row * picture.width + column) * 3;
      data[to] = picture.data[from];
      data[to + 1] = picture.data[from + 1];
      data[to + 2] = picture.data[from + 2];
    }
  }
  return { width, height, data };
}

/**
 * A picture as whole patches: `fit_image`.
 * @param {Picture} picture
 * @param {string} fit `crop`, `squash` or `whole`
 * @param {number} imageSize a multiple of `patchSize`
 * @param {number} patchSize
 * @returns {Picture}
 */
export function fitPicture(picture, fit, imageSize, patchSize) {
  /** @type {[number, number]} */
  const size = [picture.width, picture.height];
  if (fit === 'crop') {
    const { scaled, box } = cropped(size, imageSize);
    return resize(picture, scaled, box);
  }
  const [width, height] = fittedSize(size, fit, imageSize, patchSize);
  return resize(picture, [width, height], { x: 0, y: 0, width, height });
}
