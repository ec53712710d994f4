// The prediction pasted into the picture at its own resolution, all in the browser: `paste_panel`.

import { removedBoxes, shownPart } from './geometry.js';

/** Why it cannot be done: `gone`, `format` or `size`. */
export class PasteError extends Error {}

/**
 * @param {import('./stage.js').View} view
 * @param {ImageBitmap} reconstruction of the view
 * @param {string} address of the picture's file
 * @param {AbortSignal} signal
 * @returns {Promise<Blob>} a PNG file
 * @throws {PasteError}
 */
export async function paste(view, reconstruction, address, signal) {
  const response = await fetch(address, { signal });
  if (!response.ok) throw new PasteError('gone');
  const file = await response.blob();
  // It is turned upright by this.
  const picture = await createImageBitmap(file).catch(() => { throw new PasteError('format'); });
  const { width, height } = picture;
  const canvas = blank(width, height);
  const context = canvas?.getContext('2d');
  if (!canvas || !context) throw new PasteError('size');
  context.drawImage(picture, 0, 0);
  picture.close();
  const part = shownPart([width, height], view.settings.fit, reconstruction.width);
  context.beginPath();
  for (const { x, y, width: w, height: h } of removedBoxes(view.mask, part)) {
    context.rect(x, y, w, h);
  }
  // Drawn at once, so that there are no seams between removed neighbours.
  context.clip();
  context.imageSmoothingQuality = 'high';
  context.drawImage(reconstruction, part.x, part.y, part.width, part.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => blob ? resolve(blob) : reject(new PasteError('size')), 'image/png');
  });
}

/**
 * A canvas, if the browser has one of this size: of a larger one it only ignores what is drawn.
 * @param {number} width
 * @param {number} height
 */
function blank(width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  const corner = /** @type {const} */ ([width - 1, height - 1, 1, 1]);
  try {
    context?.fillRect(...corner);
    if (!context?.getImageData(...corner).data[3]) return null;
  } catch {
    return null;
  }
  context.clearRect(...corner);
  return canvas;
}
