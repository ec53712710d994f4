// The four panels. Original and reconstruction are fetched; masked and pasted are composed here.

import { stage } from './stage.js';

/** Colour of removed patches, as `mae_core` draws them. */
const REMOVED = 'rgb(128 128 128)';

/** @typedef {import('./stage.js').View} View */

/**
 * Original and reconstruction, of one size.
 * @typedef {[HTMLImageElement, HTMLImageElement | ImageBitmap]} Images
 */

export class Panels {
  /** @param {HTMLElement} element holds a `figure` with a `canvas` for each panel */
  constructor(element) {
    this.element = element;
    this.shown = 0;
    /** @type {HTMLElement[]} what cannot be reached while a panel is large */
    this.behind = [];
    element.addEventListener('click', (event) => {
      const button = /** @type {Element} */ (event.target).closest('figure button');
      if (button) this.press(button);
    });
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.shrink();
    });
    stage.addEventListener('preview', () => {
      const masked = element.querySelector('#panel-masked canvas');
      if (stage.images.length && masked instanceof HTMLCanvasElement) {
        paint(masked, 'masked', /** @type {Images} */ (stage.images), maskOf('masked'));
      }
    });
  }

  /**
   * Show a view, unless a newer one comes while its images are fetched.
   * @param {View | null} view null empties the panels
   */
  async show(view) {
    const turn = ++this.shown;
    const images = view ? await load(view) : null;
    if (turn !== this.shown) return;
    stage.show(images && view, images ?? []);
    for (const figure of this.element.querySelectorAll('figure')) {
      figure.classList.toggle('empty', !images);
      if (!images) canvasOf(figure).width = canvasOf(figure).height = 0;
    }
    if (images) paintAll(this.element, images);
    const alert = /** @type {HTMLElement} */ (this.element.querySelector('[role=alert]'));
    alert.hidden = !view || Boolean(images);
    this.element.dataset.view = images ? JSON.stringify(view) : '';
  }

  /** @param {Element} button */
  press(button) {
    const figure = /** @type {HTMLElement} */ (button.closest('figure'));
    if (button.className === 'download') save(figure);
    else if (figure.classList.contains('large')) this.shrink();
    else this.enlarge(figure);
  }

  /**
   * Show a panel over the whole page, of which nothing else can be reached meanwhile.
   * @param {HTMLElement} figure
   */
  enlarge(figure) {
    figure.classList.add('large');
    let at = figure;
    while (at.parentElement && at !== document.body) {
      const { parentElement } = at;
      for (const other of parentElement.children) {
        if (!(other instanceof HTMLElement) || other === at || other.inert) continue;
        other.inert = true;
        this.behind.push(other);
      }
      at = parentElement;
    }
  }

  shrink() {
    this.element.querySelector('figure.large')?.classList.remove('large');
    for (const other of this.behind.splice(0)) other.inert = false;
  }
}

/**
 * The mask that a panel shows: the newest, but pasted pixels go with their own.
 * @param {string | undefined} name
 */
function maskOf(name) {
  return name === 'masked' ? stage.mask : stage.view?.mask ?? [];
}

/**
 * The two images of a view, asked for twice at most; null if they cannot be had.
 * @param {View} view
 */
async function load(view) {
  for (let attempt = 0; attempt < 2; ++attempt) {
    try {
      return await Promise.all([fetched(view.original), fetched(view.reconstruction)]);
    } catch { /* Tried again. */ }
  }
  return null;
}

/**
 * @param {string} address
 * @throws {DOMException} if there is no image
 */
export async function fetched(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

/**
 * @param {HTMLElement} figure
 * @returns {HTMLCanvasElement}
 */
function canvasOf(figure) {
  return /** @type {HTMLCanvasElement} */ (figure.querySelector('canvas'));
}

/**
 * Paint a picture into all panels, or what they show again.
 * @param {ParentNode} element holds them
 * @param {Images} images
 * @param {string[]} [mask] the same for all of them; what they show if not given
 */
export function paintAll(element, images, mask) {
  for (const figure of /** @type {NodeListOf<HTMLElement>} */ (element.querySelectorAll('figure'))) {
    const { name } = figure.dataset;
    paint(canvasOf(figure), name, images, mask ?? maskOf(name));
  }
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {string | undefined} name of the panel
 * @param {Images} images
 * @param {string[]} mask
 */
function paint(canvas, name, [original, reconstruction], mask) {
  canvas.width = original.naturalWidth;
  canvas.height = original.naturalHeight;
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
 * Save a panel as a PNG file.
 * @param {HTMLElement} figure
 */
function save(figure) {
  canvasOf(figure).toBlob((blob) => {
    if (!blob) return;
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = `${figure.dataset.name}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  }, 'image/png');
}
