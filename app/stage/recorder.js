// Writes down what was looked at, from the opening of the page on.

import { paint } from './painting.js';
import { stage } from './stage.js';
import { Visits } from './visits.js';

// A slider that is drawn passes many views; those that stay for so long were looked at.
const STAY_MILLISECONDS = 1500;
// Of a thumbnail, which shows two panels side by side.
const HEIGHT = 96;

export const visits = new Visits(storage());

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

stage.addEventListener('preview', () => clearTimeout(timer));
visits.addEventListener('change', () => {
  // A history that was cleared stays clear until the visitor goes on.
  if (!visits.all.length) clearTimeout(timer);
});
stage.addEventListener('view', watch);
// The first view may be there before this module is.
watch();

/** Of the browser's tab; it is forbidden to a page within another site's. */
function storage() {
  try {
    return sessionStorage;
  } catch {
    return { getItem: () => null, setItem() {} };
  }
}

/** Record the view on show, if it stays. */
function watch() {
  clearTimeout(timer);
  const { view, images } = stage;
  if (!view) return;
  timer = setTimeout(() => {
    visits.add({
      request: view.settings, example: view.example, image: view.image,
      thumbnail: thumbnail(images, view.mask), time: Date.now(),
    });
  }, STAY_MILLISECONDS);
}

/**
 * Masked and reconstruction, small.
 * @param {ImageBitmap[]} images
 * @param {string[]} mask
 */
function thumbnail(images, mask) {
  const width = Math.round(HEIGHT * images[0].width / images[0].height);
  const [whole, small] = ['', ''].map(() => document.createElement('canvas'));
  small.width = 2 * width;
  small.height = HEIGHT;
  const context = /** @type {CanvasRenderingContext2D} */ (small.getContext('2d'));
  context.imageSmoothingQuality = 'high';
  ['masked', 'reconstruction'].forEach((name, i) => {
    paint(whole, name, images, mask);
    context.drawImage(whole, i * width, 0, width, HEIGHT);
  });
  return small.toDataURL('image/jpeg', 0.8);
}
