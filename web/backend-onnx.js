// How questions are answered without a server: by a worker of this page. It has the names of
// `app/stage/backend.js`, in whose place the build puts it.

import { fill } from '../app/stage/elements.js';
import { Problem } from './problem.js';

/** An error in words. */
export class AskError extends Error {}

/** What can be shown of where a prediction came from: attention takes the page with a server. */
export const ORIGINS = /** @type {const} */ (['influence']);

/** Files that a film can be saved as. */
export const FILMS = ['webp'];

/** Code that makes a view again, by the names of `snippets.js`. */
export const CODES = /** @type {const} */ (['python']);

/** Most pictures of the visitor's that are kept. */
const MOST_PICTURES = 16;

/** The trial of a visitor's model ends after this. */
const TRIAL_MILLISECONDS = 120_000;

/** Addresses of questions' pictures that are valid at a time; a part loads its pictures at once. */
const MOST_ADDRESSES = 256;

/** Addresses of the files in answers. An image that was loaded outlives its address. */
export class Addresses {
  /** @type {string[]} */
  #valid = [];

  /** @param {number} most that are valid at a time, the newest */
  constructor(most) {
    this.most = most;
  }

  /**
   * A part of an answer with addresses in place of files.
   * @param {any} value
   * @returns {any}
   */
  of(value) {
    if (value instanceof Blob) {
      const address = URL.createObjectURL(value);
      this.#valid.push(address);
      if (this.#valid.length > this.most) URL.revokeObjectURL(this.#valid.shift() ?? '');
      return address;
    }
    if (Array.isArray(value) || typeof value !== 'object' || !value) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, inner]) => [name, this.of(inner)]));
  }
}

const addresses = new Addresses(MOST_ADDRESSES);

/**
 * @typedef {object} Answering
 * @property {(part: Record<string, any>) => void} part
 * @property {() => void} whole
 * @property {(error: Error) => void} failed
 */

/**
 * Event: `progress`, whose detail {done, total} is how many bytes of what is fetched are there.
 */
class Backend extends EventTarget {
  /** Pictures of the visitor's, by their paths. @type {Map<string, {file: File, address: string}>} */
  #pictures = new Map();

  /** Of questions. */
  #count = 0;

  /** @type {Map<number, Answering>} */
  #answering = new Map();

  /** @type {Worker | null} */
  #worker = null;

  /** Texts of the section `web`, in the page's language. @type {Record<string, string>} */
  texts = {};

  /** Files of the visitor's own models, by their names. @type {Map<string, File>} */
  #own = new Map();

  /** What can be run, the default first. @type {import('./model.js').Description[]} */
  models = [];

  /** What runs it: `wasm` or `webgpu`. */
  device = 'wasm';

  /**
   * @param {import('./model.js').Description[]} models, the default first
   * @param {string} device
   */
  start(models, device) {
    this.models = models;
    this.device = device;
    this.#end(new Problem('restarted'));
  }

  /**
   * End the worker, and every question with it; the next question starts another.
   * @param {Problem} problem
   */
  #end(problem) {
    this.#worker?.terminate();
    this.#worker = null;
    for (const { failed } of this.#answering.values()) failed(problem);
  }

  #started() {
    const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
    worker.addEventListener('message', ({ data }) => this.#receive(data));
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      if (worker === this.#worker) this.#end(new Problem('no_worker'));
    });
    const { models, device } = this;
    worker.postMessage({ type: 'start', models, device, files: this.#own });
    return worker;
  }

  /**
   * @param {File} file
   * @returns {string} its path
   */
  keep(file) {
    // The history of a visit outlives the pictures: no other picture ever gets this path.
    const path = `pictures/${Math.random().toString(36).slice(2)}/${file.name}`;
    this.#pictures.set(path, { file, address: URL.createObjectURL(file) });
    const [[oldest, { address }]] = this.#pictures;
    if (this.#pictures.size > MOST_PICTURES) {
      this.#pictures.delete(oldest);
      URL.revokeObjectURL(address);
    }
    return path;
  }

  /** @param {string} path */
  has(path) {
    return this.#pictures.has(path) || path.startsWith('examples/');
  }

  /** @param {string} path of a picture that there is */
  address(path) {
    return this.#pictures.get(path)?.address ?? new URL(path, document.baseURI).href;
  }

  /**
   * Add a model of the visitor's own, once it has been tried.
   * @param {File} file
   * @returns {Promise<Record<string, any>>} its description
   * @throws {Problem} if it cannot be run
   */
  async add(file) {
    const trial = new AbortController();
    const timer = setTimeout(() => {
      trial.abort(new Problem('model_slow', { seconds: TRIAL_MILLISECONDS / 1000 }));
      this.start(this.models, this.device);
    }, TRIAL_MILLISECONDS);
    try {
      for await (const { description } of this.#stream({ type: 'add', file }, trial.signal)) {
        // One of the same name takes its place.
        const others = this.models.filter(({ name }) => name !== description.name);
        this.models = [...others, description];
        this.#own.set(description.name, file);
        return description;
      }
    } finally {
      clearTimeout(timer);
    }
    throw new Problem('no_worker');
  }

  /**
   * @param {string} path of a picture that there is
   * @param {AbortSignal} signal
   * @returns {Promise<ImageData>} all of it, small
   */
  async preview(path, signal) {
    const message = { type: 'preview', path, address: this.address(path) };
    for await (const { preview } of this.#stream(message, signal)) {
      return preview;
    }
    throw new Problem('no_worker');
  }

  /**
   * Parts of an answer, with files in place of pictures.
   * @param {{path: string}} image
   * @param {Record<string, any>} plan
   * @param {AbortSignal} signal
   */
  async* ask({ path }, plan, signal) {
    if (!this.has(path)) throw new Problem('picture_gone');
    yield* this.#stream({ type: 'ask', path, address: this.address(path), plan }, signal);
  }

  /**
   * @param {Record<string, any>} message
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Record<string, any>>}
   */
  async* #stream(message, signal) {
    const id = ++this.#count;
    /** @type {Record<string, any>[]} */
    const parts = [];
    /** @type {Error | null} */
    let error = null;
    let ended = false;
    let wake = () => {};
    const end = (/** @type {Error | null} */ why) => {
      if (ended) return;
      ended = true;
      error = why;
      wake();
    };
    this.#answering.set(id, {
      part: (part) => { parts.push(part); wake(); },
      whole: () => end(null),
      failed: end,
    });
    const abort = () => end(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    this.#worker ??= this.#started();
    this.#worker.postMessage({ ...message, id });
    try {
      for (;;) {
        const part = parts.shift();
        if (part) yield part;
        else if (ended) break;
        else await new Promise((resolve) => { wake = () => resolve(undefined); });
      }
      if (error) throw error;
    } finally {
      signal.removeEventListener('abort', abort);
      this.#answering.delete(id);
      this.#worker?.postMessage({ type: 'stop', id });
    }
  }

  /** @param {Record<string, any>} message of the worker */
  #receive({ id, type, part, text, values, message, ...detail }) {
    if (type === 'progress') this.dispatchEvent(new CustomEvent(type, { detail }));
    const answering = this.#answering.get(id);
    if (type === 'part') answering?.part(part);
    if (type === 'whole') answering?.whole();
    if (type === 'failed') {
      answering?.failed(text ? new Problem(text, values) : new Error(message));
    }
  }
}

export const backend = new Backend();

/**
 * A sentence about an error, in the page's language.
 * @param {unknown} error
 */
export function sentenceFor(error) {
  const { texts } = backend;
  if (!(error instanceof Problem)) {
    console.warn(error);
    return texts.unknown;
  }
  return fill(texts[error.text], error.values);
}

/**
 * Ask about a picture: see `app/stage/backend.js`.
 * @param {{path: string}} image
 * @param {object} plan see `experiments.js`
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Record<string, any>>}
 * @throws {AskError} if there is a sentence why there is no answer
 */
export async function* ask(image, plan, signal) {
  try {
    for await (const part of backend.ask(image, plan, signal)) yield addresses.of(part);
  } catch (error) {
    throw signal.aborted ? error : new AskError(sentenceFor(error));
  }
}

/**
 * Address of a picture's file.
 * @param {string} path
 */
export function addressOf(path) {
  return backend.address(path);
}
