// What a visitor chooses: picture, mask, fit, model. The page has one set of these values.

import { button, element, list, options } from '../app/stage/elements.js';
import { LEAST_RATIO, MOST_RATIO, STRATEGIES } from '../app/stage/masking.js';
import { FITS, VIEWS } from './request.js';

/**
 * @typedef {object} Values
 * @property {string} path of the picture
 * @property {string | null} example name of the picture, if it is one
 * @property {number} ratio
 * @property {number} seed
 * @property {import('../app/stage/masking.js').Strategy} strategy
 * @property {'crop' | 'squash'} fit
 * @property {string} model
 * @property {string} view
 * @property {'wasm' | 'webgpu'} device
 */

const RATIO_STEP = 0.01;
const LAST_SEED = 9999;
const DEVICES = ['wasm', 'webgpu'];

/**
 * Events: `input` when the visitor changed a value, `drawn` when it was one of the mask, `picture`
 * and `model` when a file was given, as the event's detail.
 */
export class Controls extends EventTarget {
  /** @type {Values} */
  values = {
    path: '', example: null, ratio: 0.75, seed: 2, strategy: 'random', fit: 'crop', model: '',
    view: 'estimated', device: 'wasm',
  };

  /** Whether there is a graphics card that a page may use. */
  graphics = false;

  /** @type {(() => void)[]} bring an element up to the values */
  #shown = [];

  /** The whole picture; it stays when the controls are drawn in another language. */
  #preview = /** @type {HTMLCanvasElement} */ (
    element('canvas', { 'aria-hidden': 'true', hidden: '' }));

  /** Path of what is shown there, or will be. */
  #previewed = '';

  #previewing = new AbortController();

  /**
   * @param {HTMLElement} choose
   * @param {HTMLElement} options
   * @param {string[]} examples names
   * @param {import('./model.js').Description[]} models
   */
  constructor(choose, options, examples, models) {
    super();
    this.choose = choose;
    this.options = options;
    this.examples = examples;
    this.models = models;
    this.values.model = models[0].name;
  }

  /**
   * Draw the controls, anew in another language.
   * @param {Record<string, string>} labels
   * @param {Record<string, string>} texts of the section `web`
   */
  draw(labels, texts) {
    this.labels = labels;
    this.texts = texts;
    this.#shown = [];
    const ratio = this.#slider('ratio', 'mask-ratio', labels.mask_ratio, labels.mask_ratio_hint,
      { min: LEAST_RATIO, max: MOST_RATIO, step: RATIO_STEP });
    const seed = this.#slider('seed', 'seed', labels.seed, labels.seed_hint,
      { min: 0, max: LAST_SEED, step: 1 });
    const dice = button('', () => {
      this.#drawn('seed', Math.floor(Math.random() * (LAST_SEED + 1)));
    }, { id: 'dice', 'aria-label': labels.dice, title: labels.dice });
    this.choose.replaceChildren(this.#picture(), this.#examples(),
      element('div', { class: 'form' }, ratio), element('div', { id: 'seed-row' }, seed, dice));
    const strategies = STRATEGIES.map((name) => [name, labels[`strategy_${name}`]]);
    const fits = FITS.map((name) => [name, labels[`fit_${name}`]]);
    const views = VIEWS.map((name) => [name, labels[`view_${name}`]]);
    this.options.replaceChildren(
      this.#radio('strategy', labels.strategy, strategies, (name) => this.#drawn('strategy', name)),
      this.#radio('fit', labels.fit, fits, (name) => this.#change({ fit: name })),
      this.#model(),
      this.#radio('view', labels.view, views, (name) => this.#change({ view: name })),
      this.#radio('device', texts.device, DEVICES.map((name) => [name, texts[`device_${name}`]]),
        (name) => this.#change({ device: name })));
    this.show();
  }

  /**
   * Take values that the visitor did not change by hand.
   * @param {Partial<Values>} values
   */
  set(values) {
    Object.assign(this.values, values);
    this.show();
  }

  /** Bring every element up to the values. */
  show() {
    for (const show of this.#shown) show();
  }

  /** @param {Partial<Values>} values */
  #change(values) {
    this.set(values);
    this.dispatchEvent(new Event('input'));
  }

  /**
   * @param {'ratio' | 'seed' | 'strategy'} name
   * @param {number | string} value
   */
  #drawn(name, value) {
    this.set({ [name]: value });
    this.dispatchEvent(new Event('drawn'));
    this.dispatchEvent(new Event('input'));
  }

  #picture() {
    const { labels = {}, texts = {} } = this;
    const input = file('image/*', (given) => this.#give('picture', given));
    const choose = button(texts.choose_picture, () => input.click(), { class: 'drop' });
    choose.prepend(this.#preview);
    this.#shown.push(() => this.#showPreview());
    return element('div', { id: 'picture', role: 'group', 'aria-label': labels.picture }, choose, input);
  }

  /**
   * A picture, small; the page sets it once there is a worker.
   * @type {(path: string, signal: AbortSignal) => Promise<ImageData>}
   */
  previewOf = () => Promise.reject(new Error('no worker yet'));

  async #showPreview() {
    const { path } = this.values;
    if (path === this.#previewed) return;
    this.#previewed = path;
    this.#previewing.abort();
    this.#previewing = new AbortController();
    const { signal } = this.#previewing;
    // If there is none, the facts line says why.
    const image = await this.previewOf(path, signal).catch(() => null);
    if (signal.aborted) return;
    this.#preview.hidden = !image;
    if (image) {
      Object.assign(this.#preview, { width: image.width, height: image.height });
      this.#preview.getContext('2d')?.putImageData(image, 0, 0);
    } else {
      // Asked again when something is shown: the worker may have been started anew meanwhile.
      this.#previewed = '';
    }
  }

  #examples() {
    const { labels = {} } = this;
    const buttons = this.examples.map((name, i) => {
      const made = button('', () => {
        this.#change({ example: name, path: `examples/${name}.jpg` });
      }, { 'data-name': name, 'aria-label': `${labels.examples} ${i + 1}` });
      made.append(element('img', { alt: '', src: `thumbnails/${name}.jpg`, width: '144', height: '144' }));
      this.#shown.push(() => {
        made.setAttribute('aria-pressed', String(this.values.example === name));
      });
      return made;
    });
    return element('div', { id: 'examples', role: 'group', 'aria-label': labels.examples },
      element('div', { class: 'html-container' }, element('div', {}, ...buttons)));
  }

  /**
   * @param {'ratio' | 'seed'} name
   * @param {string} id
   * @param {string} label
   * @param {string} hint
   * @param {{min: number, max: number, step: number}} range
   */
  #slider(name, id, label, hint, { min, max, step }) {
    const range = { min: String(min), max: String(max), step: String(step) };
    const slider = /** @type {HTMLInputElement} */ (element('input', {
      type: 'range', 'aria-label': label, ...range,
    }));
    // A seed beyond the slider's may be typed, or come by a link.
    const number = /** @type {HTMLInputElement} */ (element('input', {
      type: 'number', 'aria-label': label, ...range,
      max: name === 'seed' ? String(Number.MAX_SAFE_INTEGER) : range.max,
    }));
    slider.addEventListener('input', () => this.#drawn(name, Number(slider.value)));
    number.addEventListener('input', () => {
      if (number.value !== '' && number.validity.valid) this.#drawn(name, Number(number.value));
    });
    number.addEventListener('change', () => this.show());
    this.#shown.push(() => {
      const value = String(this.values[name]);
      slider.value = value;
      // What is being typed is left alone.
      if (Number(number.value) !== this.values[name] || number.value === '') number.value = value;
    });
    return element('div', { id, class: 'slider' },
      element('div', { class: 'head' }, element('strong', {}, label), number), slider,
      element('span', { class: 'info-text' }, hint));
  }

  /**
   * @param {'strategy' | 'fit' | 'view' | 'device'} name
   * @param {string} label
   * @param {string[][]} choices value and text
   * @param {(value: any) => void} does
   */
  #radio(name, label, choices, does) {
    const made = choices.map(([value, text]) => {
      const input = /** @type {HTMLInputElement} */ (element('input', { type: 'radio', name, value }));
      input.addEventListener('change', () => does(value));
      this.#shown.push(() => { input.checked = this.values[name] === value; });
      return element('label', {}, input, element('span', {}, text));
    });
    const group = element('fieldset', { id: name, class: 'radio' }, element('legend', {}, label),
      element('div', { class: 'wrap' }, ...made));
    // Where there is no choice.
    if (name === 'device') this.#shown.push(() => { group.hidden = !this.graphics; });
    if (name === 'view') {
      this.#shown.push(() => {
        group.hidden = this.models.find((model) => model.name === this.values.model)?.target !== 'norm_pix';
      });
    }
    return group;
  }

  #model() {
    const { labels = {}, texts = {} } = this;
    const select = list(labels.model, []);
    select.addEventListener('change', () => this.#change({ model: select.value }));
    /** @type {import('./model.js').Description[]} */
    let listed = [];
    this.#shown.push(() => {
      if (listed !== this.models) {
        listed = this.models;
        select.replaceChildren(...options(listed.map(({ name, bytes = 0 }) =>
          [name, `${name} · ${(bytes / 1e6).toFixed(1)} MB`])));
      }
      select.value = this.values.model;
    });
    const input = file('.onnx', (given) => this.#give('model', given));
    const licence = element('small');
    this.#shown.push(() => {
      licence.textContent = this.models.find(({ name }) => name === select.value)?.licence ?? '';
    });
    return element('div', { id: 'model' }, element('strong', {}, labels.model), select,
      button(texts.open_model, () => input.click(), { title: texts.open_model_hint }), input,
      licence);
  }

  /**
   * @param {'picture' | 'model'} what
   * @param {File} given
   */
  #give(what, given) {
    this.dispatchEvent(new CustomEvent(what, { detail: given }));
  }
}

/**
 * A choice of a file, which has no looks of its own.
 * @param {string} accept
 * @param {(given: File) => void} does
 */
function file(accept, does) {
  const input = /** @type {HTMLInputElement} */ (element('input', {
    type: 'file', accept, hidden: '',
  }));
  input.addEventListener('change', () => {
    const [given] = input.files ?? [];
    input.value = '';
    if (given) does(given);
  });
  return input;
}
