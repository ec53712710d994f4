import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Visits } from '../../app/stage/visits.js';

/** @param {string | null} kept */
function storage(kept = null) {
  return {
    kept,
    getItem() { return this.kept; },
    /** @param {string} _ @param {string} value */
    setItem(_, value) { this.kept = value; },
  };
}

/** @param {number} seed */
function visit(seed) {
  const image = { path: '/cat.jpg' };
  return { request: { mask: { seed } }, example: 'cat', image, thumbnail: 'data:,', time: 0 };
}

/** @param {Visits} visits */
function seeds(visits) {
  return visits.all.map(({ request }) => request.mask.seed);
}

test('the latest is first, the same view is there once, and 24 are kept', () => {
  const visits = new Visits(storage());
  for (const seed of [1, 2, 2, 1]) visits.add(visit(seed));
  assert.deepEqual(seeds(visits), [2, 1]);
  for (let seed = 3; seed < 30; ++seed) visits.add(visit(seed));
  assert.equal(visits.all.length, 24);
  assert.equal(seeds(visits)[0], 29);
});

test('visits are read from the storage again', () => {
  const kept = storage();
  new Visits(kept).add(visit(1));
  const again = new Visits(kept);
  assert.deepEqual(again.all, [visit(1)]);
  again.clear();
  assert.deepEqual(new Visits(kept).all, []);
});

test('it goes on without a storage that works', () => {
  const visits = new Visits({
    getItem: () => '{broken',
    setItem() { throw new Error('full'); },
  });
  let changes = 0;
  visits.addEventListener('change', () => { ++changes; });
  visits.add(visit(1));
  assert.deepEqual(seeds(visits), [1]);
  assert.equal(changes, 1);
});
