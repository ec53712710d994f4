import assert from 'node:assert/strict';
import { test } from 'node:test';

import { brushed } from '../../app/stage/brush.js';
import { Mask } from '../../app/stage/mask.js';

/** @typedef {import('../../app/stage/brush.js').Point} Point */

/**
 * Rows of the patches that a brush touches.
 * @param {Point} from
 * @param {Point} to
 * @param {number} radius
 * @param {import('../../app/stage/masking.js').Grid} grid
 */
function touched(from, to, radius, grid) {
  const patches = brushed(from, to, radius, grid);
  assert.equal(new Set(patches).size, patches.length);
  const mask = new Mask(grid);
  mask.paint(patches, 1);
  return mask.rows;
}

test('a brush is a disc around the patch below it', () => {
  for (const point of /** @type {Point[]} */ ([[2.5, 2.5], [2, 2.99]])) {
    assert.deepEqual(touched(point, point, 0.5, [5, 5]),
      ['00000', '00000', '00100', '00000', '00000']);
    assert.deepEqual(touched(point, point, 1, [5, 5]),
      ['00000', '00100', '01110', '00100', '00000']);
    assert.deepEqual(touched(point, point, 1.5, [5, 5]),
      ['00000', '01110', '01110', '01110', '00000']);
    assert.deepEqual(touched(point, point, 2, [5, 5]),
      ['00100', '01110', '11111', '01110', '00100']);
  }
});

test('what is outside the grid is not touched', () => {
  assert.deepEqual(touched([0.1, -0.1], [0.1, -0.1], 1, [2, 3]), ['100', '000']);
  assert.deepEqual(brushed([-9, 3], [-9, 3], 1, [2, 3]), []);
});

test('a line leaves no gaps, in any direction', () => {
  for (let turn = 0; turn < 64; ++turn) {
    const angle = turn * Math.PI / 32;
    /** @type {Point} */
    const to = [20.3 + 19 * Math.sin(angle), 20.7 + 19 * Math.cos(angle)];
    const patches = brushed([20.3, 20.7], to, 0.5, [41, 41]);
    assert.equal(patches[0], 20 * 41 + 20);
    assert.equal(patches.at(-1), Math.floor(to[0]) * 41 + Math.floor(to[1]));
    for (let i = 1; i < patches.length; ++i) {
      const [before, here] = [patches[i - 1], patches[i]];
      const down = Math.abs(Math.floor(here / 41) - Math.floor(before / 41));
      const across = Math.abs(here % 41 - before % 41);
      assert.ok(Math.max(down, across) === 1, `from ${before} to ${here}`);
    }
  }
});

test('a line is as wide as the brush', () => {
  assert.deepEqual(touched([1.5, 1.5], [1.5, 5.5], 1, [3, 7]), ['0111110', '1111111', '0111110']);
});
