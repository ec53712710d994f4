// The four panels. Original and reconstruction are fetched; masked and pasted are composed here.

import { loadImage, paint } from './painting.js';
import { save } from './saving.js';
import { stage } from './stage.js';

/** @typedef {import('./stage.js').View} View */

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
        paint(masked, 'masked', stage.images, maskOf('masked'));
      }
    });
  }

  /**
   * Show a view, unless a newer one comes while its images are fetched.
   * @param {View | null} view null empties the panels
   */
  async show(view) {
    const turn = ++this.shown;
    const addresses = view ? [view.original, view.reconstruction] : [];
    const images = await Promise.all(addresses.map(loadImage)).catch(() => []);
    if (turn !== this.shown) return;
    const shown = images.length > 0;
    stage.show(shown ? view : null, images);
    for (const figure of this.element.querySelectorAll('figure')) {
      figure.classList.toggle('empty', !shown);
      const canvas = canvasOf(figure);
      if (shown) paint(canvas, figure.dataset.name, images, maskOf(figure.dataset.name));
      else canvas.width = canvas.height = 0;
    }
    const alert = /** @type {HTMLElement} */ (this.element.querySelector('[role=alert]'));
    alert.hidden = !view || shown;
    this.element.dataset.view = shown ? JSON.stringify(view) : '';
  }

  /** @param {Element} button */
  press(button) {
    const figure = /** @type {HTMLElement} */ (button.closest('figure'));
    if (button.className === 'download') saveAsPng(figure);
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
 * @param {HTMLElement} figure
 * @returns {HTMLCanvasElement}
 */
function canvasOf(figure) {
  return /** @type {HTMLCanvasElement} */ (figure.querySelector('canvas'));
}

/** @param {HTMLElement} figure */
function saveAsPng(figure) {
  canvasOf(figure).toBlob((blob) => {
    if (blob) save(blob, `${figure.dataset.name}.png`);
  }, 'image/png');
}
