// As much of a page as the modules need that ask the server, and a part.

/** @param {(url: string, options: RequestInit) => Promise<Response>} answer to each request */
export function page(answer) {
  const documentElement = { lang: 'en' };
  Object.assign(globalThis, {
    document: { documentElement, baseURI: 'http://page/' },
    MutationObserver: class { observe() {} },
    fetch: (/** @type {URL | string} */ url, options = {}) => answer(String(url), options),
  });
  return documentElement;
}

/** What the part was drawn into. @type {import('../../app/stage/stage.js').Host[]} */
export const drawn = [];

/** @param {import('../../app/stage/stage.js').Host} host */
export function mount(host) {
  drawn.push(host);
}
