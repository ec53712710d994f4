import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Problem } from '../../web/problem.js';

test('a problem has the name of its text and the values in it', () => {
  const problem = new Problem('picture_small', { side: 3 });
  assert.ok(problem instanceof Error);
  assert.deepEqual([problem.text, problem.values], ['picture_small', { side: 3 }]);
});
