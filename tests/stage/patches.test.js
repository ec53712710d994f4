import assert from 'node:assert/strict';
import { test } from 'node:test';

import { patchAt, steppedTo } from '../../app/stage/patches.js';

test('a point outside of the picture is at the nearest patch', () => {
  assert.deepEqual(patchAt([1.9, 2], [3, 4]), [1, 2]);
  assert.deepEqual(patchAt([-0.1, 4], [3, 4]), [0, 3]);
  assert.deepEqual(patchAt([3, -7], [3, 4]), [2, 0]);
});

test('arrow keys lead to the next patch and not over the edge; other keys lead nowhere', () => {
  assert.deepEqual(steppedTo('ArrowUp', [1, 2], [3, 4]), [0, 2]);
  assert.deepEqual(steppedTo('ArrowUp', [0, 2], [3, 4]), [0, 2]);
  assert.deepEqual(steppedTo('ArrowDown', [2, 2], [3, 4]), [2, 2]);
  assert.deepEqual(steppedTo('ArrowLeft', [1, 1], [3, 4]), [1, 0]);
  assert.deepEqual(steppedTo('ArrowRight', [1, 3], [3, 4]), [1, 3]);
  assert.equal(steppedTo('a', [1, 1], [3, 4]), null);
});
