// Which patches a brush touches. Points are (y, x) in patches: (0, 0) is the upper left corner of
// the grid, and (0.5, 0.5) the middle of its first patch.

/** @typedef {[y: number, x: number]} Point */

// Of a patch. Two points so near each other are in the same patch, or in neighbours.
const STEP = 0.25;

/**
 * Patches under a brush that is drawn along a line, in the order that it touches them.
 *
 * The brush is a disc around the middle of the patch below it, so that it has the same shape
 * everywhere: radius 0.5 is one patch, 1 five of them, 1.5 nine. Nothing is touched outside.
 * @param {Point} from
 * @param {Point} to the same for a single touch
 * @param {number} radius in patches, from the middle of a patch to that of another
 * @param {import('./masking.js').Grid} grid
 * @returns {number[]} patches, numbered row by row, each once
 */
export function brushed(from, to, radius, [h, w]) {
  const disc = discOf(radius);
  const steps = Math.max(Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / STEP), 1);
  /** @type {Set<number>} */
  const patches = new Set();
  for (let step = 0; step <= steps; ++step) {
    const [y, x] = [0, 1].map((axis) => from[axis] + (to[axis] - from[axis]) * step / steps);
    for (const [down, across] of disc) {
      const [i, j] = [Math.floor(y) + down, Math.floor(x) + across];
      if (i >= 0 && i < h && j >= 0 && j < w) patches.add(i * w + j);
    }
  }
  return [...patches];
}

/**
 * The patches of a brush around the one below it, which comes first.
 * @param {number} radius
 */
function discOf(radius) {
  const reach = Math.floor(radius);
  const disc = [[0, 0]];
  for (let down = -reach; down <= reach; ++down) {
    for (let across = -reach; across <= reach; ++across) {
      if (Math.hypot(down, across) <= radius) disc.push([down, across]);
    }
  }
  return disc;
}
