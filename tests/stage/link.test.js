import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fromFragment, toFragment } from '../../app/stage/link.js';

test('a link comes back as it was', () => {
  const link = { example: '猫', request: { v: 1, mask: { rows: ['01', '10'] } }, tab: 'film' };
  const fragment = toFragment(link, 'zh');
  assert.match(fragment, /^#s=[A-Za-z0-9_-]+&lang=zh$/);
  assert.deepEqual(fromFragment(fragment), link);
  const nothing = { example: undefined, request: undefined, tab: undefined };
  assert.deepEqual(fromFragment(toFragment({}, 'en')), nothing);
  assert.deepEqual(fromFragment(`#s=${btoa('{"v":1,"image":{"path":"a"}}')}`), nothing);
});

test('other fragments are no links', () => {
  for (const fragment of ['', '#', '#top', '#lang=zh']) assert.equal(fromFragment(fragment), null);
});

test('a damaged link is an error', () => {
  const whole = toFragment({ example: 'cat' }, 'en').split('&')[0];
  const otherVersion = `#s=${btoa('{"v":2}')}`;
  for (const fragment of [whole.slice(0, -3), '#s=', '#s=%25', '#s=bnVsbA', otherVersion]) {
    assert.throws(() => fromFragment(fragment));
  }
});
