// Masks to start from, by name: whether the patch in row i and column j of h x w is removed.

/** @typedef {(i: number, j: number, h: number, w: number) => boolean} Preset */

/** @type {Preset} */
const centre = (i, j, h, w) => inMiddle(i, h) && inMiddle(j, w);
/** @type {Preset} */
const border = (i, j, h, w) => {
  const thickness = Math.max(Math.round(Math.min(h, w) / 7), 1);
  return Math.min(i, j, h - 1 - i, w - 1 - j) < thickness;
};

export const PRESETS = Object.freeze({
  centre,
  border,
  left: /** @type {Preset} */ ((i, j, h, w) => j < Math.floor(w / 2)),
  right: /** @type {Preset} */ ((i, j, h, w) => j >= Math.ceil(w / 2)),
  top: /** @type {Preset} */ ((i, j, h) => i < Math.floor(h / 2)),
  bottom: /** @type {Preset} */ ((i, j, h) => i >= Math.ceil(h / 2)),
  checkerboard: /** @type {Preset} */ ((i, j) => (i + j) % 2 === 1),
  all_but_centre: /** @type {Preset} */ ((...place) => !centre(...place)),
  all_but_border: /** @type {Preset} */ ((...place) => !border(...place)),
});

/**
 * Whether a row or column is in the middle half.
 * @param {number} at
 * @param {number} length
 */
function inMiddle(at, length) {
  return Math.abs(2 * at + 1 - length) < length / 2;
}
