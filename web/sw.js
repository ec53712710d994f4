/*
 * Service worker: keeps the files of one build, so that a second visit fetches nothing but this
 * file, works without a network, and has the headers that threads need wherever it is hosted.
 *
 * Files are kept by path and SHA-256. A new build fetches what differs, and takes over once every
 * page of the build before is closed: no page that it serves has files of two builds. Nothing
 * hurries it: Chromium may take half a minute to replace a worker that was just asked for a file.
 */

/**
 * What web/build.py writes into the next line: the headers of every answer, the document, and the
 * SHA-256 of each file that is kept at once (files) or when it is first used (later). The document
 * is in here because some hosts add to the HTML that they serve.
 * @type {{ headers: Record<string, string>, page: string, files: Record<string, string>,
 *   later: Record<string, string> }}
 */
const SITE = { headers: {}, page: '', files: {}, later: {} };

/** @typedef {Event & { waitUntil(done: Promise<unknown>): void }} Lasting */
/** @typedef {Lasting & { request: Request, respondWith(answer: Promise<Response>): void }} Asked */
/**
 * TypeScript's types of pages and those of service workers exclude each other.
 * @typedef {object} ServiceWorkerScope
 * @property {(type: string, listener: (event: any) => void) => void} addEventListener
 * @property {{ scope: string }} registration
 * @property {{ claim(): Promise<void> }} clients
 */
const worker = /** @type {ServiceWorkerScope} */ (/** @type {unknown} */ (self));

const { scope } = worker.registration;
const HASHES = new Map(Object.entries({ ...SITE.files, ...SITE.later }));

// Other sites of the same origin share its caches.
const open = () => caches.open(`mae ${scope}`);

/** @param {string} name of a file @returns {string} where it is in the cache */
const keyOf = (name) => `${scope}${name}?${HASHES.get(name)}`;

worker.addEventListener('install', (/** @type {Lasting} */ event) => event.waitUntil(install()));
worker.addEventListener('activate', (/** @type {Lasting} */ event) => event.waitUntil(activate()));
worker.addEventListener('message', (/** @type {Lasting & { data: any }} */ event) => {
  if (event.data?.keep) event.waitUntil(keepAll(event.data.keep));
});
worker.addEventListener('fetch', (/** @type {Asked} */ event) => {
  const name = nameOf(event.request);
  if (name !== null) event.respondWith(answer(name, event));
});

async function install() {
  const cache = await open();
  await Promise.all(Object.keys(SITE.files).map((name) => fetchWhole(cache, name)));
}

/**
 * @param {Cache} cache
 * @param {string} name
 */
async function fetchWhole(cache, name) {
  if (await cache.match(keyOf(name))) return;
  // The browser may have an older file of that name.
  for (const how of /** @type {RequestCache[]} */ (['default', 'reload'])) {
    if (await keep(cache, name, await fetch(`${scope}${name}`, { cache: how }))) return;
  }
  throw new Error(`${name} is not the file of this build`);
}

/**
 * Keep an answer if it is the whole file that the build wrote.
 * @param {Cache} cache
 * @param {string} name
 * @param {Response} response
 * @returns {Promise<boolean>} whether it is
 */
async function keep(cache, name, response) {
  if (response.status !== 200) return false;
  const bytes = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  const hash = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (hash !== HASHES.get(name)) return false;
  const headers = { 'Content-Type': response.headers.get('Content-Type') ?? '' };
  await cache.put(keyOf(name), new Response(bytes, { headers }));
  return true;
}

/** Forget what this build does not have, and serve pages that are open already. */
async function activate() {
  const cache = await open();
  const kept = new Set(Array.from(HASHES.keys(), keyOf));
  const old = (await cache.keys()).filter((request) => !kept.has(request.url));
  await Promise.all(old.map((request) => cache.delete(request)));
  await worker.clients.claim();
}

/**
 * @param {Request} request
 * @returns {string | null} the file that is asked for, null if the network is to answer
 */
function nameOf({ method, url, headers, mode }) {
  const { origin, pathname, search } = new URL(url);
  const whole = method === 'GET' && !headers.has('Range');
  // Whatever follows the document's address, it must not come from another build than its files.
  const plain = search === '' || mode === 'navigate';
  if (!whole || !plain || !`${origin}${pathname}`.startsWith(scope)) return null;
  const name = `${origin}${pathname}`.slice(scope.length) || 'index.html';
  return name === 'index.html' || HASHES.has(name) ? name : null;
}

/**
 * @param {string} name
 * @param {Asked} event
 * @returns {Promise<Response>}
 */
async function answer(name, event) {
  if (name === 'index.html') {
    return withHeaders(new Response(SITE.page, { headers: { 'Content-Type': 'text/html; charset=utf-8' } }));
  }
  const cache = await open();
  const kept = await cache.match(keyOf(name));
  if (kept) return withHeaders(kept);
  const response = await fetch(`${scope}${name}`, { cache: 'no-cache' });
  // The page gets it as it comes; no room to keep it is no reason to fail.
  event.waitUntil(keep(cache, name, response.clone()).catch(console.warn));
  return withHeaders(response);
}

/**
 * Fetch what is not kept yet; one that is not the build's is left out.
 * @param {string[]} names of files
 */
async function keepAll(names) {
  const cache = await open();
  for (const name of names) {
    if (!HASHES.has(name) || await cache.match(keyOf(name))) continue;
    await fetch(`${scope}${name}`).then((response) => keep(cache, name, response))
      .catch(console.info);
  }
}

/** @param {Response} response @returns {Response} with the headers of the build */
function withHeaders(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(SITE.headers)) headers.set(name, value);
  return new Response(response.body, { status: response.status, headers });
}
