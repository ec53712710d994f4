// What was looked at in this visit. It is kept in the browser only, until its tab is closed.

const KEY = 'mae.visits';
const MOST = 24;

/**
 * @typedef {object} Visit
 * @property {Record<string, any>} request settings of the view
 * @property {string | null} example name, if the picture is one
 * @property {{path: string}} image
 * @property {string} thumbnail address that holds the picture itself
 * @property {number} time in milliseconds since 1970
 */

/** Event: `change`. */
export class Visits extends EventTarget {
  /** The latest first. @type {Visit[]} */
  all = [];

  /** @param {Pick<Storage, 'getItem' | 'setItem'>} storage */
  constructor(storage) {
    super();
    this.storage = storage;
    try {
      this.all = JSON.parse(storage.getItem(KEY) ?? '[]');
    } catch { /* It begins anew. */ }
  }

  /**
   * Add a visit, unless its view is there already: who walks through the history leaves it as it is.
   * @param {Visit} visit
   */
  add(visit) {
    const key = keyOf(visit.request);
    if (this.all.some(({ request }) => keyOf(request) === key)) return;
    this.keep([visit, ...this.all].slice(0, MOST));
  }

  clear() {
    this.keep([]);
  }

  /** @param {Visit[]} all */
  keep(all) {
    this.all = all;
    try {
      this.storage.setItem(KEY, JSON.stringify(all));
    } catch { /* Without room for it, it lasts as long as the page. */ }
    this.dispatchEvent(new Event('change'));
  }
}

/**
 * Equal for the same view.
 * @param {Record<string, any>} request
 */
export function keyOf(request) {
  return JSON.stringify(request);
}
