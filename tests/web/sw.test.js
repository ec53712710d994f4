// The service worker alone: what it keeps, what it serves, what it leaves to the network.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import vm from 'node:vm';

const SOURCE = readFileSync(new URL('../../web/sw.js', import.meta.url), 'utf8');
const SCOPE = 'https://host.example/me/';
const HEADERS = { 'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer' };

/** @param {string} text */
const hashOf = (text) => createHash('sha256').update(text).digest('hex');

/** Caches of an origin, which outlive service workers. */
class Caches {
  /** @type {Map<string, Map<string, Response>>} */
  all = new Map();

  /** @param {string} name */
  async open(name) {
    const kept = this.all.get(name) ?? new Map();
    this.all.set(name, kept);
    return {
      match: async (/** @type {string} */ key) => kept.get(key)?.clone(),
      put: async (/** @type {string} */ key, /** @type {Response} */ answer) => kept.set(key, answer),
      keys: async () => [...kept.keys()].map((url) => ({ url })),
      delete: async (/** @type {{url: string}} */ { url }) => kept.delete(url),
    };
  }

  /** Paths in the cache of the site, without hashes. */
  get names() {
    return [...(this.all.get(`mae ${SCOPE}`) ?? new Map()).keys()]
      .map((key) => key.slice(SCOPE.length).split('?')[0]).sort();
  }
}

/** A service worker of a build, on a host. */
class Worker {
  /** @type {Map<string, (event: any) => void>} */
  listeners = new Map();

  /** What was fetched, as `PATH HOW`. @type {string[]} */
  fetched = [];

  /** The host's answers before its files; they are used up. @type {Record<string, Response[]>} */
  before = {};

  /**
   * @param {Record<string, string>} files of the build and of the host
   * @param {Record<string, string>} later
   * @param {Caches} caches
   */
  constructor(files, later = {}, caches = new Caches()) {
    this.host = { ...files, ...later };
    this.caches = caches;
    /** @param {Record<string, string>} all */
    const hashes = (all) => Object.fromEntries(
      Object.entries(all).map(([name, text]) => [name, hashOf(text)]),
    );
    const site = { headers: HEADERS, page: '<p>page', files: hashes(files), later: hashes(later) };
    const lines = SOURCE.split('\n');
    const at = lines.findIndex((line) => line.startsWith('const SITE = '));
    lines[at] = `const SITE = ${JSON.stringify(site)};`;
    vm.runInNewContext(lines.join('\n'), {
      self: {
        addEventListener: (/** @type {string} */ type, /** @type {any} */ hear) => {
          this.listeners.set(type, hear);
        },
        registration: { scope: SCOPE },
        clients: { claim: async () => {} },
      },
      caches, crypto, URL, Headers, Response, console: { warn() {} },
      fetch: async (/** @type {string} */ url, /** @type {RequestInit} */ { cache } = {}) => {
        const name = url.slice(SCOPE.length);
        this.fetched.push(`${name} ${cache}`);
        const text = this.host[name];
        return this.before[name]?.shift()
          ?? (text === undefined ? new Response('', { status: 404 }) : new Response(text));
      },
    });
  }

  /**
   * Let an event happen, and what it waits for.
   * @param {string} type
   * @param {object} details
   */
  async happen(type, details = {}) {
    /** @type {Promise<unknown>[]} */
    const lasting = [];
    /** @type {Promise<Response> | undefined} */
    let answer;
    this.listeners.get(type)?.({
      ...details,
      waitUntil: (/** @type {Promise<unknown>} */ done) => lasting.push(done),
      respondWith: (/** @type {Promise<Response>} */ given) => { answer = given; },
    });
    const given = await answer;
    await Promise.all(lasting);
    return given;
  }

  /**
   * @param {string} url in the site, or whole
   * @param {RequestInit} options
   * @param {string} mode
   */
  ask(url, options = {}, mode = 'cors') {
    const { method, headers } = new Request(new URL(url, SCOPE), options);
    const request = { url: new URL(url, SCOPE).href, method, headers, mode };
    return this.happen('fetch', { request });
  }
}

const FILES = { 'web/page.js': 'page', 'style.css': 'style' };
const LATER = { 'models/a.onnx': 'model' };

test('small files are fetched at once, others when they are first used', async () => {
  const worker = new Worker(FILES, LATER);
  await worker.happen('install');
  assert.deepEqual(worker.caches.names, Object.keys(FILES).sort());
  worker.fetched = [];
  assert.equal(await (await worker.ask('web/page.js'))?.text(), 'page');
  assert.deepEqual(worker.fetched, []);
  assert.equal(await (await worker.ask('models/a.onnx'))?.text(), 'model');
  assert.equal(await (await worker.ask('models/a.onnx'))?.text(), 'model');
  assert.deepEqual(worker.fetched, ['models/a.onnx no-cache']);
});

test('every answer has the headers of the build', async () => {
  const worker = new Worker(FILES, LATER);
  await worker.happen('install');
  for (const name of ['', 'index.html', 'web/page.js', 'models/a.onnx', 'models/a.onnx']) {
    const answer = await worker.ask(name);
    for (const [header, value] of Object.entries(HEADERS)) {
      assert.equal(answer?.headers.get(header), value, `${name}: ${header}`);
    }
  }
});

test('the document is the one of the build whatever the host serves', async () => {
  const worker = new Worker(FILES);
  for (const address of ['', 'index.html', '?theme=dark', 'index.html?theme=dark#s=1']) {
    const answer = await worker.ask(address, {}, 'navigate');
    assert.equal(await answer?.text(), '<p>page', address);
    assert.equal(answer?.headers.get('content-type'), 'text/html; charset=utf-8');
  }
  assert.deepEqual(worker.fetched, []);
});

test('the network answers what is no file of the build', async () => {
  const worker = new Worker(FILES);
  await worker.happen('install');
  assert.equal(await worker.ask('web/page.js', { method: 'HEAD' }), undefined);
  assert.equal(await worker.ask('web/page.js', { method: 'POST' }), undefined);
  assert.equal(await worker.ask('web/page.js', { headers: { Range: 'bytes=0-1' } }), undefined);
  assert.equal(await worker.ask('web/page.js?other'), undefined);
  assert.equal(await worker.ask('web/none.js'), undefined);
  assert.equal(await worker.ask('toString'), undefined);
  assert.equal(await worker.ask('../web/page.js'), undefined);
  assert.equal(await worker.ask('https://other.example/me/web/page.js'), undefined);
});

test('an old file in the cache of the browser is fetched anew', async () => {
  const worker = new Worker(FILES);
  worker.before['style.css'] = [new Response('old')];
  await worker.happen('install');
  assert.deepEqual(worker.fetched.filter((line) => line.startsWith('style')),
    ['style.css default', 'style.css reload']);
});

test('a build whose files the host does not have is not installed', async () => {
  const worker = new Worker(FILES);
  worker.host['style.css'] = 'of another build';
  await assert.rejects(worker.happen('install'), /style.css is not the file of this build/);
});

test('a wrong, failed or partial answer goes to the page and is not kept', async () => {
  const worker = new Worker(FILES, LATER);
  worker.before['models/a.onnx'] = [
    new Response('damaged'), new Response('model', { status: 404 }),
    new Response('model', { status: 206 }),
  ];
  for (const status of [200, 404, 206]) {
    assert.equal((await worker.ask('models/a.onnx'))?.status, status);
    assert.deepEqual(worker.caches.names, []);
  }
  await worker.ask('models/a.onnx');
  assert.deepEqual(worker.caches.names, ['models/a.onnx']);
});

test('a new build fetches what differs, and forgets the rest when it takes over', async () => {
  const old = new Worker({ ...FILES, 'web/gone.js': 'gone' }, LATER);
  await old.happen('install');
  await old.ask('models/a.onnx');
  await old.caches.open('mae https://host.example/me/too/').then((cache) => cache.put('x', new Response()));
  const next = new Worker({ ...FILES, 'style.css': 'new' }, LATER, old.caches);
  await next.happen('install');
  assert.deepEqual(next.fetched, ['style.css default']);
  // Pages that are open have the files of their own build.
  assert.equal(await (await old.ask('style.css'))?.text(), 'style');
  await next.happen('activate');
  assert.equal(await (await next.ask('style.css'))?.text(), 'new');
  assert.equal(await (await next.ask('models/a.onnx'))?.text(), 'model');
  assert.deepEqual(next.fetched, ['style.css default']);
  assert.deepEqual(next.caches.names, ['models/a.onnx', 'style.css', 'web/page.js']);
  // Another site of this host.
  assert.equal(next.caches.all.size, 2);
});
