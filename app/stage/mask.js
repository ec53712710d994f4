// The mask that is being edited.

import { PRESETS } from './presets.js';

/** @typedef {import('./masking.js').Grid} Grid */

/**
 * Which patches of a grid of (h, w) are removed: 1 = removed. Patches are numbered row by row.
 *
 * At least one stays visible. What would remove the last one is not done, or but for that patch,
 * and returns false.
 */
export class Mask {
  /** @param {Grid} grid all visible at first */
  constructor([h, w]) {
    this.h = h;
    this.w = w;
    this.cells = new Uint8Array(h * w);
  }

  /**
   * @param {readonly string[]} rows of 0 and 1, of one length
   * @throws {RangeError} if they are no mask, or remove everything
   */
  static fromRows(rows) {
    const mask = new Mask([rows.length, rows[0]?.length ?? 0]);
    if (!mask.set(rows)) throw new RangeError('the mask removes every patch; leave one visible');
    return mask;
  }

  /** h rows of w characters. */
  get rows() {
    const cells = this.cells.join('');
    return Array.from({ length: this.h }, (_, i) => cells.slice(i * this.w, (i + 1) * this.w));
  }

  /** How many patches are removed. */
  get count() {
    return this.cells.reduce((sum, cell) => sum + cell, 0);
  }

  /** Fraction removed. */
  get ratio() {
    return this.count / this.cells.length;
  }

  /**
   * Take another mask of the same grid.
   * @param {readonly string[]} rows
   * @returns {boolean} false, and nothing is changed, if it removes every patch
   * @throws {RangeError} if the rows are no mask of this grid
   */
  set(rows) {
    const fits = rows.length === this.h && this.w > 0
      && rows.every((row) => row.length === this.w && /^[01]*$/.test(row));
    if (!fits) {
      throw new RangeError(`give ${this.h} rows of ${this.w} characters 0 and 1, 1 = removed`);
    }
    return this.#take((patch) => rows[Math.floor(patch / this.w)][patch % this.w] === '1');
  }

  /**
   * Remove or show patches, one after another.
   * @param {Iterable<number>} patches
   * @param {0 | 1} value 1 removes
   * @returns {boolean} false if the last visible patch was among them and stays
   */
  paint(patches, value) {
    let visible = this.cells.length - this.count;
    let whole = true;
    for (const patch of patches) {
      if (this.cells[patch] === value) continue;
      if (value && visible === 1) {
        whole = false;
        continue;
      }
      this.cells[patch] = value;
      visible += value ? -1 : 1;
    }
    return whole;
  }

  /** @returns {boolean} false, and nothing is changed, if every patch would be removed */
  invert() {
    return this.#take((patch) => !this.cells[patch]);
  }

  /**
   * Show every patch, or remove every one but the last that is visible.
   * @param {0 | 1} value 1 removes
   * @returns {boolean} false if a patch stays visible
   */
  fill(value) {
    return this.paint(this.cells.keys(), value);
  }

  /**
   * @param {keyof typeof PRESETS} name
   * @returns {boolean} false, and nothing is changed, if every patch would be removed, as on a
   *   tiny grid
   */
  preset(name) {
    const { h, w } = this;
    return this.#take((patch) => PRESETS[name](Math.floor(patch / w), patch % w, h, w));
  }

  /** @param {(patch: number) => boolean} removed */
  #take(removed) {
    const cells = this.cells.map((_, patch) => Number(removed(patch)));
    if (!cells.includes(0)) return false;
    this.cells = cells;
    return true;
  }
}
