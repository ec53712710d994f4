import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fromPicture } from '../../app/stage/drawing.js';
import { Mask } from '../../app/stage/mask.js';
import { PRESETS } from '../../app/stage/presets.js';

test('rows go in and come out', () => {
  const mask = Mask.fromRows(['010', '110']);
  assert.deepEqual([mask.h, mask.w, mask.count, mask.ratio], [2, 3, 3, 0.5]);
  assert.deepEqual(mask.rows, ['010', '110']);
});

test('rows that are no mask of the grid are refused', () => {
  const mask = new Mask([2, 2]);
  for (const rows of [[], ['00'], ['00', '0'], ['00', '02'], ['00', '00', '00']]) {
    assert.throws(() => mask.set(rows), RangeError);
  }
  assert.throws(() => Mask.fromRows([]), RangeError);
  assert.throws(() => Mask.fromRows(['11']), /leave one visible/);
});

test('patches are removed and shown', () => {
  const mask = new Mask([2, 3]);
  assert.equal(mask.paint([1, 4], 1), true);
  assert.deepEqual(mask.rows, ['010', '010']);
  assert.equal(mask.paint([0, 1], 0), true);
  assert.deepEqual(mask.rows, ['000', '010']);
});

test('the last visible patch stays, and it is told', () => {
  const mask = Mask.fromRows(['01', '11']);
  assert.equal(mask.paint([1, 2], 1), true);
  assert.equal(mask.paint([0], 1), false);
  assert.equal(mask.set(['11', '11']), false);
  assert.deepEqual(mask.rows, ['01', '11']);
  assert.equal(new Mask([2, 2]).invert(), false);

  const fresh = new Mask([1, 4]);
  assert.equal(fresh.paint([3, 1, 2, 0], 1), false);
  assert.deepEqual(fresh.rows, ['0111']);
});

test('everything is shown, removed but for one patch, and inverted', () => {
  const mask = Mask.fromRows(['010', '110']);
  assert.equal(mask.invert(), true);
  assert.deepEqual(mask.rows, ['101', '001']);
  assert.equal(mask.fill(1), false);
  assert.equal(mask.count, 5);
  assert.equal(mask.fill(0), true);
  assert.equal(mask.count, 0);
});

/** @typedef {keyof typeof PRESETS} Name */

test('presets', () => {
  const mask = new Mask([4, 5]);
  /** @param {Name} name */
  const rows = (name) => {
    assert.equal(mask.preset(name), true);
    return mask.rows;
  };
  assert.deepEqual(rows('centre'), ['00000', '01110', '01110', '00000']);
  assert.deepEqual(rows('all_but_centre'), ['11111', '10001', '10001', '11111']);
  assert.deepEqual(rows('border'), ['11111', '10001', '10001', '11111']);
  assert.deepEqual(rows('all_but_border'), ['00000', '01110', '01110', '00000']);
  assert.deepEqual(rows('left'), ['11000', '11000', '11000', '11000']);
  assert.deepEqual(rows('right'), ['00011', '00011', '00011', '00011']);
  assert.deepEqual(rows('top'), ['11111', '11111', '00000', '00000']);
  assert.deepEqual(rows('bottom'), ['00000', '00000', '11111', '11111']);
  assert.deepEqual(rows('checkerboard'), ['01010', '10101', '01010', '10101']);
});

test('presets of 14 x 14 patches', () => {
  const counts = /** @type {Name[]} */ (Object.keys(PRESETS)).map((name) => {
    const mask = new Mask([14, 14]);
    assert.equal(mask.preset(name), true);
    return [name, mask.count];
  });
  assert.deepEqual(Object.fromEntries(counts), {
    centre: 36, border: 96, left: 98, right: 98, top: 98, bottom: 98, checkerboard: 98,
    all_but_centre: 160, all_but_border: 100,
  });
});

test('a preset that would remove everything is refused', () => {
  const mask = Mask.fromRows(['01', '00']);
  assert.equal(mask.preset('border'), false);
  assert.deepEqual(mask.rows, ['01', '00']);
});

/**
 * @param {number[][]} greys
 * @param {number} alpha
 */
function picture(greys, alpha = 255) {
  const data = greys.flat().flatMap((grey) => [grey, grey, grey, alpha]);
  return { data: Uint8ClampedArray.from(data), width: greys[0].length, height: greys.length };
}

test('a patch is removed if more than half of it is not black', () => {
  const drawn = picture([[255, 0, 1, 255], [0, 255, 90, 0]]);
  assert.deepEqual(fromPicture(drawn, [1, 2]), ['01']);
  assert.deepEqual(fromPicture(drawn, [2, 4]), ['1011', '0110']);
});

test('pictures need not be whole patches', () => {
  // Of the two halves of three pixels, each has one and a half.
  assert.deepEqual(fromPicture(picture([[255, 0, 0]]), [1, 2]), ['10']);
  assert.deepEqual(fromPicture(picture([[0, 255, 0]]), [1, 2]), ['00']);
  assert.deepEqual(fromPicture(picture([[0, 255]]), [2, 5]), ['00011', '00011']);
});

test('what is transparent is black', () => {
  assert.deepEqual(fromPicture(picture([[255, 255]], 0), [1, 2]), ['00']);
  assert.deepEqual(fromPicture(picture([[255, 255]], 128), [1, 2]), ['11']);
});
