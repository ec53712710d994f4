import assert from 'node:assert/strict';
import { test } from 'node:test';

import { difference } from '../../app/stage/difference.js';

/** @param {number[]} greys a row of pixels, of which the first colour is one more */
function row(greys) {
  const data = Uint8ClampedArray.from(greys.flatMap((grey) => [grey + 1, grey, grey, 255]));
  return { data, width: greys.length, height: 1 };
}

test('only pixels that both removed are compared', () => {
  const found = difference(row([10, 10, 10, 10]), row([13, 40, 4, 10]), [['1011'], ['1010']]);
  assert.deepEqual([...found.values], [3, NaN, 6, NaN]);
  assert.deepEqual([found.mean, found.max, found.share], [4.5, 6, 0.5]);
});

test('grids of other patch sizes are laid over each other', () => {
  const found = difference(row([0, 0, 0, 0]), row([1, 2, 3, 4]), [['01'], ['1110']]);
  assert.deepEqual([...found.values], [NaN, NaN, 3, NaN]);
});

test('where nothing was removed by both, there is nothing to compare', () => {
  const found = difference(row([0, 9]), row([5, 5]), [['10'], ['01']]);
  assert.deepEqual([...found.values], [NaN, NaN]);
  assert.deepEqual([found.mean, found.max, found.share], [0, 0, 0]);
});
