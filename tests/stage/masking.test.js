import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { STRATEGIES, drawMask, numVisible } from '../../app/stage/masking.js';
import { Mersenne } from '../../app/stage/mersenne.js';

// Drawn by `mae_core`; `test_modules.py` holds it to that.
const masks = JSON.parse(readFileSync(new URL('masks.json', import.meta.url), 'utf-8'));

for (const { strategy, grid, ratio, seed, ...expected } of masks) {
  test(`${strategy}, ${grid.join(' x ')}, seed ${seed}`, () => {
    assert.deepEqual(drawMask(strategy, grid, ratio, BigInt(seed)), expected);
  });
}

test('the generator is the reference implementation of MT19937', () => {
  const generator = new Mersenne(5489);
  assert.equal(generator.draw(), 3499211612);
  for (let i = 0; i < 9998; ++i) generator.draw();
  // The 10,000th draw of the default seed, as the C++ standard gives it.
  assert.equal(generator.draw(), 4123659995);
});

test('the low 32 bits of a seed count', () => {
  assert.equal(new Mersenne(2n ** 32n + 3n).draw(), new Mersenne(3).draw());
  assert.equal(new Mersenne(2 ** 53 - 1).draw(), new Mersenne(2n ** 32n - 1n).draw());
});

test('seeds that are not exact are refused', () => {
  for (const seed of [-1, 0.5, NaN, 2 ** 53, -1n, 2n ** 63n]) {
    assert.throws(() => new Mersenne(seed), RangeError);
  }
});

test('masks of one seed are nested, and counts exact', () => {
  for (const strategy of STRATEGIES) {
    const few = drawMask(strategy, [14, 14], 0.5, 7).rows.join('');
    const many = drawMask(strategy, [14, 14], 0.75, 7).rows.join('');
    assert.equal([...many].filter((cell) => cell === '1').length, 147);
    assert.ok([...few].every((cell, patch) => cell <= many[patch]));
  }
});

test('counts have no float error, and one patch stays', () => {
  assert.equal(numVisible(100, 0.9), 10);
  assert.equal(numVisible(196, 0.75), 49);
  assert.equal(numVisible(196, 1), 1);
  assert.throws(() => numVisible(196, 1.5), RangeError);
  assert.throws(() => numVisible(196, NaN), RangeError);
});

test('an unknown strategy is refused', () => {
  const unknown = /** @type {import('../../app/stage/masking.js').Strategy} */ ('toString');
  assert.throws(() => drawMask(unknown, [2, 2], 0.5, 1), /choose random, block, grid/);
});
