// Pictures of a view, panels composed of them, and maps of values.

import { paintMap } from './colours.js';

/** Colour of removed patches, as `mae_core` draws them. */
const REMOVED = 'rgb(128 128 128)';

/**
 * An image, asked for twice at most.
 * @param {string} address
 * @returns {Promise<ImageBitmap>}
 * @throws {Event | DOMException} if it cannot be had
 */
export async function loadImage(address) {
  try {
    return await decoded(address);
  } catch {
    return decoded(address);
  }
}

/** @param {string} address */
async function decoded(address) {
  const image = new Image();
  await new Promise((resolve, reject) => {
    image.addEventListener('load', resolve);
    image.addEventListener('error', reject);
    image.src = address;
  });
  // Chromium keeps what an element has decoded long after the element is gone.
  return createImageBitmap(image);
}

/**
 * @param {HTMLCanvasElement} canvas takes the size of the images
 * @param {string | undefined} name of the panel: original, masked, reconstruction or pasted
 * @param {ImageBitmap[]} images original and reconstruction
 * @param {string[]} mask rows of 0 and 1, 1 = removed
 */
export function paint(canvas, name, [original, reconstruction], mask) {
  canvas.width = original.width;
  canvas.height = original.height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
  context.drawImage(name === 'reconstruction' ? reconstruction : original, 0, 0);
  if (name !== 'masked' && name !== 'pasted') return;
  const width = canvas.width / mask[0].length;
  const height = canvas.height / mask.length;
  context.fillStyle = REMOVED;
  mask.forEach((row, i) => [...row].forEach((cell, j) => {
    if (cell === '0') return;
    const place = /** @type {const} */ ([j * width, i * height, width, height]);
    if (name === 'masked') context.fillRect(...place);
    else context.drawImage(reconstruction, ...place, ...place);
  }));
}

/**
 * @param {HTMLCanvasElement} canvas takes the size of the map
 * @param {Float32Array} values row by row; NaN where there is none
 * @param {number} width of the map
 * @param {number} max the value at the light end of the scale
 */
export function paintValues(canvas, values, width, max) {
  const image = new ImageData(width, values.length / width);
  paintMap(image, values, max);
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext('2d')?.putImageData(image, 0, 0);
}

/** @param {ImageBitmap} picture */
export function pixelsOf(picture) {
  const { width, height } = picture;
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (
    new OffscreenCanvas(width, height).getContext('2d'));
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, width, height);
}
