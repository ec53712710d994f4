// ONNX Runtime in this worker: sessions of models, and how they are run.

import { checkGraph, MOST_BYTES, readDescription } from './model.js';
import { Problem } from './problem.js';

/**
 * @typedef {import('./model.js').Description} Description
 * @typedef {typeof import('onnxruntime-web')} Ort
 * @typedef {import('./mask.js').Mask} Mask
 * @typedef {import('./reconstruction.js').Run} Run
 */

/** Sessions at a time: two that are compared. */
const MOST_SESSIONS = 2;

/** More threads than this are of little use to models of this size. */
const MOST_THREADS = 4;

/** Where the runtime is in the site; by version, so that a page never gets that of another build. */
const FOLDER = 'ort/1.30.0/';

const BINARY = {
  wasm: 'ort-wasm-simd-threaded.wasm.gz', webgpu: 'ort-wasm-simd-threaded.asyncify.wasm.gz',
};

/** Files of the runtime for the processor, relative to the site. */
export const RUNTIME = ['ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', BINARY.wasm]
  .map((name) => FOLDER + name);

/** Marks of a compressed file. */
const GZIP = [0x1f, 0x8b];

export class Runtime {
  /** @type {Promise<Ort> | null} */
  #ort = null;

  /** Bytes of files on their way. @type {Map<string, {done: number, total: number}>} */
  #transfers = new Map();

  /** Of models that were used, the latest last. @type {Map<string, Promise<Model>>} */
  #models = new Map();

  /**
   * @param {Description[]} descriptions
   * @param {'wasm' | 'webgpu'} device
   * @param {Map<string, Blob>} files of the visitor's own models, by their names
   * @param {(done: number, total: number) => void} progress in bytes of what is fetched; both are
   *   0 at its end
   */
  constructor(descriptions, device, files, progress) {
    this.descriptions = descriptions;
    this.device = device;
    this.files = files;
    this.progress = progress;
  }

  /**
   * A model, ready to be run.
   * @param {string} name
   * @returns {Promise<Model>}
   * @throws {Problem} if there is none, or it cannot be run
   */
  model(name) {
    const description = this.descriptions.find((one) => one.name === name);
    if (!description) {
      const allowed = this.descriptions.map((one) => one.name).join(', ');
      throw new Problem('no_model', { given: String(name).slice(0, 40), allowed });
    }
    const kept = this.#models.get(name) ?? this.#load(description);
    kept.catch(() => this.#forget(name, kept));
    this.#keep(name, kept);
    return kept;
  }

  /**
   * @param {string} name
   * @param {Promise<Model>} model the latest that was used
   */
  #keep(name, model) {
    this.#models.delete(name);
    this.#models.set(name, model);
    const [oldest, oldestModel] = [...this.#models][0];
    if (this.#models.size > MOST_SESSIONS) this.#forget(oldest, oldestModel);
  }

  /**
   * Add a model of the visitor's own, once it has drawn a picture.
   * @param {Blob} file
   * @param {(work: () => Promise<unknown>) => Promise<unknown>} inTurn
   * @returns {Promise<Description>}
   * @throws {Problem} if it cannot be run
   */
  async add(file, inTurn) {
    if (file.size > MOST_BYTES) {
      throw new Problem('model_large', { given: mega(file.size), allowed: mega(MOST_BYTES) });
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    const description = { ...readDescription(bytes), bytes: file.size };
    // Beside one of the site's of the same name, which it may be compared with.
    const isTaken = this.descriptions.some(({ name, address }) => address && name === description.name);
    const name = isTaken ? `${description.name}-own` : description.name;
    description.name = name;
    const model = await this.#model(description, bytes);
    try {
      checkGraph(model.session);
      await inTurn(() => model.run(new Float32Array(3 * model.side ** 2), halfOf(description.grid)));
    } catch (error) {
      model.drop();
      throw error;
    }
    this.descriptions = [...this.descriptions.filter((one) => one.name !== name), description];
    this.#forget(name, this.#models.get(name));
    this.files.set(name, file);
    this.#keep(name, Promise.resolve(model));
    return description;
  }

  /**
   * @param {string} name
   * @param {Promise<Model> | undefined} model
   */
  #forget(name, model) {
    if (this.#models.get(name) === model) this.#models.delete(name);
    model?.then((there) => there.drop(), () => {});
  }

  /** @param {Description} description */
  async #load(description) {
    const { name, address, sha256 } = description;
    const file = this.files.get(name);
    if (file) return this.#model(description, new Uint8Array(await file.arrayBuffer()));
    const [bytes] = await Promise.all([
      this.#fetched(new URL(String(address)), name), this.#started(),
    ]);
    if (await digestOf(bytes) !== sha256) throw new Problem('model_damaged', { name });
    return this.#model(description, bytes);
  }

  /**
   * @param {Description} description
   * @param {Uint8Array} bytes
   */
  async #model(description, bytes) {
    const ort = await this.#started();
    try {
      const session = await ort.InferenceSession.create(bytes, {
        executionProviders: [this.device], graphOptimizationLevel: 'all',
      });
      return new Model(ort, session, description);
    } catch (error) {
      console.warn(error);
      throw new Problem('model_broken', { name: description.name });
    }
  }

  #started() {
    const started = async () => {
      if (!('WebAssembly' in globalThis)) throw new Problem('no_worker');
      const folder = new URL(`../${FOLDER}`, import.meta.url);
      /** @type {Ort} */
      const ort = await import(new URL(`ort.${this.device}.min.mjs`, folder).href);
      const { wasm } = ort.env;
      wasm.wasmPaths = folder.href;
      const binary = await this.#fetched(new URL(BINARY[this.device], folder), 'ONNX Runtime');
      wasm.wasmBinary = binary.buffer;
      // Threads share memory, which a page that is not isolated from others may not have.
      wasm.numThreads = crossOriginIsolated
        ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
      ort.env.logLevel = 'error';
      return ort;
    };
    this.#ort ??= started().catch((error) => {
      this.#ort = null;
      throw error;
    });
    return this.#ort;
  }

  /**
   * A file of this site, which may be compressed.
   * @param {URL} address
   * @param {string} name that the visitor is told
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async #fetched(address, name) {
    const transfer = { done: 0, total: 0 };
    let bytes;
    this.#transfers.set(name, transfer);
    try {
      const response = await fetch(address);
      if (!response.ok || !response.body) throw new Error(`${address}: ${response.status}`);
      transfer.total = Number(response.headers.get('content-length'));
      bytes = await collected(response.body, (done) => {
        transfer.done = done;
        this.#tell();
      });
    } catch (error) {
      console.warn(error);
      throw new Problem('no_file', { name });
    } finally {
      this.#transfers.delete(name);
      this.#tell();
    }
    if (!GZIP.every((byte, i) => bytes[i] === byte)) return bytes;
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(plain).arrayBuffer());
  }

  #tell() {
    const all = [...this.#transfers.values()];
    this.progress(all.reduce((sum, { done }) => sum + done, 0),
      all.reduce((sum, { total }) => sum + total, 0));
  }
}

/** A model that can be run. Its session is released once it is dropped and nobody holds it. */
export class Model {
  #holders = 0;
  #dropped = false;

  /**
   * @param {Ort} ort
   * @param {import('onnxruntime-web').InferenceSession} session
   * @param {Description} description
   */
  constructor(ort, session, description) {
    this.ort = ort;
    this.session = session;
    this.description = description;
    this.side = description.grid[0] * description.patch_size;
  }

  hold() {
    this.#holders += 1;
  }

  leave() {
    this.#holders -= 1;
    this.#release();
  }

  drop() {
    this.#dropped = true;
    this.#release();
  }

  #release() {
    if (this.#dropped && !this.#holders) this.session.release();
  }

  /**
   * @param {Float32Array} images (1, 3, H, W) normalised
   * @param {Mask} mask
   * @returns {Promise<Run>}
   * @throws {Problem} if it does not run, or gives something else than a prediction
   */
  async run(images, { idsKeep, idsRestore }) {
    const { ort, side, session, description: { name, grid, patch_size: patch, config } } = this;
    const ids = (/** @type {number[]} */ numbers) =>
      new ort.Tensor('int64', BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
    const feeds = {
      images: new ort.Tensor('float32', images, [1, 3, side, side]),
      ids_keep: ids(idsKeep), ids_restore: ids(idsRestore),
    };
    const began = performance.now();
    let results;
    try {
      results = await session.run(feeds);
    } catch (error) {
      console.warn(error);
      throw new Problem('model_broken', { name });
    }
    const seconds = (performance.now() - began) / 1000;
    const [pred, changes] = [results.pred?.data, results.changes?.data];
    const values = grid[0] * grid[1] * 3 * patch ** 2;
    const right = pred instanceof Float32Array && changes instanceof Float32Array
      && pred.length === values && pred.every(Number.isFinite)
      && changes.length % config.depth === 0;
    if (!right) throw new Problem('model_result', { name });
    return { pred, changes, seconds };
  }
}

/**
 * The bytes of a stream.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {(done: number) => void} progress
 */
async function collected(stream, progress) {
  const reader = stream.getReader();
  const chunks = [];
  let done = 0;
  for (;;) {
    const read = await reader.read();
    if (read.done) break;
    chunks.push(read.value);
    progress(done += read.value.length);
  }
  const bytes = new Uint8Array(done);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/**
 * SHA-256 in hexadecimal.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Promise<string>}
 * @throws {Problem} if the page is not secure
 */
export async function digestOf(bytes) {
  if (!isSecureContext) throw new Problem('insecure');
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * A mask that removes the lower half of the patches.
 * @param {[number, number]} grid
 */
function halfOf([h, w]) {
  const all = Array.from({ length: h * w }, (_, patch) => patch);
  return { rows: [], idsKeep: all.slice(0, Math.ceil(h * w / 2)), idsRestore: all };
}

/** @param {number} bytes */
function mega(bytes) {
  return Math.round(bytes / 1e6);
}
