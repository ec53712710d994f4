import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ask, AskError } from '../../app/stage/backend.js';
import { page } from './page.js';

/**
 * Ask a server whose stream holds these events and then stays open, or ends.
 * @param {string[]} events
 * @param {boolean} ends
 */
function asked(events, ends = true) {
  /** @type {AbortSignal | null | undefined} */
  let signal;
  page(async (url, options) => {
    if (url.endsWith('/ask')) return Response.json({ event_id: 'a' });
    signal = options.signal;
    const text = events.map((event) => `${event}\n\n`).join('');
    return new Response(new ReadableStream({
      start(stream) {
        stream.enqueue(new TextEncoder().encode(text));
        if (ends) stream.close();
      },
    }));
  });
  const answer = ask({ path: 'a.png' }, {}, new AbortController().signal);
  return { answer, closed: () => signal?.aborted };
}

/** @param {AsyncIterable<unknown>} answer */
async function all(answer) {
  const parts = [];
  for await (const part of answer) parts.push(part);
  return parts;
}

const PART = 'event: generating\ndata: [{"done": 1}]';

test('an answer is its parts', async () => {
  const { answer, closed } = asked([PART, 'event: heartbeat\ndata: null', 'event: complete']);
  assert.deepEqual(await all(answer), [{ done: 1 }]);
  assert.equal(closed(), false);
});

test('an answer that stops before its end is an error, without words of the server', async () => {
  for (const events of [[PART], [PART, 'event: error\ndata: {"error": null}']]) {
    const { answer } = asked(events);
    assert.deepEqual((await answer.next()).value, { done: 1 });
    await assert.rejects(answer.next(), (error) => !(error instanceof AskError));
  }
});

test('words of the server are the error', async () => {
  for (const data of ['{"error": "Too large."}', '"Too large."']) {
    const { answer } = asked([`event: error\ndata: ${data}`]);
    await assert.rejects(answer.next(), new AskError('Too large.'));
  }
});

test('the stream is closed as its reader leaves early', async () => {
  const { answer, closed } = asked([PART, PART], false);
  for await (const part of answer) {
    assert.deepEqual(part, { done: 1 });
    assert.equal(closed(), false);
    break;
  }
  assert.equal(closed(), true);
});
