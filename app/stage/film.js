// The film of the ratio: nested masks from 95 to 5 %, played, scrubbed, and saved as a file.

import { Curve } from './curve.js';
import { button, canvas, element, fill } from './elements.js';
import { loadImage, paint } from './painting.js';
import { Question, asking } from './question.js';
import { percent } from './scale.js';
import { stage } from './stage.js';

/**
 * @typedef {object} More
 * @property {number} of frames of the whole film
 * @property {number} mask_ratio
 * @property {{mean_colour: number | null, telea?: number | null}} baselines in dB
 * @property {HTMLImageElement[]} images original and reconstruction
 * @typedef {import('./stage.js').View & More} Frame
 */

const FRAMES = 19;
const SECONDS = 0.25;
/** Frames' time that the last one stays. */
const REST = 4;
const FORMATS = ['webp', 'gif'];
const PANELS = ['masked', 'reconstruction', 'pasted'];

/**
 * A film is about all of a view but its ratio and the visitor's own mask.
 * @param {import('./stage.js').View} view
 */
const about = ({ settings: { picture, fit, model, image_size: size, view, mask } }) =>
  [picture, fit, model, size, view, mask.strategy, mask.seed];

// These survive a change of language.
const film = new Question(about);
const file = new Question(about);
let at = 0;
let playing = false;

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  const player = new Player(host);
  const clock = setInterval(() => player.tick(), 1000 * SECONDS);
  host.signal.addEventListener('abort', () => clearInterval(clock));
}

class Player {
  rested = 0;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { texts, signal } = host;
    this.host = host;
    this.texts = texts;
    this.own = element('p', { class: 'said', hidden: '' }, texts.own);
    this.screens = PANELS.map((name) => canvas(texts[name]));
    this.switch = button('', () => this.play(!playing), { class: 'play' });
    this.scrubber = /** @type {HTMLInputElement} */ (element('input', {
      type: 'range', min: '0', step: '1', 'aria-label': texts.ratio,
    }));
    this.scrubber.addEventListener('input', () => this.scrub(Number(this.scrubber.value)));
    this.ratio = element('output', { class: 'ratio' });
    this.use = button(texts.use, () => this.useRatio());
    this.curve = new Curve(texts, [texts.reconstruction, texts.mean_colour, texts.telea],
      (ratio) => this.scrub(nearest(ratio)));
    this.saved = element('span', { role: 'status' });
    const [webp, gif] = FORMATS.map((format) => button(fill(texts.save, {
      format: format === 'webp' ? 'WebP' : 'GIF',
    }), () => this.save(format), { class: format }));
    this.show = element('div', { class: 'show', hidden: '' },
      element('div', { class: 'screens' }, ...this.screens.map((screen, i) =>
        element('figure', {}, element('figcaption', {}, texts[PANELS[i]]), screen))),
      element('div', { class: 'bar transport' }, this.switch, this.scrubber, this.ratio, this.use),
      this.curve.element,
      element('div', { class: 'files' }, asking(file, host, webp, gif), this.saved));
    const start = button(texts.start, () => this.start(), { class: 'main' });
    host.element.append(element('p', {}, texts.what), asking(film, host, start),
      element('p', { class: 'said' }, fill(texts.cost, { frames: FRAMES })), this.own, this.show);
    film.addEventListener('change', () => this.update(), { signal });
    file.addEventListener('change', () => this.offer(), { signal });
    this.update();
    this.offer();
  }

  /** The frames that are there. */
  get frames() {
    return /** @type {Frame[]} */ (film.parts);
  }

  start() {
    at = 0;
    film.parts = [];
    file.parts = [];
    file.changed();
    this.play(!matchMedia('(prefers-reduced-motion: reduce)').matches);
    film.ask({ kind: 'film', frames: FRAMES }, async (part) => ({
      ...part, images: await Promise.all([part.original, part.reconstruction].map(loadImage)),
    }));
  }

  update() {
    const { frames } = this;
    this.own.hidden = !stage.view?.settings.mask.rows.length;
    this.show.hidden = !frames.length;
    this.show.classList.toggle('old', film.old);
    this.host.element.querySelectorAll('.files button').forEach((save) => {
      save.toggleAttribute('disabled', film.old || Boolean(film.running) || !whole());
    });
    if (frames.length) this.draw();
  }

  draw() {
    const { frames, texts, scrubber } = this;
    const frame = frames[at];
    const ratio = percent(frame.mask_ratio);
    this.screens.forEach((screen, i) => paint(screen, PANELS[i], frame.images, frame.mask));
    this.ratio.textContent = ratio;
    scrubber.max = String((film.running ? frame.of : frames.length) - 1);
    scrubber.value = String(at);
    scrubber.setAttribute('aria-valuetext', ratio);
    this.switch.textContent = playing ? texts.pause : texts.play;
    this.curve.draw(frames.map(({ mask_ratio: each, facts, baselines }) => ({
      ratio: each, values: [facts.psnr, baselines.mean_colour, baselines.telea ?? null],
    })), at);
  }

  /** @param {boolean} on */
  play(on) {
    playing = on;
    this.rested = 0;
    if (this.frames.length) this.draw();
  }

  tick() {
    if (!playing || !this.frames.length || !this.host.element.checkVisibility()) return;
    if (at < this.frames.length - 1) at += 1;
    else if (film.running || ++this.rested < REST) return;
    else at = this.rested = 0;
    this.draw();
  }

  /** @param {number} to index of a frame, which may not be there yet */
  scrub(to) {
    at = Math.min(to, this.frames.length - 1);
    this.play(false);
  }

  useRatio() {
    const settings = stage.view?.settings;
    if (!settings) return;
    const mask = { ...settings.mask, ratio: this.frames[at].mask_ratio, rows: [] };
    stage.open({ request: { ...settings, mask } });
  }

  /** @param {string} format */
  async save(format) {
    const whole = await file.ask({ kind: 'film', frames: FRAMES, format });
    if (whole) this.saved.querySelector('a')?.click();
  }

  /** Offer the file that was made last. */
  offer() {
    const { file: href, name } = file.old ? {} : file.parts.at(-1) ?? {};
    this.saved.replaceChildren(...(href ? [element('a', { href, download: name }, name)] : []));
    this.update();
  }
}

/** Whether all frames are there. */
function whole() {
  return film.parts.length > 0 && film.parts.length === film.parts[0].of;
}

/**
 * Index of the frame whose ratio is nearest.
 * @param {number} ratio
 */
function nearest(ratio) {
  const distances = film.parts.map((frame) => Math.abs(frame.mask_ratio - ratio));
  return distances.indexOf(Math.min(...distances));
}
