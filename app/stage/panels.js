// The four panels. Original and reconstruction are fetched; masked and pasted are composed here.

import { button, element, svg } from './elements.js';
import { loadImage, paint } from './painting.js';
import { save } from './saving.js';
import { stage } from './stage.js';

/** @typedef {import('./stage.js').View} View */

const NAMES = ['original', 'masked', 'reconstruction', 'pasted'];

/** Drawings of the buttons, in a square of 24. */
const ICONS = {
  download: 'M12 4v11m-5-4 5 5 5-5M5 20h14',
  enlarge: 'M4 9V4h5M20 15v5h-5M4 4l6 6m10 10-6-6',
};

export class Panels {
  /** @param {HTMLElement} element is filled with a `figure` for each panel */
  constructor(element) {
    this.element = element;
    this.shown = 0;
    /** @type {HTMLElement[]} what cannot be reached while a panel is large */
    this.behind = [];
    element.addEventListener('click', (event) => {
      const pressed = /** @type {Element} */ (event.target).closest('figure button');
      if (pressed) this.press(pressed);
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
   * Name the panels, which are empty until a view is shown again.
   * @param {string} label words for download, enlarge and a failure, and the titles of the panels,
   *   joined by " · "
   */
  name(label) {
    const [download, enlarge, failed, ...titles] = label.split(' · ');
    this.element.replaceChildren(...NAMES.map((name, i) => figureOf(name, titles[i], {
      download: `${download}: ${titles[i]}`, enlarge: `${enlarge}: ${titles[i]}`,
    })), element('p', { role: 'alert', hidden: '' }, failed));
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

  /** @param {Element} pressed button of a panel */
  press(pressed) {
    const figure = /** @type {HTMLElement} */ (pressed.closest('figure'));
    if (pressed.className === 'download') saveAsPng(figure);
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
 * An empty panel.
 * @param {string} name
 * @param {string} title
 * @param {Record<keyof typeof ICONS, string>} hints of its buttons
 */
function figureOf(name, title, hints) {
  const buttons = /** @type {(keyof typeof ICONS)[]} */ (['download', 'enlarge']).map((action) => {
    const made = button('', () => {}, {
      class: action, 'aria-label': hints[action], title: hints[action],
    });
    made.append(svg('svg', { viewBox: '0 0 24 24', 'aria-hidden': 'true' },
      svg('path', { d: ICONS[action] })));
    return made;
  });
  const picture = element('div', { class: 'picture' },
    element('canvas', { role: 'img', 'aria-label': title }));
  if (name === 'masked') {
    picture.append(svg('svg', { class: 'grid', tabindex: '0', role: 'application' }));
  }
  return element('figure', { id: `panel-${name}`, 'data-name': name },
    element('figcaption', {}, title, element('span', {}, ...buttons)), picture);
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
