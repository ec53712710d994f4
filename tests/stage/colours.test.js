import assert from 'node:assert/strict';
import { test } from 'node:test';

import { colourOf, paintMap } from '../../app/stage/colours.js';

/**
 * Lightness in Oklab.
 * @param {number[]} colour
 */
function lightness(colour) {
  const [r, g, b] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return 0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s;
}

test('lightness rises evenly from dark to light', () => {
  const levels = Array.from({ length: 13 }, (_, i) => lightness(colourOf(i / 12)));
  const mean = (levels[12] - levels[0]) / 12;
  assert.ok(levels[0] < 0.3 && levels[12] > 0.9);
  for (let i = 0; i < 12; ++i) {
    const step = levels[i + 1] - levels[i];
    assert.ok(Math.abs(step / mean - 1) < 0.1, `step ${i} is ${step}, the mean ${mean}`);
  }
});

test('every colour is in sRGB', () => {
  for (let i = 0; i <= 1000; ++i) {
    const colour = colourOf(i / 1000);
    assert.ok(colour.every((part) => Number.isInteger(part) && part >= 0 && part <= 255), `${i}`);
  }
});

test('places outside the scale have the colours of its ends', () => {
  assert.deepEqual(colourOf(-1), colourOf(0));
  assert.deepEqual(colourOf(7), colourOf(1));
});

test('a map is painted row by row, and what has no value in two greys', () => {
  const image = { data: new Uint8ClampedArray(24), width: 3, height: 2 };
  paintMap(image, Float32Array.of(0, 2, 4, NaN, NaN, 1), 4);
  const pixels = Array.from({ length: 6 }, (_, at) => [...image.data.slice(4 * at, 4 * at + 4)]);
  assert.deepEqual(pixels[0], [...colourOf(0), 255]);
  assert.deepEqual(pixels[1], [...colourOf(0.5), 255]);
  assert.deepEqual(pixels[2], [...colourOf(1), 255]);
  assert.deepEqual(pixels[5], [...colourOf(0.25), 255]);
  for (const grey of [pixels[3], pixels[4]]) assert.equal(new Set(grey.slice(0, 3)).size, 1);
  assert.notDeepEqual(pixels[3], pixels[4]);
});

test('a map of nothing but zeros is dark', () => {
  const image = { data: new Uint8ClampedArray(4), width: 1, height: 1 };
  paintMap(image, Float32Array.of(0), 0);
  assert.deepEqual([...image.data], [...colourOf(0), 255]);
});

test('values and pixels are equally many', () => {
  const image = { data: new Uint8ClampedArray(16), width: 2, height: 2 };
  assert.throws(() => paintMap(image, new Float32Array(3), 1), /3 values for 2 x 2 pixels/);
});
