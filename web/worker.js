// The worker: questions in, parts of answers out. Pictures travel as files, the preview as pixels.

import { normalise } from './arithmetic.js';
import { answer } from './experiments.js';
import { fitPicture, openPicture } from './pictures.js';
import { Problem } from './problem.js';
import { checkRequest, readPlan } from './request.js';
import { reduce } from './resize.js';
import { digestOf, Runtime } from './runtime.js';
import { Turns } from './turns.js';

/** @typedef {import('./arithmetic.js').Raster} Raster */

/** Decoded pictures that are kept: going back to one takes no second decoding. */
const MOST_PICTURES = 3;

/** Most that a preview measures, in pixels: a photograph has many more. */
const PREVIEW_SIDE = 800;

const WEBP_QUALITY = 0.85;

/**
 * What is asked, by the type of the message.
 * @type {Record<string, (message: any, signal: AbortSignal) => AsyncGenerator<Record<string, any>>>}
 */
const KINDS = { add: added, preview: previewed, ask: answered };

const turns = new Turns();

/** One for all pictures that are encoded. */
const canvas = new OffscreenCanvas(1, 1);

/** Ends a question, by its id. @type {Map<number, AbortController>} */
const running = new Map();

/** @type {Map<string, Promise<{digest: string, picture: import('./pictures.js').Picture}>>} */
const pictures = new Map();

/** @type {Runtime} */
let runtime;

addEventListener('message', async ({ data: { type, id, ...message } }) => {
  if (type === 'start') {
    const { models, device, files } = message;
    runtime = new Runtime(models, device, files, (done, total) => {
      postMessage({ type: 'progress', done, total });
    });
    return;
  }
  if (type === 'stop') {
    running.get(id)?.abort();
    return;
  }
  const controller = new AbortController();
  running.set(id, controller);
  try {
    for await (const part of KINDS[type](message, controller.signal)) {
      if (controller.signal.aborted) break;
      postMessage({ type: 'part', id, part });
    }
    postMessage({ type: 'whole', id });
  } catch (error) {
    const told = error instanceof Problem ? { text: error.text, values: error.values } : {};
    postMessage({ type: 'failed', id, message: String(error), ...told });
  } finally {
    running.delete(id);
  }
});

/**
 * @param {{file: File}} message
 * @param {AbortSignal} signal
 */
async function* added({ file }, signal) {
  const description = await runtime.add(file, (work) => turns.take(1, signal, work));
  yield { description };
}

/** @param {{path: string, address: string}} message */
async function* previewed({ path, address }) {
  const { picture } = await opened(path, address);
  const factor = Math.ceil(Math.max(picture.width, picture.height) / PREVIEW_SIDE);
  yield { preview: imageData(reduce(picture, factor)) };
}

/**
 * @param {Record<string, any>} message
 * @param {AbortSignal} signal
 */
async function* answered({ path, address, plan }, signal) {
  const { kind, request } = readPlan(plan);
  if (kind === 'models') {
    const models = runtime.descriptions.map(({ name, bytes = null }) =>
      ({ name, state: /** @type {const} */ ('ready'), bytes }));
    yield* answer(plan, { models }, async () => { throw new Error('no model is run'); });
    return;
  }
  const checked = checkRequest(request, runtime.descriptions);
  const [{ digest, picture }, model] = await Promise.all([
    opened(path, address), runtime.model(checked.model),
  ]);
  model.hold();
  try {
    yield* answersOf(model, picture, { plan, settings: { ...checked, picture: digest } }, signal);
  } finally {
    model.leave();
  }
}

/**
 * @param {import('./runtime.js').Model} model
 * @param {import('./pictures.js').Picture} picture
 * @param {{plan: any, settings: import('./request.js').Settings}} question
 * @param {AbortSignal} signal
 */
async function* answersOf(model, picture, { plan, settings }, signal) {
  const { description, side } = model;
  const fitted = fitPicture(picture, settings.fit, side, description.patch_size);
  const job = {
    description, settings, grid: description.grid, device: runtime.device,
    images: normalise(fitted.data, description.mean, description.std),
    encodeStill: async (/** @type {Raster} */ raster) => {
      const blob = await encoded(raster, 'image/webp', WEBP_QUALITY);
      if (blob.type !== 'image/webp') throw new Problem('no_webp');
      return new Uint8Array(await blob.arrayBuffer());
    },
  };
  const place = plan.kind === 'single' ? 0 : 1;
  /** @type {import('./experiments.js').Runs} */
  const run = (mask, images) => turns.take(place, signal, () => model.run(images, mask));
  for await (const part of answer(plan, job, run)) yield await withFiles(part);
}

/**
 * @param {string} path
 * @param {string} address
 */
function opened(path, address) {
  const open = async () => {
    const response = await fetch(address).catch(() => null);
    if (!response?.ok) throw new Problem('no_file', { name: path.split('/').at(-1) ?? path });
    const blob = await response.blob();
    // Judged before it is read whole.
    const picture = await openPicture(blob);
    return { picture, digest: await digestOf(new Uint8Array(await blob.arrayBuffer())) };
  };
  const found = pictures.get(path) ?? open();
  pictures.delete(path);
  pictures.set(path, found);
  found.catch(() => pictures.delete(path));
  const [oldest] = pictures.keys();
  if (pictures.size > MOST_PICTURES) pictures.delete(oldest);
  return found;
}

/**
 * A part of an answer with files in place of pictures.
 * @param {any} value
 * @returns {Promise<any>}
 */
async function withFiles(value) {
  if (value instanceof Uint8Array) {
    return new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (value)], { type: 'image/webp' });
  }
  if (Array.isArray(value) || typeof value !== 'object' || !value) return value;
  if (value.data instanceof Uint8Array || value.data instanceof Uint8ClampedArray) {
    return encoded(value, 'image/png');
  }
  const entries = Object.entries(value).map(async ([name, inner]) => [name, await withFiles(inner)]);
  return Object.fromEntries(await Promise.all(entries));
}

/**
 * @param {Raster} raster
 * @param {string} type of the file
 * @param {number} [quality]
 */
function encoded(raster, type, quality) {
  const { width, height } = raster;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext('2d')?.putImageData(imageData(raster), 0, 0);
  return canvas.convertToBlob({ type, quality });
}

/** @param {Raster} raster */
function imageData({ width, height, data }) {
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    image.data[to] = data[from];
    image.data[to + 1] = data[from + 1];
    image.data[to + 2] = data[from + 2];
    image.data[to + 3] = 255;
  }
  return image;
}
