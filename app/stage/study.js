// What was found out about one view, and which patches matter in it.

/** @typedef {Map<number, number>} Values patch number -> value; patches are numbered row by row */

/** Of `MAX_RUNS` in `mae_core/inside/influence.py`. */
export const MOST_LEFT_OUT = 256;

/** What was found out about one view. */
export class Study {
  /** @type {Map<number, number[]>} visible patch -> change of each of the L patches without it */
  changes = new Map();
  /** @type {import('./looks.js').Attention | null} the newest answer, of any patch */
  attention = null;

  /**
   * @param {import('./stage.js').View} view
   * @param {ImageBitmap[]} images
   */
  constructor(view, images) {
    this.view = view;
    this.images = images;
    this.cells = view.mask.join('');
    this.pin = centralPatch(view.mask);
  }

  /** How many patches are visible. */
  get visible() {
    return [...this.cells].filter((cell) => cell === '0').length;
  }

  /** Whether visible patches can be left out in turn. */
  get measurable() {
    const { visible, cells } = this;
    return visible >= 2 && visible <= MOST_LEFT_OUT && visible < cells.length;
  }

  get empty() {
    return !this.changes.size && !this.attention;
  }

  /** @param {number} patch */
  isRemoved(patch) {
    return this.cells[patch] === '1';
  }

  /** The answer about the pinned patch, if there is one. */
  get pinned() {
    return this.attention?.patch === this.pin ? this.attention : null;
  }

  /**
   * Of a removed patch, its change without each visible one; of a visible patch, the change of
   * each removed one without it.
   * @param {number} patch
   * @returns {Values}
   */
  influence(patch) {
    if (this.isRemoved(patch)) {
      return new Map([...this.changes].map(([other, change]) => [other, change[patch]]));
    }
    const change = [...(this.changes.get(patch) ?? []).entries()];
    return new Map(change.filter(([other]) => this.isRemoved(other)));
  }
}

/**
 * The patches of the largest values, largest first.
 * @param {Values} values
 * @param {number} count
 * @returns {[patch: number, value: number][]}
 */
export function strongest(values, count) {
  return [...values].sort(([, a], [, b]) => b - a).slice(0, count);
}

/**
 * The removed patch nearest to the centre; the centre's own if none is removed.
 * @param {string[]} mask
 */
export function centralPatch(mask) {
  const [h, w] = [mask.length, mask[0].length];
  const [y, x] = [(h - 1) / 2, (w - 1) / 2];
  const cells = mask.flatMap((row, i) => [...row].map((cell, j) =>
    ({ patch: i * w + j, removed: cell === '1', far: (i - y) ** 2 + (j - x) ** 2 })));
  cells.sort((a, b) => Number(b.removed) - Number(a.removed) || a.far - b.far);
  return cells[0].patch;
}
