// As much of a page as the modules need that ask the server.

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
