// A short film of mask ratios, shown once before the first view. It is painted over the panels and
// changes nothing else: the mask, the view and the controls are those of the first view throughout.

import { drawMask } from './masking.js';
import { loadImage, paint } from './painting.js';
import { stage } from './stage.js';

/** @typedef {{ratios: number[], frames: string[], before: string}} Film see `app/page/build.py` */

const MILLISECONDS = 3000;

// Whatever the visitor does ends the film.
const TOUCHES = ['pointerdown', 'keydown', 'wheel', 'input', 'change', 'visibilitychange'];

/** @param {import('./stage.js').Host} host */
export async function mount({ props, signal }) {
  const film = /** @type {Film | null} */ (props.value);
  if (!film || !isFirst()) return;
  const ended = new AbortController();
  const end = () => ended.abort();
  signal.addEventListener('abort', end);
  for (const touch of TOUCHES) {
    document.addEventListener(touch, end, { signal: ended.signal, capture: true });
  }
  const frames = await Promise.all(film.frames.map(loadImage)).catch(() => []);
  await firstView(ended.signal);
  if (ended.signal.aborted || !frames.length || stage.view?.reconstruction !== film.before) return;
  for (const change of ['view', 'preview']) {
    stage.addEventListener(change, end, { signal: ended.signal });
  }
  sessionStorage.setItem('opened', '1');
  await play(film.ratios, frames, ended.signal);
  end();
}

/** Whether this is the beginning of a visit that nothing else was asked of. */
function isFirst() {
  if (location.hash || document.hidden) return false;
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) return false;
  try {
    return !sessionStorage.getItem('opened');
  } catch {
    // Forbidden to a page within another site's.
    return false;
  }
}

/**
 * Wait until there is a view.
 * @param {AbortSignal} signal ends the waiting
 */
async function firstView(signal) {
  if (stage.view || signal.aborted) return;
  await new Promise((resolve) => {
    stage.addEventListener('view', resolve, { once: true });
    signal.addEventListener('abort', resolve);
  });
}

/**
 * Show the frames, and at the end, however it comes, the true view.
 * @param {number[]} ratios
 * @param {ImageBitmap[]} frames
 * @param {AbortSignal} signal ends it
 */
async function play(ratios, frames, signal) {
  const panels = /** @type {HTMLElement} */ (document.querySelector('#panels'));
  const { mask, settings } = /** @type {import('./stage.js').View} */ (stage.view);
  const [original] = stage.images;
  signal.addEventListener('abort', () => {
    panels.classList.remove('film');
    if (stage.view) paintAll(panels, stage.images, stage.view.mask, stage.mask);
  }, { once: true });
  panels.classList.add('film');
  for (const [i, frame] of frames.entries()) {
    const { strategy, seed } = settings.mask;
    const { rows } = drawMask(strategy, [mask.length, mask[0].length], ratios[i], seed);
    paintAll(panels, [original, frame], rows);
    await new Promise((resolve) => { setTimeout(resolve, MILLISECONDS / frames.length); });
    if (signal.aborted) return;
  }
}

/**
 * @param {HTMLElement} panels
 * @param {ImageBitmap[]} images original and reconstruction
 * @param {string[]} mask
 * @param {string[]} masked mask of the panel of this name, where it is ahead
 */
function paintAll(panels, images, mask, masked = mask) {
  for (const figure of /** @type {NodeListOf<HTMLElement>} */ (panels.querySelectorAll('figure'))) {
    const canvas = /** @type {HTMLCanvasElement} */ (figure.querySelector('canvas'));
    const { name } = figure.dataset;
    paint(canvas, name, images, name === 'masked' ? masked : mask);
  }
}
