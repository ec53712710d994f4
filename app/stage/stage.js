// What the parts of the stage share: the view on show, the texts, and how to ask.

import {ask} from './backend.js';
import {drawMask, LEAST_RATIO, MOST_RATIO, STRATEGIES} from './masking.js';

/**
 * An answer on show, and what it is an answer to.
 * @typedef {object} View
 * @property {string} original address of an image
 * @property {string} reconstruction address of an image of the same size
 * @property {string[]} mask rows of 0 and 1, 1 = removed
 * @property {Record<string, any>} facts
 * @property {Record<string, any>} settings the request, as the server writes it
 * @property {{path: string}} image the picture's file among the uploads
 * @property {string | null} example name of the picture, if it is an example
 */

/**
 * What a part is drawn into.
 * @typedef {object} Host
 * @property {HTMLElement} element empty
 * @property {Record<string, any>} texts of the part, in the page's language, and those of every
 *   `question`
 * @property {AbortSignal} signal ends the part's listeners, as it is drawn anew
 * @property {Record<string, any>} props of Gradio's component
 * @property {(event: string) => void} trigger an event of the component
 * @property {(names: string[], changed: () => void) => void} watch values of the component, until
 *   `signal` ends it
 */

/**
 * Events: `view` when another view is on show, `preview` when the mask changed before its answer
 * is there, `opener` when settings can be opened, `ask` when the part named by its `detail` should
 * ask by itself, `busy` and `language`.
 */
class Stage extends EventTarget {
  /** @type {View | null} */
  view = null;

  /** Original and reconstruction of the view. @type {ImageBitmap[]} */
  images = [];

  /** The mask on show: the view's, or a newer one. @type {string[]} */
  mask = [];

  /** Whether the mask is newer than the view's. */
  ahead = false;

  /** @type {((settings: Record<string, any>) => Promise<string>) | null} */
  opener = null;

  /** The part that asks without a press of its button, as long as it is on show; '' for none. */
  wanted = '';

  /** By language. @type {Record<string, Promise<Record<string, any>>>} */
  #texts = {};

  constructor() {
    super();
    new MutationObserver(() => this.dispatchEvent(new Event('language')))
      .observe(document.documentElement, {attributeFilter: ['lang']});
  }

  get language() {
    return document.documentElement.lang.startsWith('zh') ? 'zh' : 'en';
  }

  /** Texts of all parts, fetched once for each language. */
  texts() {
    const {language} = this;
    const fetched = async () => {
      const response = await fetch(new URL(`locales/${language}.json`, document.baseURI));
      if (!response.ok) throw new Error(`no texts: ${response.status}`);
      return (await response.json()).stage;
    };
    this.#texts[language] ??= fetched().catch((error) => {
      delete this.#texts[language];
      throw error;
    });
    return this.#texts[language];
  }

  /**
   * Have a view on show.
   * @param {View | null} view
   * @param {ImageBitmap[]} images
   */
  show(view, images) {
    this.view = view;
    this.images = images;
    // A newer mask stays on show until its own answer is there.
    const rows = view?.mask ?? [];
    const alike = rows.length === this.mask.length && rows[0]?.length === this.mask[0]?.length;
    if (!alike || rows.join() === this.mask.join()) this.ahead = false;
    if (!this.ahead) this.mask = rows;
    this.dispatchEvent(new Event('view'));
  }

  /**
   * Show a mask whose answer is not there yet.
   * @param {string[]} rows
   */
  preview(rows) {
    this.mask = rows;
    this.ahead = true;
    this.dispatchEvent(new Event('preview'));
  }

  /**
   * Show the mask of the sliders at once; of values that the server refuses there is none.
   * @param {import('./masking.js').Strategy} strategy
   * @param {number | null} ratio null where a field is empty
   * @param {number | null} seed
   */
  draw(strategy, ratio, seed) {
    const allowed = STRATEGIES.includes(strategy)
      && typeof ratio === 'number' && ratio >= LEAST_RATIO && ratio <= MOST_RATIO
      && typeof seed === 'number' && Number.isSafeInteger(seed) && seed >= 0;
    if (!this.mask.length || !allowed) return;
    const grid = /** @type {[number, number]} */ ([this.mask.length, this.mask[0].length]);
    this.preview(drawMask(strategy, grid, ratio, seed).rows);
  }

  /**
   * Parts of the answer to a question about the view on show.
   * @param {Record<string, any>} question `kind` and its values; `request` if not the view's
   * @param {AbortSignal} signal
   */
  ask(question, signal) {
    if (!this.view) throw new Error('nothing is on show');
    return ask(this.view.image, {v: 1, request: this.view.settings, ...question}, signal);
  }

  /**
   * Set the page's controls.
   * @param {{example?: string, image?: object, request?: object, tab?: string}} settings
   * @returns {Promise<string>} why it cannot be done, in a sentence; then all stays as it is
   */
  async open(settings) {
    if (!this.opener) {
      await new Promise((there) => this.addEventListener('opener', there, {once: true}));
    }
    return await this.opener?.(settings) ?? '';
  }

  /**
   * Have a part ask by itself: now, or as soon as it is mounted.
   * @param {string} name of the part; '' for none
   */
  want(name) {
    this.wanted = name;
    if (name) this.dispatchEvent(new CustomEvent('ask', {detail: name}));
  }
}

export const stage = new Stage();

/**
 * Draw a part, and draw it anew when the page's language changes.
 * @param {string} name of its module
 * @param {Omit<Host, 'texts' | 'signal'>} host
 */
export async function mount(name, host) {
  const part = await import(`./${name}.js`);
  let ended = new AbortController();
  let turn = 0;
  const draw = async () => {
    const present = ++turn;
    // Without texts the part stays as it is, until the language changes again.
    const all = await stage.texts().catch(console.warn);
    if (!all || present !== turn) return;
    const {question, [name]: own} = all;
    const texts = {...own, question};
    ended.abort();
    ended = new AbortController();
    const {signal} = ended;
    /** @type {Host['watch']} */
    const watch = (names, changed) => host.watch(names, () => {
      if (!signal.aborted) changed();
    });
    const element = /** @type {HTMLElement} */ (host.element.querySelector('.part'));
    element.replaceChildren();
    // A part listens from the moment that it is mounted.
    const missed = stage.wanted;
    await part.mount({...host, element, texts, signal, watch});
    if (missed === name && stage.wanted === name) stage.want(name);
  };
  stage.addEventListener('language', draw);
  await draw();
}
