import assert from 'node:assert/strict';
import { test } from 'node:test';

import { drawn, page } from './page.js';

/** @type {string[]} */
const asked = [];
/** @type {Response[]} */
const answers = [];
const root = page(async (url) => {
  asked.push(url);
  return answers.shift() ?? Response.error();
});
const { mount, stage } = await import('../../app/stage/stage.js');

test('texts are fetched once for each language, and again after a failure', async () => {
  answers.push(Response.json({}, { status: 500 }), Response.json({ stage: { a: 'b' } }));
  await assert.rejects(stage.texts());
  const texts = [stage.texts(), stage.texts()];
  assert.deepEqual(await Promise.all(texts), [{ a: 'b' }, { a: 'b' }]);
  root.lang = 'zh-CN';
  answers.push(Response.json({ stage: { a: '乙' } }));
  assert.deepEqual(await stage.texts(), { a: '乙' });
  root.lang = 'en';
  assert.deepEqual(await stage.texts(), { a: 'b' });
  assert.deepEqual(asked.map((url) => url.slice(-7)), ['en.json', 'en.json', 'zh.json']);
});

test('values that the server refuses draw no mask', () => {
  const before = ['0000', '0000'];
  stage.mask = before;
  for (const [ratio, seed] of [[null, 2], [0.04, 2], [0.96, 2], [NaN, 2], [0.5, null], [0.5, 1.5],
    [0.5, -1]]) {
    stage.draw('random', ratio, seed);
    assert.equal(stage.mask, before);
  }
  stage.draw(/** @type {any} */ ('none'), 0.5, 2);
  assert.equal(stage.mask, before);
  stage.draw('random', 0.5, 2);
  assert.equal(stage.mask.join('').replaceAll('0', '').length, 4);
});

test('a part that is drawn anew hears no values any more', async () => {
  /** @type {(() => void)[]} */
  const changes = [];
  await mount('../../tests/stage/page', /** @type {any} */ ({
    element: { querySelector: () => ({ replaceChildren() {} }) },
    watch: (/** @type {string[]} */ _, /** @type {() => void} */ changed) => changes.push(changed),
  }));
  /** @type {string[]} */
  const heard = [];
  drawn[0].watch(['value'], () => heard.push('first'));
  stage.dispatchEvent(new Event('language'));
  await new Promise(setImmediate);
  drawn[1].watch(['value'], () => heard.push('second'));
  for (const changed of changes) changed();
  assert.deepEqual(heard, ['second']);
});
