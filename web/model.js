// A model's file: what it says of itself, and whether it can be run here.

import { Problem } from './problem.js';
import { shown } from './request.js';

/**
 * @typedef {object} Description what `mae export-web` writes of a model
 * @property {string} name
 * @property {'pixels' | 'norm_pix'} target
 * @property {number[]} mean of each channel, in 0 to 1
 * @property {number[]} std likewise
 * @property {number} patch_size side of a patch in pixels
 * @property {string} [file] its name; a file of the visitor's own has none, nor
 * @property {string} [address]
 * @property {string} [sha256] of the file
 * @property {number} [bytes] of the file
 * @property {string | null} licence
 * @property {string} storage of the weights: int8, float16 or float32
 * @property {[h: number, w: number]} grid of patches that its table of positions is made for
 * @property {number | null} step of its training, while that goes on
 * @property {number | null} steps of the whole training
 * @property {Record<string, any>} config by the names of `ModelConfig`
 */

/** Bytes of a visitor's own file: a tab has room for few copies of it. */
export const MOST_BYTES = 1024 ** 3;

const VERSION = 1;
const PROPERTY = 'mae_web';
const [MOST_PATCHES, MOST_SIDE] = [4096, 1024];

// Of ONNX's protocol buffers: the fields of ModelProto and of StringStringEntryProto that are read.
const METADATA_PROPS = 14;
const [KEY, VALUE] = [1, 2];
const [VARINT, FIXED_64, LENGTH, FIXED_32] = [0, 1, 2, 5];

/**
 * What a file says of itself.
 * @param {Uint8Array} bytes of an ONNX file
 * @returns {Description}
 * @throws {Problem} if it is no file that `mae export-web` wrote
 */
export function readDescription(bytes) {
  let found;
  try {
    for (const [field, value] of fieldsOf(bytes)) {
      if (field !== METADATA_PROPS) continue;
      const entry = new Map(fieldsOf(value));
      if (textOf(entry.get(KEY)) === PROPERTY) found = JSON.parse(textOf(entry.get(VALUE)));
    }
  } catch { /* It is no such file. */ }
  if (!found) throw new Problem('model_file');
  checkDescription(found);
  return found;
}

/**
 * The fields of a message that have a length, as they are stored.
 * @param {Uint8Array} bytes
 * @returns {Generator<[field: number, value: Uint8Array]>}
 * @throws {RangeError} if the bytes are no message
 */
function* fieldsOf(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let place = 1; ; place *= 128) {
      if (at >= bytes.length || place > 2 ** 49) throw new RangeError('no number');
      const byte = bytes[at++];
      value += (byte & 127) * place;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const kind = tag % 8;
    if (kind === VARINT) number();
    else if (kind === FIXED_64) at += 8;
    else if (kind === FIXED_32) at += 4;
    else if (kind === LENGTH) {
      const length = number();
      if (at + length > bytes.length) throw new RangeError('cut short');
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else {
      throw new RangeError(`no field is of the kind ${kind}`);
    }
  }
}

/** @param {Uint8Array | undefined} bytes */
function textOf(bytes) {
  return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
}

// Of `ModelConfig`, by which costs and parameters are counted.
const SIZES = [
  'embed_dim', 'depth', 'num_heads', 'decoder_embed_dim', 'decoder_depth', 'decoder_num_heads',
];
const MOST_SIZE = 16_384;

const isWhole = (/** @type {unknown} */ value) => Number.isInteger(value) && Number(value) >= 1;
const isText = (/** @type {unknown} */ value) => typeof value === 'string' && value.length < 200;
const areThree = (/** @type {unknown} */ values) =>
  Array.isArray(values) && values.length === 3 && values.every(Number.isFinite);
const isStep = (/** @type {unknown} */ value) => value === null || Number.isInteger(value);

/**
 * What a description may say.
 * @type {Record<string, (value: any, said: any) => boolean>}
 */
const ALLOWED = {
  name: (value) => isText(value) && /^[\w.-]+$/.test(value),
  target: (value) => ['pixels', 'norm_pix'].includes(value),
  mean: areThree,
  std: (values) => areThree(values) && Math.min(...values) > 0,
  patch_size: isWhole,
  // Pictures are cut square.
  grid: (grid, { patch_size: patch }) => {
    const [h, w, ...more] = Array.isArray(grid) ? grid : [];
    return !more.length && isWhole(h) && h === w && h > 1
      && h * w <= MOST_PATCHES && h * patch <= MOST_SIDE;
  },
  storage: (value) => ['int8', 'float16', 'float32'].includes(value),
  licence: (value) => value === null || isText(value),
  step: isStep,
  steps: isStep,
  config: (value) => typeof value === 'object' && value !== null
    && SIZES.every((name) => isWhole(value[name]) && value[name] <= MOST_SIZE)
    && Number.isFinite(value.mlp_ratio),
};

/**
 * @param {any} said by a file
 * @throws {Problem} if a value is not allowed
 */
function checkDescription(said) {
  if (said.v !== VERSION) {
    throw new Problem('model_version', { given: shown(said.v), allowed: VERSION });
  }
  const wrong = Object.keys(ALLOWED).find((name) => !ALLOWED[name](said[name], said));
  if (wrong) throw new Problem('model_value', { name: wrong, given: shown(said[wrong]) });
}

/**
 * @param {import('onnxruntime-web').InferenceSession} session of a visitor's own file
 * @throws {Problem} if its graph takes or gives other things than those that the page knows
 */
export function checkGraph({ inputNames, outputNames }) {
  const given = [...inputNames, ...outputNames].join(', ');
  const allowed = 'images, ids_keep, ids_restore, pred, changes';
  if (given !== allowed) throw new Problem('model_graph', { given: shown(given), allowed });
}
