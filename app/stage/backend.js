// How questions reach the server: Gradio's queue, as its other clients use it. A page without a
// server has another module in its place, with the same names: `web/backend-onnx.js`.

/** What can be shown of where a prediction came from, by the names of `origin.js`. */
export const ORIGINS = /** @type {const} */ (['influence', 'attention']);

/** Files that a film can be saved as. */
export const FILMS = ['webp', 'gif'];

/** Code that makes a view again, by the names of `snippets.js`. */
export const CODES = /** @type {const} */ (['python', 'client', 'curl']);

/** An error that the server put into words. */
export class AskError extends Error {}

/**
 * Ask more of a picture than its panels.
 * @param {{path: string}} image a file among the uploads
 * @param {object} plan see `app/experiments.py`
 * @param {AbortSignal} signal gives the question up, in the server too
 * @returns {AsyncGenerator<Record<string, any>>} parts of the answer as they come; whoever stops
 *   early gives the question up
 * @throws {AskError} if the server says why there is no answer; another error if it does not
 */
export async function* ask(image, plan, signal) {
  const address = new URL('gradio_api/call/ask', document.baseURI);
  const joined = await answered(await fetch(address, {
    method: 'POST',
    // The page's language, which need not be the browser's.
    headers: {
      'content-type': 'application/json', 'accept-language': document.documentElement.lang || '*',
    },
    body: JSON.stringify({data: [image, plan]}),
  }));
  const {event_id: id} = await joined.json();
  // The server ends a question as its open stream is closed: one that was never opened goes on.
  const opened = new AbortController();
  const stream = await answered(await fetch(`${address}/${id}`, {signal: opened.signal}));
  if (signal.aborted) opened.abort();
  signal.addEventListener('abort', () => opened.abort(), {once: true});
  let whole = false;
  try {
    for await (const {event, data} of messages(stream)) {
      if (event === 'generating') yield data[0];
      if (event === 'error') throw failure(data?.error ?? data);
      if (event === 'complete') {
        whole = true;
        return;
      }
    }
    throw new Error('the answer ended before it was complete');
  } finally {
    // The server closes a stream that is complete.
    if (!whole) opened.abort();
  }
}

/**
 * Address of a picture's file.
 * @param {string} path of an upload
 */
export function addressOf(path) {
  const encoded = path.split('/').map(encodeURIComponent).join('/');
  return new URL(`gradio_api/file=${encoded}`, document.baseURI).href;
}

/** @param {Response} response */
async function answered(response) {
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw failure(said.detail ?? response.statusText);
}

/** @param {unknown} said by the server; null where it has no words for its error */
function failure(said) {
  const told = typeof said === 'string' && said;
  return told ? new AskError(told) : new Error(`no answer: ${JSON.stringify(said)}`);
}

/**
 * Messages of a stream of server-sent events.
 * @param {Response} response
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
async function* messages(response) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (text + value).split('\n\n');
    text = parts.pop() ?? '';
    for (const part of parts) {
      const event = /^event: (.*)$/m.exec(part)?.[1] ?? '';
      const data = /^data: (.*)$/m.exec(part)?.[1];
      yield {event, data: data ? JSON.parse(data) : null};
    }
  }
}
