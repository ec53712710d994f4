// What a page asks for, checked: as `app/request.py` and `Plan` of `app/experiments.py`.

import { LEAST_RATIO, MOST_RATIO, STRATEGIES } from '../app/stage/masking.js';
import { Problem } from './problem.js';

const VERSION = 1;
/** A whole frame would have another grid, for which a model's file has no positions. */
export const FITS = ['crop', 'squash'];
export const VIEWS = ['estimated', 'answer', 'normalized'];
const MAX_PATCHES = 4096;

/**
 * Kinds of questions, and their own whole numbers: least, most, default.
 * @type {Record<string, Record<string, [least: number, most: number, usual: number]>>}
 */
const NUMBERS = {
  single: {},
  files: {},
  film: { frames: [2, 37, 19] },
  doubt: { masks: [2, 64, 16] },
  influence: {},
  inside: {},
  leak: { noise: [0, 2 ** 31 - 1, 0] },
  models: {},
};
const OF_A_SERVER = ['attention', 'training'];

/** GIF is the server's: no browser writes it. */
const FILM_FORMATS = ['webp'];

const SETTINGS = ['v', 'picture', 'mask', 'fit', 'model', 'image_size', 'view'];
const MASK = ['strategy', 'ratio', 'seed', 'rows', 'drawing'];

/** @typedef {import('../app/stage/masking.js').Strategy} Strategy */
/** @typedef {import('./model.js').Description} Description */

/**
 * @typedef {object} MaskSettings
 * @property {Strategy} strategy
 * @property {number} ratio fraction removed, 0.05 to 0.95
 * @property {number} seed a whole number
 * @property {string[]} rows own mask in place of the above; empty if there is none
 * @property {''} drawing
 */

/**
 * @typedef {object} Settings one reconstruction, as `Request.to_json` has it
 * @property {1} v
 * @property {string} picture digest of its file; '' where it does not matter
 * @property {MaskSettings} mask
 * @property {string} fit
 * @property {string} model
 * @property {number | null} image_size the model's own, in pixels or as null
 * @property {string} view
 */

/**
 * @typedef {object} Question
 * @property {string} kind
 * @property {Record<string, any>} request not yet checked
 * @property {number} number of frames, of masks, or the seed of the noise
 * @property {string} format of a film as a file; '' for none
 */

/**
 * The form of a plan, but for its request.
 * @param {any} plan
 * @returns {Question}
 * @throws {Problem} if it is of another version or form, or of a kind that takes a server
 */
export function readPlan(plan) {
  if (!isObject(plan) || !isObject(plan.request)) {
    throw new Problem('no_question', { given: shown(plan) });
  }
  checkVersion(plan.v);
  if (OF_A_SERVER.includes(plan.kind)) throw new Problem('needs_server', { kind: plan.kind });
  const kind = choice('kind', plan.kind, Object.keys(NUMBERS));
  const names = ['v', 'kind', 'request', ...Object.keys(NUMBERS[kind])];
  if (kind === 'film') names.push('format');
  const unknown = Object.keys(plan).find((name) => !names.includes(name));
  if (unknown !== undefined) {
    throw new Problem('no_field', { kind, given: shown(unknown), allowed: names.join(', ') });
  }
  const [number = 0] = Object.entries(NUMBERS[kind]).map(([name, [least, most, usual]]) =>
    whole(name, plan[name] === undefined ? usual : plan[name], least, most));
  const format = plan.format === undefined ? '' : choice('format', plan.format, FILM_FORMATS);
  return { kind, request: plan.request, number, format };
}

/**
 * A request with all its values, which are allowed; its own mask may be of another grid.
 * @param {Record<string, any>} request as `Request.to_json` gave it; what is left out is usual
 * @param {Pick<Description, 'name' | 'grid' | 'patch_size'>[]} models the default first
 * @returns {Settings} without the picture
 * @throws {Problem} if it is of another version or form, or a value is not allowed
 */
export function checkRequest(request, models) {
  checkVersion(request.v === undefined ? VERSION : request.v);
  const given = isObject(request.mask) ? request.mask : {};
  checkNames(request, SETTINGS);
  checkNames(given, MASK);
  if (given.drawing) throw new Problem('drawn_mask');
  const { fit = FITS[0], view = VIEWS[0], model, image_size: size = null } = request;
  const names = models.map(({ name }) => name);
  const name = model === undefined || model === null ? names[0] : choice('model', model, names);
  const { grid, patch_size: side } = models[names.indexOf(name)];
  return {
    v: VERSION,
    picture: '',
    mask: readMask(given),
    fit: choice('fit', fit, FITS),
    model: name,
    image_size: imageSize(size, grid[0] * side),
    view: choice('view', view, VIEWS),
  };
}

/**
 * @param {Record<string, any>} given
 * @returns {MaskSettings}
 */
function readMask(given) {
  const own = given.rows && given.rows.length !== 0 ? given.rows : null;
  let { strategy = STRATEGIES[0], ratio, seed } = given;
  if (own !== null) {
    // Beside an own mask they are what further questions start from, such as a film.
    strategy ??= STRATEGIES[0];
    ratio ??= 0.75;
    seed ??= 0;
  }
  return {
    strategy: /** @type {Strategy} */ (choice('strategy', strategy, STRATEGIES)),
    ratio: maskRatio(ratio),
    // A number of JavaScript is exact up to there.
    seed: whole('seed', seed, 0, Number.MAX_SAFE_INTEGER),
    rows: own === null ? [] : ownRows(own),
    drawing: '',
  };
}

/** @param {unknown} value */
function maskRatio(value) {
  if (typeof value !== 'number' || !(value >= LEAST_RATIO && value <= MOST_RATIO)) {
    throw new Problem('mask_ratio', { given: shown(value), least: LEAST_RATIO, most: MOST_RATIO });
  }
  return Number(value.toFixed(6));
}

/**
 * @param {unknown} value
 * @returns {string[]}
 */
function ownRows(value) {
  const refused = () => new Problem('mask_rows', { given: shown(value), most: MAX_PATCHES });
  if (!Array.isArray(value) || value.length > MAX_PATCHES) throw refused();
  const rows = value.map((row) => {
    const cells = Array.isArray(row) || typeof row === 'string' ? [...row] : [];
    if (!cells.every((cell) => ['0', '1', 0, 1].includes(cell))) throw refused();
    return cells.join('');
  });
  const [{ length }] = rows;
  if (!length || rows.some((row) => row.length !== length) || rows.length * length > MAX_PATCHES) {
    throw refused();
  }
  if (!rows.some((row) => row.includes('0'))) throw new Problem('mask_whole');
  return rows;
}

/**
 * @param {unknown} value
 * @param {number} own size of the model's images, the only one that its file takes
 */
function imageSize(value, own) {
  if (value === null || value === own) return value;
  throw new Problem('image_size', { given: shown(value), allowed: own });
}

/** @param {unknown} version */
function checkVersion(version) {
  if (version !== VERSION) {
    throw new Problem('version', { given: shown(version), allowed: VERSION });
  }
}

/**
 * @param {Record<string, any>} given
 * @param {string[]} names
 */
function checkNames(given, names) {
  const unknown = Object.keys(given).find((name) => !names.includes(name));
  if (unknown !== undefined) {
    throw new Problem('no_setting', { given: shown(unknown), allowed: names.join(', ') });
  }
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {string[]} allowed
 * @returns {string}
 */
function choice(name, value, allowed) {
  if (typeof value === 'string' && allowed.includes(value)) return value;
  throw new Problem('choice', { name, given: shown(value), allowed: allowed.join(', ') });
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {number} least
 * @param {number} most
 * @returns {number}
 */
function whole(name, value, least, most) {
  if (Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most) {
    return Number(value);
  }
  throw new Problem('whole', { name, given: shown(value), least, most });
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * A value as a problem may show it: short, whatever it is.
 * @param {unknown} value
 */
export function shown(value) {
  const text = typeof value === 'bigint' ? String(value) : JSON.stringify(value) ?? String(value);
  return text.length <= 40 ? text : `${text.slice(0, 37)}...`;
}
