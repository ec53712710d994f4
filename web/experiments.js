// What can be asked of a picture: a plan in, parts of an answer out, as `app/experiments.py`. Each
// part is plain data and pictures (see `Raster`). Nothing here knows where the model runs.

import { drawMask } from '../app/stage/masking.js';
import { toRaster } from './arithmetic.js';
import { leaveOneOut, patchChange } from './influence.js';
import { comparison, scramble } from './leaks.js';
import { maskOf, ownMask } from './mask.js';
import { Problem } from './problem.js';
import { Reconstruction } from './reconstruction.js';
import { readPlan } from './request.js';
import { traceOf } from './stages.js';
import { baselines, filmFrame, filmRatios } from './sweep.js';
import { Doubt, doubtSeeds } from './uncertainty.js';
import { animation } from './webp.js';

/** @typedef {import('./arithmetic.js').Raster} Raster */
/** @typedef {import('./mask.js').Mask} Mask */
/** @typedef {import('./request.js').Question} Question */

/** How long a frame of a film is shown. */
const MILLISECONDS = 250;

/**
 * @typedef {object} Job a question's picture and model
 * @property {import('./model.js').Description} description
 * @property {import('./request.js').Settings} settings the request, checked
 * @property {Float32Array} images (1, 3, H, W), normalised
 * @property {import('./mask.js').Grid} grid
 * @property {string} device where the model runs: `wasm` or `webgpu`
 * @property {(frame: Raster) => Promise<Uint8Array>} encodeStill as a WebP file
 */

/** @typedef {{name: string, state: 'ready', bytes: number | null}} Offer a model */

/**
 * Runs the model on `images` (1, 3, H, W).
 * @typedef {(mask: Mask, images: Float32Array) => Promise<import('./reconstruction.js').Run>} Runs
 */

/** @typedef {AsyncGenerator<Record<string, any>>} Parts */

/** @type {Record<string, (job: Job, run: Runs, question: Question) => Parts>} */
const ANSWERS = { single, files, film, doubt, influence, inside, leak };

/**
 * The answer to a plan, in parts as they come. Whoever stops early gives it up: no run follows.
 * @param {any} plan
 * @param {Job | {models: Offer[]}} job the latter of a question about models
 * @param {Runs} run
 * @returns {Parts}
 * @throws {Problem} if the plan or the mask is not allowed, or the kind cannot be asked of it
 */
export async function* answer(plan, job, run) {
  const question = readPlan(plan);
  if (question.kind === 'models') yield { models: /** @type {{models: Offer[]}} */ (job).models };
  else yield* ANSWERS[question.kind](/** @type {Job} */ (job), run, question);
}

/**
 * @param {Job} job
 * @param {Runs} run
 */
async function* single(job, run) {
  yield viewOf(await rebuilt(job, run, maskOf(job.settings.mask, job.grid)));
}

/**
 * @param {Job} job
 * @param {Runs} run
 */
async function* files(job, run) {
  const result = await rebuilt(job, run, maskOf(job.settings.mask, job.grid));
  yield result.panels();
}

/**
 * A frame for each mask ratio, and at last the film as a file.
 * @param {Job} job
 * @param {Runs} run
 * @param {Question} question
 */
async function* film(job, run, { number, format }) {
  const stills = [];
  /** @type {Raster | undefined} */
  let frame;
  const ratios = filmRatios(number);
  for (const [i, ratio] of ratios.entries()) {
    const settings = { ...job.settings, mask: { ...job.settings.mask, ratio, rows: [] } };
    const result = await rebuilt({ ...job, settings }, run, maskOf(settings.mask, job.grid));
    const panels = result.panels();
    if (format) {
      frame = filmFrame(panels, ratio);
      stills.push(await job.encodeStill(frame));
    }
    yield {
      ...viewOf(result), done: i + 1, of: ratios.length, mask_ratio: ratio,
      baselines: baselines(panels.original, result.mask.rows),
    };
  }
  if (frame) yield { file: animation(stills, frame, MILLISECONDS), name: `film.${format}` };
}

/**
 * Maps of error and disagreement, and the mean picture, over masks of one ratio.
 * @param {Job} job
 * @param {Runs} run
 * @param {Question} question
 */
async function* doubt(job, run, { number }) {
  const { strategy, ratio, seed } = job.settings.mask;
  /** @type {Doubt | undefined} */
  let found;
  for (const each of doubtSeeds(seed, number)) {
    const result = await rebuilt(job, run, drawMask(strategy, job.grid, ratio, each));
    found ??= new Doubt(result);
    found.add(result);
    yield { done: found.runs, of: number };
  }
  yield { mask_ratio: ratio, ...found?.part };
}

/**
 * For each visible patch, how much each removed patch changes without it.
 * @param {Job} job
 * @param {Runs} run
 */
async function* influence(job, run) {
  const mask = maskOf(job.settings.mask, job.grid);
  const without = leaveOneOut(mask.rows);
  const before = await rebuilt(job, run, mask);
  for (const [i, { patch, rows }] of without.entries()) {
    const after = await rebuilt(job, run, ownMask(rows));
    yield {
      done: i + 1, of: without.length, patch, mask: mask.rows, change: patchChange(before, after),
    };
  }
}

/**
 * What the model does with the picture, stage by stage.
 * @param {Job} job
 * @param {Runs} run
 */
async function* inside(job, run) {
  yield traceOf(await rebuilt(job, run, maskOf(job.settings.mask, job.grid)));
}

/**
 * Whether other pixels under the removed patches change the prediction.
 * @param {Job} job
 * @param {Runs} run
 * @param {Question} question
 */
async function* leak(job, run, { number }) {
  const { description, settings, images, grid } = job;
  const mask = maskOf(settings.mask, grid);
  if (mask.idsKeep.length === mask.idsRestore.length) throw new Problem('nothing_removed');
  const scrambled = scramble(images, mask.rows, description, number);
  const both = [job, { ...job, images: scrambled.images }];
  const runs = [await run(mask, images), await run(mask, scrambled.images)];
  const compared = (/** @type {string} */ view) => {
    const [before, after] = both.map((one, i) =>
      new Reconstruction({ ...one, settings: { ...settings, view } }, mask, runs[i]));
    return comparison(before, after);
  };
  yield {
    scrambled: toRaster(scrambled.pixels, grid[1] * description.patch_size),
    ...compared(settings.view),
    // Of models of normalised pixels, told the answer's brightness and contrast.
    answer: description.target === 'norm_pix' ? compared('answer') : null,
  };
}

/**
 * @param {Job} job
 * @param {Runs} run
 * @param {Mask} mask
 */
async function rebuilt(job, run, mask) {
  return new Reconstruction(job, mask, await run(mask, job.images));
}

/**
 * What a page shows of an answer; masked and pasted are composed there.
 * @param {Reconstruction} result
 */
function viewOf(result) {
  const { original, reconstruction } = result.panels();
  return {
    original, reconstruction, mask: result.mask.rows, facts: result.facts(),
    settings: result.settings,
  };
}
