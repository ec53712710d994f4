// The mask of one picture.

import { drawMask } from '../app/stage/masking.js';
import { Problem } from './problem.js';

/** @typedef {import('../app/stage/masking.js').Grid} Grid */
/** @typedef {ReturnType<typeof drawMask>} Mask */

/**
 * The mask that a request asks for.
 * @param {import('./request.js').MaskSettings} settings
 * @param {Grid} grid
 * @returns {Mask}
 * @throws {Problem} if its own rows are of another grid
 */
export function maskOf({ strategy, ratio, seed, rows }, [h, w]) {
  if (!rows.length) return drawMask(strategy, [h, w], ratio, seed);
  if (rows.length !== h || rows[0].length !== w) {
    throw new Problem('mask_shape', {
      given: `${rows.length} × ${rows[0].length}`, rows: h, columns: w,
    });
  }
  return ownMask(rows);
}

/**
 * A mask of given rows, whose visible patches are in row-major order: `custom_mask`.
 * @param {string[]} rows of 0 and 1, 1 = removed; at least one patch visible
 * @returns {Mask}
 */
export function ownMask(rows) {
  const cells = [...rows.join('')];
  const patches = cells.map((_, patch) => patch);
  const idsKeep = patches.filter((patch) => cells[patch] === '0');
  let [visible, removed] = [0, idsKeep.length];
  const idsRestore = cells.map((cell) => (cell === '0' ? visible++ : removed++));
  return { rows, idsKeep, idsRestore };
}
