// The page without a server: its controls, its panels, and the parts of the stage.

import { element, fill } from '../app/stage/elements.js';
import { showFacts } from '../app/stage/facts.js';
import { Panels } from '../app/stage/panels.js';
import { stage } from '../app/stage/stage.js';
import { Addresses, backend, sentenceFor } from './backend-onnx.js';
import { Controls } from './controls.js';
import { Host } from './host.js';
import { keepOffline, keepRest } from './offline.js';
import { Problem } from './problem.js';
import { checkRequest } from './request.js';
import { RUNTIME } from './runtime.js';
import { Tabs } from './tabs.js';

const LANGUAGES = { en: 'English', zh: '中文' };
const LANGUAGE_KEY = 'mae.language';

const FIRST_EXAMPLE = 'cat';

/** After the first view, until what it did not use is kept too. */
const REST_MILLISECONDS = 3000;

/** Of a download, between two signs of how far it is. */
const SIGN_MILLISECONDS = 100;

class Page {
  /** Texts of the page with a server. @type {Record<string, Record<string, string>>} */
  texts = { labels: {}, sentences: {} };

  /** Of the newest answer, while it is on its way. @type {AbortController | null} */
  running = null;

  /** Of the view on show and the one before it. */
  addresses = new Addresses(4);

  /** What it is loaded for. */
  loaded = '';

  /** Something changed since it was asked for. */
  changed = false;

  /** The facts line's value, which is drawn anew in another language. @type {any} */
  facts = null;

  /** When a sign of progress was shown last. */
  signed = 0;

  /** Ends the wait for the backend. */
  begun = () => {};

  /** The backend has its models. @type {Promise<void>} */
  ready = new Promise((resolve) => { this.begun = resolve; });

  /**
   * @param {string[]} examples names
   * @param {import('./model.js').Description[]} models
   */
  constructor(examples, models) {
    this.examples = examples;
    this.controls = new Controls(byId('choose'), byId('options'), examples, models);
    this.panels = new Panels(byId('panels').querySelector('.panels'));
    this.tabs = new Tabs(byId('tabs'));
    this.opener = new Host('opener');
    this.editor = new Host('editor');
    this.lecture = new Host('lecture');
    this.#hear();
  }

  #hear() {
    const { controls } = this;
    controls.addEventListener('input', () => this.update());
    controls.addEventListener('drawn', () => {
      const { strategy, ratio, seed } = controls.values;
      stage.draw(strategy, ratio, seed);
      this.editor.set('value', null);
    });
    controls.addEventListener('picture', (event) => this.take(detailOf(event)));
    controls.addEventListener('model', (event) => this.take(detailOf(event)));
    this.editor.addEventListener('input', () => this.update());
    this.opener.addEventListener('input', () => this.open(this.opener.props.value));
    backend.addEventListener('progress', (event) => this.#progress(detailOf(event)));
    stage.addEventListener('language', () => this.speak());
    document.addEventListener('dragover', (event) => event.preventDefault());
    document.addEventListener('drop', (event) => this.#given(event, event.dataTransfer));
    document.addEventListener('paste', (event) => this.#given(event, event.clipboardData));
  }

  /** Say everything in the page's language. */
  async speak() {
    const { language } = stage;
    const response = await fetch(`locales/${language}.json`);
    const { labels, sentences, web } = await response.json();
    if (language !== stage.language) return;
    this.texts = { labels, sentences };
    backend.texts = web;
    document.title = labels.title;
    byId('title').querySelector('h1').textContent = labels.title;
    byId('tagline').querySelector('p').textContent = web.tagline;
    byId('trust').querySelector('p').replaceChildren(...rich(labels.trust));
    byId('legend').querySelector('p').replaceChildren(...rich(labels.legend));
    const focused = byId('language').contains(document.activeElement);
    byId('language').replaceChildren(...languages());
    if (focused) byId('language').querySelector('[aria-pressed=true]').focus();
    this.controls.draw(labels, web);
    this.tabs.label(labels);
    this.panels.name(labels.panels);
    if (stage.view) this.panels.show(stage.view);
    this.say(this.facts);
  }

  /** Ask for the view of the controls; of many changes the last one counts. */
  async update() {
    this.changed = true;
    if (this.running) {
      // A run ends soon; a picture or a model that has to be fetched may not.
      if (this.#loaded() !== this.loaded) this.running.abort();
      return;
    }
    byId('facts').querySelector('.html-container').classList.add('pending');
    while (this.changed) {
      this.changed = false;
      this.running = new AbortController();
      this.loaded = this.#loaded();
      await this.#ask(this.running.signal);
    }
    this.running = null;
    byId('facts').querySelector('.html-container').classList.remove('pending');
    // A preview that was lost with its worker.
    this.controls.show();
  }

  #loaded() {
    const { path, model, device } = this.controls.values;
    return JSON.stringify([path, model, device]);
  }

  /** @param {AbortSignal} signal */
  async #ask(signal) {
    await this.ready;
    const { path, example, device } = this.controls.values;
    if (device !== backend.device) backend.start(backend.models, device);
    const plan = { v: 1, kind: 'single', request: this.request() };
    try {
      for await (const part of backend.ask({ path }, plan, signal)) {
        const view = /** @type {import('../app/stage/stage.js').View} */ (
          { ...this.addresses.of(part), image: { path }, example });
        await this.panels.show(view);
        // The licence stands below the list of models.
        this.say({
          ...view.facts, licence: null, note: this.texts.sentences[`note_${view.facts.view}`],
        });
      }
    } catch (error) {
      // A model on trial took too long, which the facts line says.
      const restarted = error instanceof Problem && error.text === 'restarted';
      if (signal.aborted || restarted) return;
      await this.panels.show(null);
      this.say({ error: sentenceFor(error) });
    }
  }

  /** The request of the controls and the editor, as settings. */
  request() {
    const { ratio, seed, strategy, fit, model, view } = this.controls.values;
    const [h, w] = backend.models.find(({ name }) => name === model)?.grid ?? [1, 1];
    /** @type {string[]} */
    const rows = this.editor.props.value ?? [];
    return {
      v: 1, picture: '', fit, model, image_size: null, view,
      mask: { strategy, ratio, seed, rows: stretched(rows, h, w), drawing: '' },
    };
  }

  /**
   * Set the controls by a link, a file, the history or the lecture: see `Stage.open`.
   * @param {Record<string, any>} settings
   */
  open(settings) {
    let problem = '';
    try {
      this.#set(settings);
      this.update();
    } catch (error) {
      problem = sentenceFor(error);
    }
    this.opener.set('answer', { turn: settings.turn, problem });
  }

  /** @param {Record<string, any>} settings */
  #set({ example, image, request, tab }) {
    /** @type {Partial<import('./controls.js').Values>} */
    const values = {};
    if (example) {
      if (!this.examples.includes(example)) throw new Problem('no_example');
      Object.assign(values, { example, path: addressOfExample(example) });
    } else if (image) {
      if (!backend.has(image.path)) throw new Problem('picture_gone');
      Object.assign(values, { example: null, path: image.path });
    }
    let rows = this.editor.props.value;
    if (request) {
      const { mask, fit, model, view } = checkRequest(request, backend.models);
      const { ratio, seed, strategy } = mask;
      Object.assign(values, { ratio, seed, strategy, fit, model, view });
      rows = mask.rows.length ? mask.rows : null;
    }
    this.controls.set(values);
    this.editor.set('value', rows);
    if (tab) this.tabs.open(tab);
  }

  /**
   * Take a file of the visitor's: a picture, a model or settings.
   * @param {File} file
   */
  async take(file) {
    const ending = file.name.toLowerCase().split('.').at(-1);
    if (ending === 'onnx') {
      await this.#takeModel(file);
    } else if (ending === 'json') {
      const request = await file.text().then(JSON.parse).catch(() => null);
      const isObject = typeof request === 'object' && !Array.isArray(request);
      const problem = request && isObject ? await stage.open({ request }) : backend.texts.no_settings;
      if (problem) this.say({ error: problem });
    } else {
      this.controls.set({ example: null, path: backend.keep(file) });
      this.update();
    }
  }

  /** @param {File} file */
  async #takeModel(file) {
    await this.ready;
    const { model: before } = this.controls.values;
    this.say({ waiting: fill(backend.texts.trying, { name: file.name }), fraction: null, hint: null });
    try {
      const { name } = await backend.add(file);
      this.controls.models = backend.models;
      // Unless the visitor chose another meanwhile.
      this.controls.set(this.controls.values.model === before ? { model: name } : {});
      this.update();
    } catch (error) {
      // What is on show stays.
      this.say({ error: sentenceFor(error) });
    }
  }

  /**
   * @param {Event} event
   * @param {DataTransfer | null} data
   */
  #given(event, data) {
    const [file, ...others] = data?.files ?? [];
    if (event.type === 'drop') event.preventDefault();
    if (others.length) this.say({ error: backend.texts.one_file });
    else if (file) this.take(file);
  }

  /** @param {{done: number, total: number}} progress in bytes of what is fetched */
  #progress({ done, total }) {
    const now = performance.now();
    // What fails leaves others of its files on their way.
    if (!this.running || !total || now - this.signed < SIGN_MILLISECONDS) return;
    this.signed = now;
    const [fetched, size] = [done, total].map((bytes) => (bytes / 1e6).toFixed(1));
    const { model: name } = this.controls.values;
    this.say({
      waiting: fill(backend.texts.fetching, { name, done: fetched, size }),
      fraction: done / total, hint: null,
    });
  }

  /** @param {any} facts as `showFacts` takes them */
  say(facts) {
    this.facts = facts;
    showFacts(/** @type {HTMLElement} */ (byId('facts').querySelector('.facts')), facts,
      this.texts.labels.facts);
  }
}

/** Read what the page is made of, and draw it. */
async function begin() {
  document.documentElement.lang = firstLanguage();
  followTheme();
  const controlled = keepOffline();
  /** @type {[string[], {models: import('./model.js').Description[]}]} */
  const [examples, { models }] = /** @type {any} */ (await Promise.all(['examples.json', 'models/index.json']
    .map((address) => fetch(address).then((response) => response.json()))));
  for (const model of models) {
    model.address = new URL(`models/${model.file}`, document.baseURI).href;
  }
  const page = new Page(examples, models);
  page.controls.set({ example: FIRST_EXAMPLE, path: addressOfExample(FIRST_EXAMPLE) });
  await page.speak();
  // Then the worker is under the same policy as the page, and large files are kept.
  await controlled;
  backend.start(models, 'wasm');
  page.controls.previewOf = (path, signal) => backend.preview(path, signal);
  page.begun();
  page.update();
  await page.opener.mount();
  await page.editor.mount();
  await page.lecture.mount();
  page.tabs.open('film');
  stage.addEventListener('view', () => setTimeout(() => keepRest([
    ...examples.map(addressOfExample), ...RUNTIME, `models/${models[0].file}`,
  ]), REST_MILLISECONDS), { once: true });
  page.controls.graphics = Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
  page.controls.show();
}

/** The language of the link, of the last visit, or of the browser. */
function firstLanguage() {
  const [wanted] = [
    new URLSearchParams(location.hash.slice(1)).get('lang'), storage()?.getItem(LANGUAGE_KEY),
    ...navigator.languages,
  ].filter((language) => language && language.slice(0, 2) in LANGUAGES);
  return wanted?.startsWith('zh') ? 'zh-CN' : 'en';
}

function languages() {
  return Object.entries(LANGUAGES).map(([language, name]) => {
    const made = element('button', {
      type: 'button', lang: language, 'aria-pressed': String(stage.language === language),
    }, name);
    made.addEventListener('click', () => {
      document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
      try {
        storage()?.setItem(LANGUAGE_KEY, language);
      } catch { /* Without room for it, it lasts as long as the page. */ }
    });
    return made;
  });
}

/** What outlives a visit; it is forbidden to a page within another site's. */
function storage() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

/** The style sheets of the stage know the dark theme by a class. */
function followTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const follow = () => document.body.classList.toggle('dark', dark.matches);
  dark.addEventListener('change', follow);
  follow();
}

/**
 * A text with **bold** words and [links](https://...).
 * @param {string} text
 */
function rich(text) {
  return text.split(/([*]{2}.*?[*]{2}|\[.*?\]\(.*?\))/).map((part) => {
    const [, bold] = /^[*]{2}(.*)[*]{2}$/.exec(part) ?? [];
    const [, name, href] = /^\[(.*)\]\((.*)\)$/.exec(part) ?? [];
    if (bold) return element('strong', {}, bold);
    return href ? element('a', { href, rel: 'noreferrer' }, name) : part;
  });
}

/**
 * An own mask on a grid of (h, w), where the model has another.
 * @param {string[]} rows
 * @param {number} h
 * @param {number} w
 */
function stretched(rows, h, w) {
  if (!rows.length || (rows.length === h && rows[0].length === w)) return rows;
  return Array.from({ length: h }, (_, i) => {
    const row = rows[Math.floor(i * rows.length / h)];
    return Array.from({ length: w }, (_, j) => row[Math.floor(j * row.length / w)]).join('');
  });
}

/** @param {string} example */
function addressOfExample(example) {
  return `examples/${example}.jpg`;
}

/**
 * An element of index.html.
 * @param {string} id
 * @returns {any}
 */
function byId(id) {
  return document.getElementById(id);
}

/** @param {Event} event */
function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}

begin().catch((error) => {
  console.warn(error);
  byId('failed').hidden = false;
});
