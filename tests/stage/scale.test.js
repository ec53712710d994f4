import assert from 'node:assert/strict';
import { test } from 'node:test';

import { quantile, ticksOver } from '../../app/stage/scale.js';

test('ticks are round, evenly spaced and cover the range', () => {
  assert.deepEqual(ticksOver(16.9, 25.3, 5), [16, 18, 20, 22, 24, 26]);
  assert.deepEqual(ticksOver(0, 24.7, 5), [0, 5, 10, 15, 20, 25]);
  assert.deepEqual(ticksOver(0, 0.3, 3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(ticksOver(-3, 4, 4), [-4, -2, 0, 2, 4]);
});

test('any range gets few ticks around it', () => {
  for (let i = 1; i < 2000; ++i) {
    const low = Math.sin(i) * 10 ** (i % 7 - 3);
    const high = low + (1 + Math.cos(3 * i)) * 10 ** (i % 5 - 3);
    const ticks = ticksOver(low, high, 5);
    const slack = 1e-6 * (ticks[1] - ticks[0]);
    assert.ok(ticks.length >= 2 && ticks.length <= 6, `${ticks}`);
    assert.ok(ticks[0] <= low + slack && ticks[ticks.length - 1] >= high - slack,
      `${ticks} for ${low} to ${high}`);
  }
});

test('a single value lies between two ticks', () => {
  assert.deepEqual(ticksOver(20, 20, 5), [20, 20.1]);
  assert.deepEqual(ticksOver(0.34, 0.34, 5), [0.3, 0.4]);
});

test('a quantile leaves out what has no value', () => {
  assert.equal(quantile(Float32Array.of(NaN, 3, 1, 2, NaN), 1), 3);
  assert.equal(quantile(Float32Array.of(NaN, 3, 1, 2, NaN), 0.5), 2);
  assert.equal(quantile(Float32Array.of(10, 9, 2), 0), 2);
  assert.equal(quantile(Float32Array.of(NaN), 0.5), 0);
});
