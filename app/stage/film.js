// Films, played and scrubbed: of the ratio, by nested masks from 95% to 5%, which can be saved as a
// file too; and of the model's training, by the snapshots of its run.

import { FILMS } from './backend.js';
import { Curve } from './curve.js';
import { button, canvas, element, fill } from './elements.js';
import { LEAST_RATIO, MOST_RATIO } from './masking.js';
import { loadImage, paint } from './painting.js';
import { Question, asking } from './question.js';
import { percent } from './scale.js';
import { stage } from './stage.js';

/**
 * @typedef {object} More
 * @property {number} of frames of the whole film
 * @property {number} [mask_ratio] in a film of the ratio, and
 * @property {{mean_colour: number | null, telea?: number | null}} [baselines] in dB
 * @property {number} [step] in a film of the training
 * @property {ImageBitmap[]} images original and reconstruction
 * @typedef {import('./stage.js').View & More} Frame
 */

const FRAMES = 19;
const SECONDS = 0.25;
/** Frames' time that the last one stays. */
const REST = 4;
const PANELS = ['masked', 'reconstruction', 'pasted'];
const RATIOS = [MOST_RATIO, 0.75, 0.5, 0.25, LEAST_RATIO];

/**
 * A film of the ratio is about all of a view but its ratio and the visitor's own mask.
 * @param {import('./stage.js').View} view
 */
const about = ({ settings: { picture, fit, model, image_size: size, view, mask } }) =>
  [picture, fit, model, size, view, mask.strategy, mask.seed];

// These survive a change of language.
const films = { film: new Question(about), training: new Question() };
/** The one on show. @type {keyof typeof films} */
let kind = 'film';
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
      (share) => this.scrub(nearest(share)));
    this.saved = element('span', { role: 'status' });
    const [first, ...others] = FILMS.map((format) => button(fill(texts.save, {
      format: format === 'webp' ? 'WebP' : 'GIF',
    }), () => this.save(format), { class: format }));
    this.files = element('div', { class: 'files' }, asking(file, host, first, ...others),
      element('p', { class: 'said' }, fill(texts.save_cost, { frames: FRAMES })), this.saved);
    this.show = element('div', { class: 'show', hidden: '' },
      element('div', { class: 'screens' }, ...this.screens.map((screen, i) =>
        element('figure', {}, element('figcaption', {}, texts[PANELS[i]]), screen))),
      element('div', { class: 'bar transport' }, this.switch, this.scrubber, this.ratio, this.use),
      this.curve.element,
      this.files);
    const start = button(texts.start, () => this.start('film'), { class: 'main' });
    const training = button(texts.training, () => this.start('training'), {
      title: texts.training_hint,
    });
    this.training = asking(films.training, host, training);
    host.element.append(element('p', {}, texts.what), asking(films.film, host, start), this.training,
      element('p', { class: 'said' }, fill(texts.cost, { frames: FRAMES })), this.own, this.show);
    for (const film of Object.values(films)) {
      film.addEventListener('change', () => this.update(), { signal });
    }
    file.addEventListener('change', () => this.offer(), { signal });
    this.update();
    this.offer();
  }

  /** The frames that are there. */
  get frames() {
    return /** @type {Frame[]} */ (films[kind].parts);
  }

  /** @param {typeof kind} wanted */
  start(wanted) {
    const plan = wanted === 'film' ? { kind: wanted, frames: FRAMES } : { kind: wanted };
    films[wanted].ask(plan, async (part) => {
      const images = await Promise.all([part.original, part.reconstruction].map(loadImage));
      // What is on show stays until there is a frame in its place.
      if (part.done === 1) this.begin(wanted);
      return { ...part, images };
    });
  }

  /** @param {typeof kind} wanted whose first frame is there */
  begin(wanted) {
    kind = wanted;
    at = this.rested = 0;
    playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
    file.parts = [];
    file.changed();
  }

  update() {
    const { frames } = this;
    const film = films[kind];
    this.training.hidden = !stage.view?.facts.snapshots;
    this.own.hidden = !stage.view?.settings.mask.rows.length;
    this.show.hidden = !frames.length;
    this.show.classList.toggle('old', film.old);
    this.host.element.querySelectorAll('.files button:not(.cancel)').forEach((save) => {
      save.toggleAttribute('disabled', film.old || Boolean(film.running) || !whole());
    });
    for (const ofRatio of [this.use, this.files]) ofRatio.hidden = kind === 'training';
    if (frames.length) this.draw();
  }

  draw() {
    const { frames, texts, scrubber } = this;
    const frame = frames[at];
    const now = this.label(frame);
    this.screens.forEach((screen, i) => paint(screen, PANELS[i], frame.images, frame.mask));
    this.ratio.textContent = now;
    scrubber.max = String((films[kind].running ? frame.of : frames.length) - 1);
    scrubber.value = String(at);
    scrubber.setAttribute('aria-valuetext', now);
    scrubber.setAttribute('aria-label', kind === 'film' ? texts.ratio : texts.steps);
    this.switch.textContent = playing ? texts.pause : texts.play;
    this.curve.draw(frames.map((each) => ({
      share: shareOf(each),
      values: [each.facts.psnr, each.baselines?.mean_colour ?? null, each.baselines?.telea ?? null],
    })), at, this.axis());
  }

  /** @param {Frame} frame */
  label({ step, mask_ratio: ratio }) {
    return ratio === undefined ? fill(this.texts.step, { step: Number(step) }) : percent(ratio);
  }

  axis() {
    if (kind === 'film') {
      const ticks = RATIOS.map((ratio) => ({
        share: (MOST_RATIO - ratio) / (MOST_RATIO - LEAST_RATIO), label: percent(ratio),
      }));
      return { title: this.texts.ratio_axis, ticks };
    }
    const ticks = this.frames.map((frame) => ({ share: shareOf(frame), label: String(frame.step) }));
    return { title: this.texts.step_axis, ticks };
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
    else if (films[kind].running || ++this.rested < REST) return;
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
  const { parts } = films[kind];
  return parts.length > 0 && parts.length === parts[0].of;
}

/**
 * Where a frame is in the chart, 0 left to 1 right; snapshots are at steps that double.
 * @param {Record<string, any>} frame
 */
function shareOf({ mask_ratio: ratio, done, of }) {
  return ratio === undefined ? (done - 1) / Math.max(of - 1, 1) : (MOST_RATIO - ratio) / (MOST_RATIO - LEAST_RATIO);
}

/**
 * Index of the frame that is nearest.
 * @param {number} share
 */
function nearest(share) {
  const distances = films[kind].parts.map((frame) => Math.abs(shareOf(frame) - share));
  return distances.indexOf(Math.min(...distances));
}
