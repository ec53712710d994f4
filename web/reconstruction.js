// One picture rebuilt: pixels, figures, and the request as it was carried out.

import { denormalise, lossOf, toPixels, toRaster } from './arithmetic.js';
import { removedPsnr, removedSsim } from './metrics.js';
import { finer, gridOf } from './patches.js';

/** @typedef {import('./arithmetic.js').Raster} Raster */
/** @typedef {import('./mask.js').Mask} Mask */
/** @typedef {import('./request.js').Settings} Settings */

/**
 * @typedef {object} Description what `mae export-web` writes of a model, as far as it counts here
 * @property {string} name
 * @property {'pixels' | 'norm_pix'} target
 * @property {number[]} mean of each channel, in 0 to 1
 * @property {number[]} std likewise
 * @property {number} patch_size side of a patch in pixels
 * @property {string | null} licence
 * @property {string} storage of the weights: int8, float16 or float32
 * @property {[h: number, w: number]} grid that its table of positions is made for
 * @property {number | null} step of its training, while that goes on
 * @property {number | null} steps
 * @property {Record<string, any>} config by the names of `ModelConfig`
 */

/**
 * What the model gave.
 * @typedef {object} Run
 * @property {Float32Array} pred (L, P)
 * @property {Float32Array} changes (depth, T): the length of what each block of the encoder adds to
 *   each token but the class token
 * @property {number} seconds
 */

/** What a removed patch looks like in the masked panel. */
const REMOVED_LEVEL = 128;

export class Reconstruction {
  /**
   * @param {object} of
   * @param {Description} of.description
   * @param {Settings} of.settings
   * @param {Float32Array} of.images (3, H, W), normalised
   * @param {string} of.device `wasm` or `webgpu`
   * @param {Mask} mask
   * @param {Run} run
   */
  constructor({ description, settings, images, device }, mask, run) {
    this.description = description;
    this.settings = settings;
    this.images = images;
    this.device = device;
    this.mask = mask;
    this.run = run;
    this.side = description.patch_size;
    const [h, w] = gridOf(mask.rows);
    this.height = h * this.side;
    this.width = w * this.side;
    /** (3, H, W), as the model saw the picture; 1.0000001 is rounding. */
    this.original = denormalise(images, description.mean, description.std);
    /** (3, H, W) in 0 to 1: the model's image, visible patches too. */
    this.pixels = toPixels(run.pred, images, mask.rows, description, settings.view);
  }

  /** null where the model predicts pixels. */
  get view() {
    return this.description.target === 'norm_pix' ? this.settings.view : null;
  }

  /** (H, W), 1 = removed. */
  get removed() {
    return finer(this.mask.rows, this.side);
  }

  /** Fraction removed: of an own mask the share that it removed, else what was asked for. */
  get ratio() {
    const { settings: { mask: { rows, ratio } }, mask: { idsKeep, idsRestore } } = this;
    return rows.length ? 1 - idsKeep.length / idsRestore.length : ratio;
  }

  /** null where nothing was removed, or the model's own target is not in its file. */
  get loss() {
    const { description, images, mask, run } = this;
    if (description.config.pca_components) return null;
    return lossOf(run.pred, images, mask.rows, description);
  }

  /** Of the removed patches, in dB; null where there is none. */
  get psnr() {
    if (this.view === 'normalized') return null;
    return removedPsnr(this.pixels, this.original, this.removed);
  }

  /** Of the pasted picture, averaged over removed pixels; null likewise. */
  get ssim() {
    if (this.view === 'normalized') return null;
    return removedSsim(this.pixels, this.original, this.removed, this.width);
  }

  /** What was done and how well it went, by the names of `Reconstruction.facts`. */
  facts() {
    const { description, settings: { mask, fit }, height, width } = this;
    return {
      model: description.name, device: this.device, precision: description.storage,
      mask_ratio: this.ratio, seed: mask.seed,
      strategy: mask.rows.length ? 'custom' : mask.strategy, fit, view: this.view, height, width,
      visible: this.mask.idsKeep.length, patches: this.mask.idsRestore.length,
      loss: this.loss, psnr: this.psnr, ssim: this.ssim, seconds: this.run.seconds,
      ...(description.step === null ? {} : { step: description.step, steps: description.steps }),
      ...(description.licence ? { licence: description.licence } : {}),
    };
  }

  /**
   * The pictures of one size.
   * @returns {Record<'original' | 'masked' | 'reconstruction' | 'pasted', Raster>}
   */
  panels() {
    const { removed, width } = this;
    const original = toRaster(this.original, width);
    const reconstruction = toRaster(this.pixels, width);
    const masked = { ...original, data: original.data.map((level, i) =>
      (removed[Math.floor(i / 3)] ? REMOVED_LEVEL : level)) };
    const pasted = { ...original, data: original.data.map((level, i) =>
      (removed[Math.floor(i / 3)] ? reconstruction.data[i] : level)) };
    return { original, masked, reconstruction, pasted };
  }
}
