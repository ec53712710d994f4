import assert from 'node:assert/strict';
import { test } from 'node:test';

import { answer } from '../../web/experiments.js';
import { doubtSeeds } from '../../web/uncertainty.js';

const description = /** @type {any} */ ({
  name: 'tiny', licence: 'MIT', target: 'pixels', mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
  patch_size: 4, grid: [2, 2], storage: 'int8', step: 3, steps: 9, config: {},
});
const mask = { strategy: 'random', ratio: 0.5, seed: 0, rows: [], drawing: '' };
const job = /** @type {any} */ ({
  description,
  settings: {
    v: 1, picture: '', mask, fit: 'crop', model: 'tiny', image_size: null, view: 'answer',
  },
  images: new Float32Array(3 * 8 * 8),
  grid: [2, 2],
  device: 'webgpu',
  models: [{ name: 'tiny', state: 'ready', bytes: 5 }],
});
const result = { pred: new Float32Array(4 * 48), changes: new Float32Array(0), seconds: 2 };

/** @param {string} kind */
const plan = (kind) => ({ v: 1, kind, request: {} });

test('facts have what the description and the run say', async () => {
  const { value } = await answer(plan('single'), job, async () => result).next();
  const { model, device, precision, step, steps, licence, view, seconds, visible } = value.facts;
  assert.deepEqual(
    { model, device, precision, step, steps, licence, view, seconds, visible },
    {
      model: 'tiny', device: 'webgpu', precision: 'int8', step: 3, steps: 9, licence: 'MIT',
      view: null, seconds: 2, visible: 2,
    },
  );
});

test('no run follows when an answer is given up', async () => {
  for (const kind of ['film', 'doubt', 'influence']) {
    let runs = 0;
    const run = async () => {
      runs += 1;
      return result;
    };
    for await (const part of answer(plan(kind), job, run)) {
      assert.equal(part.done, 1);
      break;
    }
    assert.equal(runs, kind === 'influence' ? 2 : 1);
  }
});

test('models are those of the caller', async () => {
  const { models } = job;
  const parts = answer(plan('models'), /** @type {any} */ ({ models }), async () => result);
  assert.deepEqual((await parts.next()).value, { models });
});

test('seeds after the last exact number stay exact', () => {
  assert.deepEqual(doubtSeeds(2 ** 53 - 1, 3), [2n ** 53n - 1n, 2n ** 53n, 2n ** 53n + 1n]);
});
