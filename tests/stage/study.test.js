import assert from 'node:assert/strict';
import { test } from 'node:test';

import { centralPatch, strongest, Study } from '../../app/stage/study.js';

const MASK = ['0101', '1111', '1011'];

/** A study of `MASK`, in which nothing but the mask matters. */
function study() {
  const view = { original: '', reconstruction: '', mask: MASK, facts: {}, settings: {},
    image: { path: '' }, example: null };
  return new Study(view, []);
}

test('the pin starts at the removed patch nearest to the centre', () => {
  assert.equal(centralPatch(MASK), 5);
  assert.equal(centralPatch(['101', '101', '101']), 3);
  assert.equal(centralPatch(['000', '000', '000']), 4);
  assert.equal(study().pin, 5);
});

test('a removed patch depends on visible ones, and a visible one feeds removed ones', () => {
  const found = study();
  assert.equal(found.visible, 3);
  assert.ok(found.empty);
  found.changes.set(0, [9, 1, 9, 2, 3, 4, 5, 6, 7, 9, 8, 9]);
  found.changes.set(9, [9, 0, 9, 1, 1, 1, 1, 1, 1, 9, 1, 1]);
  assert.deepEqual([...found.influence(4)], [[0, 3], [9, 1]]);
  assert.deepEqual([...found.influence(0).keys()], [1, 3, 4, 5, 6, 7, 8, 10, 11]);
  assert.equal(found.influence(0).get(10), 8);
  // It has not been left out yet.
  assert.equal(found.influence(2).size, 0);
});

test('attention is of the pinned patch or none', () => {
  const found = study();
  found.attention = { patch: 5, decoder: [], encoder: null, visible: [] };
  assert.equal(found.pinned, found.attention);
  found.pin = 6;
  assert.equal(found.pinned, null);
});

test('the strongest come first, no more than asked for', () => {
  const values = new Map([[3, 0.1], [1, 0.5], [7, 0.3], [2, 0.5]]);
  assert.deepEqual(strongest(values, 3), [[1, 0.5], [2, 0.5], [7, 0.3]]);
  assert.deepEqual(strongest(new Map(), 3), []);
});
