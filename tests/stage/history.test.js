import assert from 'node:assert/strict';
import { test } from 'node:test';

import { History } from '../../app/stage/history.js';
import { Mask } from '../../app/stage/mask.js';

test('undo and redo give back the same rows', () => {
  const history = new History(['00']);
  history.push(['01']);
  history.push(['10']);
  assert.deepEqual(history.undo(), ['01']);
  assert.deepEqual(history.undo(), ['00']);
  assert.equal(history.undo(), null);
  assert.deepEqual(history.rows, ['00']);
  assert.deepEqual([history.canUndo, history.canRedo], [false, true]);
  assert.deepEqual(history.redo(), ['01']);
  assert.deepEqual(history.redo(), ['10']);
  assert.equal(history.redo(), null);
  assert.deepEqual([history.canUndo, history.canRedo], [true, false]);
});

test('a new state takes the place of those that were undone', () => {
  const history = new History(['000']);
  history.push(['001']);
  history.push(['010']);
  history.undo();
  history.push(['100']);
  assert.equal(history.redo(), null);
  assert.deepEqual(history.undo(), ['001']);
});

test('the present state is not added again', () => {
  const history = new History(['00']);
  history.push(['01']);
  history.undo();
  history.push(['00']);
  assert.equal(history.canUndo, false);
  assert.equal(history.canRedo, true);
});

test('the last 200 states are kept', () => {
  const history = new History(['0'.repeat(8)]);
  for (let state = 1; state <= 250; ++state) history.push([state.toString(2).padStart(8, '0')]);
  let steps = 0;
  while (history.undo()) ++steps;
  assert.equal(steps, 199);
  assert.deepEqual(history.rows, [(51).toString(2).padStart(8, '0')]);
});

test('what is done to rows afterwards changes no state', () => {
  const rows = ['00'];
  const history = new History(rows);
  rows[0] = '01';
  history.rows[0] = '10';
  assert.deepEqual(history.rows, ['00']);
});

test('a stroke is undone whole', () => {
  const mask = new Mask([2, 2]);
  const history = new History(mask.rows);
  mask.paint([0], 1);
  mask.paint([1], 1);
  history.push(mask.rows);
  mask.set(history.undo() ?? []);
  assert.deepEqual(mask.rows, ['00', '00']);
});
