import assert from 'node:assert/strict';
import { test } from 'node:test';

import { readDescription } from '../../web/model.js';
import { Model } from '../../web/runtime.js';
import { Turns } from '../../web/turns.js';

const description = { grid: [2, 2], patch_size: 1 };

test('the session of a dropped model is released once nobody holds it', () => {
  let released = 0;
  const session = { release: () => { released += 1; } };
  const model = new Model(/** @type {any} */ ({}), /** @type {any} */ (session),
    /** @type {any} */ (description));
  model.hold();
  model.hold();
  model.drop();
  model.leave();
  assert.equal(released, 0);
  model.leave();
  assert.equal(released, 1);
});

test('what the panels wait for goes before what a question asks', async () => {
  const turns = new Turns();
  const { signal } = new AbortController();
  /** @type {string[]} */
  const order = [];
  const work = (/** @type {string} */ name) => async () => { order.push(name); };
  await Promise.all([
    turns.take(1, signal, work('first')), turns.take(1, signal, work('question')),
    turns.take(0, signal, work('panels')),
  ]);
  assert.deepEqual(order, ['first', 'panels', 'question']);
});

test('a place that is given up is nobody\'s', async () => {
  const turns = new Turns();
  const given = new AbortController();
  const { signal } = new AbortController();
  const first = turns.take(1, signal, async () => 1);
  const second = turns.take(1, given.signal, async () => 2);
  given.abort(new Error('given up'));
  await assert.rejects(second, /given up/);
  assert.deepEqual([await first, await turns.take(1, signal, async () => 3)], [1, 3]);
});

/** @param {object} said @returns {Uint8Array} an ONNX file that holds nothing else */
function fileOf(said) {
  const field = (/** @type {number} */ number, /** @type {Buffer} */ value) => {
    const [low, high] = [value.length & 127 | 128, value.length >> 7];
    return Buffer.concat([Buffer.from([number << 3 | 2, low, high]), value]);
  };
  const entry = Buffer.concat([
    field(1, Buffer.from('mae_web')), field(2, Buffer.from(JSON.stringify(said))),
  ]);
  return field(14, entry);
}

const sizes = {
  embed_dim: 192, depth: 12, num_heads: 3, decoder_embed_dim: 160, decoder_depth: 4,
  decoder_num_heads: 5, mlp_ratio: 4,
};
const said = {
  v: 1, name: 'mine', licence: null, target: 'pixels', mean: [0, 0, 0], std: [1, 1, 1],
  patch_size: 16, grid: [14, 14], storage: 'int8', step: null, steps: 10, config: sizes,
};

test('a description is read from a file', () => {
  assert.deepEqual(readDescription(fileOf(said)), said);
});

for (const [name, value] of Object.entries({
  name: '../x', target: 'both', mean: [0, 0], std: [1, 0, 1], patch_size: 1.5, grid: [14, 15],
  storage: 'int2', licence: 3, step: 'x', config: { ...sizes, depth: 2 ** 31 },
})) {
  test(`a description with another ${name} is refused`, () => {
    assert.throws(() => readDescription(fileOf({ ...said, [name]: value })), (error) => {
      const { text, values } = /** @type {import('../../web/problem.js').Problem} */ (error);
      return text === 'model_value' && values.name === name;
    });
  });
}
