import assert from 'node:assert/strict';
import { test } from 'node:test';

import { removedBoxes, shownPart } from '../../app/stage/geometry.js';

test('removed patches cover the whole part, without gaps or overlaps', () => {
  const boxes = removedBoxes(['111', '111', '111', '111'], { x: 3, y: 1, width: 100, height: 78 });
  const covered = new Set();
  for (const { x, y, width, height } of boxes) {
    for (let i = y; i < y + height; ++i) {
      for (let j = x; j < x + width; ++j) {
        assert.ok(!covered.has(`${i} ${j}`));
        covered.add(`${i} ${j}`);
      }
    }
  }
  assert.equal(covered.size, 100 * 78);
  assert.ok(covered.has('1 3') && covered.has('78 102'));
});

test('visible patches are left out', () => {
  const boxes = removedBoxes(['01', '10'], shownPart([20, 10], 'squash', 224));
  assert.deepEqual(boxes, [
    { x: 10, y: 0, width: 10, height: 5 }, { x: 0, y: 5, width: 10, height: 5 },
  ]);
});
