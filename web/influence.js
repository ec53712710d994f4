// Which visible patches a removed patch came from, as `mae_core.inside.influence`.

import { gridOf, patchify } from './patches.js';
import { Problem } from './problem.js';

/** The most visible patches that are left out in turn. */
const MAX_RUNS = 256;

/**
 * Masks that remove one more patch each.
 * @param {readonly string[]} rows
 * @returns {{patch: number, rows: string[]}[]} for each visible patch, in row-major order
 * @throws {Problem} if nothing is removed, or too few or too many patches are visible
 */
export function leaveOneOut(rows) {
  const cells = rows.join('');
  const visible = [...cells].flatMap((cell, patch) => (cell === '0' ? [patch] : []));
  if (visible.length === cells.length) throw new Problem('nothing_removed');
  if (visible.length < 2 || visible.length > MAX_RUNS) {
    throw new Problem('left_out', { visible: visible.length, most: MAX_RUNS });
  }
  const [, w] = gridOf(rows);
  return visible.map((patch) => ({
    patch,
    rows: rows.map((row, i) => {
      const at = patch - i * w;
      return at >= 0 && at < w ? `${row.slice(0, at)}1${row.slice(at + 1)}` : row;
    }),
  }));
}

/**
 * @param {import('./reconstruction.js').Reconstruction} before
 * @param {import('./reconstruction.js').Reconstruction} after
 * @returns {number[]} (L) root mean square differences of pixels in 0 to 1, to 5 digits
 */
export function patchChange(before, after) {
  const difference = after.pixels.map((value, i) => value - before.pixels[i]);
  const grid = gridOf(before.mask.rows);
  const patches = patchify(difference, grid, before.side);
  const values = patches.length / (grid[0] * grid[1]);
  return Array.from({ length: grid[0] * grid[1] }, (_, patch) => {
    let sum = 0;
    for (let i = patch * values; i < (patch + 1) * values; ++i) sum += patches[i] ** 2;
    return Number(Math.sqrt(sum / values).toPrecision(5));
  });
}
