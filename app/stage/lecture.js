// The lecture: eight steps, each a sentence and settings of the page's own controls.

import { button, element, fill } from './elements.js';
import { Mask } from './mask.js';
import { stage } from './stage.js';

/**
 * @typedef {object} Step
 * @property {string} shows what is not folded away: panels by name, `tabs`, `editor`, and `lines`
 *   between the patches
 * @property {number} [ratio] of the mask
 * @property {import('./masking.js').Strategy} [strategy] of the mask
 * @property {keyof typeof import('./presets.js').PRESETS} [preset] an own mask in its place
 * @property {string} [tab] to open, whose part asks by itself
 * @property {string} [part] that gets ready by itself, if it is in no tab
 */

const EXAMPLE = 'cat';
const SEED = 2;
/** Between checks whether an answer has come. */
const CHECK_MILLISECONDS = 50;

/** By the order of the sentences in the locales. @type {Step[]} */
const STEPS = [
  { shows: 'original masked lines', ratio: 0.05 },
  { shows: 'masked' },
  { shows: 'masked reconstruction pasted' },
  { shows: 'original masked pasted', ratio: 0.95 },
  { shows: 'original masked pasted', strategy: 'block' },
  { shows: 'masked tabs', tab: 'inside' },
  { shows: 'original pasted tabs', tab: 'doubt' },
  { shows: 'masked pasted editor', preset: 'centre', part: 'editor' },
];

/** Presenters send Page Up and Page Down. @type {Record<string, number>} */
const KEYS = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 };

// What takes the arrow keys itself.
const FIELDS = 'input, select, textarea, [role=application], [role=tab]';

// Survives a change of language.
/** Number of the step on show; 0 without a lecture. */
let at = 0;
/** What brings the page back as it was. @type {Parameters<typeof stage.open>[0] | null} */
let before = null;
/** The address before. */
let address = '';
/** Whether the panels show what the step asks for. */
let settled = false;
/** Why they cannot, in a sentence. */
let problem = '';

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Lecture(host);
}

class Lecture {
  waits = false;

  /** @param {import('./stage.js').Host} host */
  constructor({ element: section, texts, signal }) {
    this.texts = texts;
    this.begin = button(texts.begin, () => { this.go(1); this.next.focus(); },
      { class: 'begin', title: texts.hint });
    this.sentence = element('p', {
      class: 'sentence', 'aria-live': 'polite', role: 'heading', 'aria-level': '1',
    });
    this.count = element('span', { class: 'count' });
    this.links = STEPS.map((_, i) => element('a', {
      href: addressOf(i + 1), 'aria-label': this.countOf(i + 1),
    }, String(i + 1)));
    this.back = button(texts.back, () => this.go(at - 1), { class: 'back' });
    this.next = button(texts.next, () => this.go(at + 1), { class: 'next' });
    this.running = element('div', { class: 'running', role: 'region', 'aria-label': texts.begin },
      this.sentence,
      element('nav', { class: 'bar', 'aria-label': texts.steps }, this.back, this.count,
        element('span', { class: 'links' }, ...this.links), this.next,
        button(texts.end, () => this.end(), { class: 'end', title: texts.end_hint })));
    section.append(this.begin, this.running);
    document.addEventListener('keydown', (event) => this.key(event), { signal });
    document.addEventListener('pointerup', () => this.release(), { signal });
    stage.addEventListener('view', () => this.viewed(), { signal });
    window.addEventListener('hashchange', () => this.linked(), { signal });
    this.draw();
    this.linked();
  }

  /** @param {number} step */
  countOf(step) {
    return fill(this.texts.count, { step, steps: STEPS.length });
  }

  /** Open the step that the page's address names; end the lecture at any other address. */
  linked() {
    const step = /^#lecture=(\d+)$/.exec(location.hash)?.[1];
    if (step) this.go(Number(step));
    else this.leave();
  }

  /** @param {number} step is brought into range */
  go(step) {
    step = Math.min(Math.max(step, 1), STEPS.length);
    if (step === at) {
      history.replaceState(history.state, '', addressOf(at));
      return;
    }
    if (!at) address = location.hash.startsWith('#lecture') ? addressOf(0) : location.href;
    at = step;
    history.replaceState(history.state, '', addressOf(at));
    stage.want('');
    settled = false;
    problem = '';
    this.proceed();
    this.draw();
    scrollTo(0, 0);
  }

  /** Set the step, or have its picture where there is none. */
  async proceed() {
    if (this.waits) return;
    this.waits = true;
    // What the visitor asked for last is what the end brings back.
    while (at && !before && isPending()) {
      await new Promise((later) => setTimeout(later, CHECK_MILLISECONDS));
    }
    this.waits = false;
    if (!at) return;
    if (stage.view) this.set();
    // The first view is on its way where the example is chosen.
    else if (chosen() !== EXAMPLE) this.open({ example: EXAMPLE });
    this.draw();
  }

  /** @param {Parameters<typeof stage.open>[0]} settings */
  async open(settings) {
    const step = at;
    const found = await stage.open(settings);
    if (!found || step !== at) return;
    problem = found;
    this.draw();
  }

  /** Set the page's controls to the step's. */
  set() {
    const view = /** @type {import('./stage.js').View} */ (stage.view);
    const { settings, image } = view;
    before ??= { example: chosen(), image, request: settings, tab: tab() };
    const { ratio = 0.75, strategy = 'random', preset, tab: wanted } = STEPS[at - 1];
    const own = Mask.fromRows(view.mask);
    if (preset) own.preset(preset);
    const mask = { ratio, strategy, seed: SEED, rows: preset ? own.rows : [], drawing: '' };
    this.open({
      example: chosen() === EXAMPLE ? undefined : EXAMPLE, tab: wanted,
      request: { ...settings, fit: 'crop', image_size: null, mask },
    });
    this.settle();
  }

  viewed() {
    if (!at) return;
    if (before) this.settle();
    else this.proceed();
    this.draw();
  }

  /** See whether the view on show is the step's. */
  settle() {
    const step = STEPS[at - 1];
    const shown = stage.view && isOf(stage.view.settings, step) && chosen() === EXAMPLE;
    if (settled || !shown) return;
    settled = true;
    stage.want(step.tab ?? step.part ?? '');
  }

  /** Bring the page back as it was. */
  end() {
    if (!at) return;
    history.replaceState(history.state, '', address);
    if (before) stage.open(before);
    this.leave();
    this.begin.focus();
  }

  /** End it with the page as it is. */
  leave() {
    at = 0;
    before = null;
    stage.want('');
    this.draw();
  }

  draw() {
    const { dataset } = /** @type {HTMLElement} */ (
      document.querySelector(':has(> #header)'));
    this.begin.hidden = at > 0;
    this.running.hidden = !at;
    if (!at) {
      delete dataset.lecture;
      return;
    }
    dataset.lecture = STEPS[at - 1].shows;
    this.sentence.textContent = problem || fill(this.texts.sentences[at - 1], this.figures());
    this.sentence.setAttribute('aria-busy', String(!settled && !problem));
    this.count.textContent = this.countOf(at);
    this.links.forEach((link, i) => {
      if (i + 1 === at) link.setAttribute('aria-current', 'step');
      else link.removeAttribute('aria-current');
    });
    this.back.setAttribute('aria-disabled', String(at === 1));
    this.next.setAttribute('aria-disabled', String(at === STEPS.length));
  }

  /** Numbers of the view on show, if it is the step's. */
  figures() {
    const { visible, patches } = stage.view?.facts ?? {};
    const figures = {
      patches, visible, removed: patches - visible, percent: Math.round(100 - 100 * visible / patches),
    };
    return settled ? figures : Object.fromEntries(Object.keys(figures).map((name) => [name, '…']));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (!at || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    const { key, target } = event;
    if (key === 'Escape') this.end();
    if (!(key in KEYS) || (target instanceof Element && target.closest(FIELDS))) return;
    event.preventDefault();
    this.go(at + KEYS[key]);
  }

  /** Give the arrow keys back to the lecture, after a stroke or a slider was moved. */
  release() {
    const { activeElement: focused } = document;
    if (!at || !focused?.matches('input[type=range], [role=application]')) return;
    /** @type {HTMLElement | SVGElement} */ (focused).blur();
  }
}

/**
 * Whether a request is a step's; an own mask may be another than the step began with.
 * @param {Record<string, any>} request
 * @param {Step} step
 */
function isOf({ mask, fit, image_size: size }, { ratio = 0.75, strategy = 'random', preset }) {
  const is = [mask.ratio, mask.strategy, mask.seed, mask.rows.length > 0, fit, size];
  return is.join() === [ratio, strategy, SEED, Boolean(preset), 'crop', null].join();
}

/**
 * The page's address at a step; 0 is none.
 * @param {number} step
 */
function addressOf(step) {
  return location.pathname + location.search + (step ? `#lecture=${step}` : '');
}

/** Whether the answer to what the controls say is not there yet. */
function isPending() {
  const { mask, view } = stage;
  return mask.join() !== (view?.mask ?? []).join()
    || Boolean(document.querySelector('#facts .pending'));
}

/** Name of the example on show. */
function chosen() {
  return document.querySelector('#examples [aria-pressed=true]')?.getAttribute('data-name')
    ?? undefined;
}

/** Name of the tab on show. */
function tab() {
  return document.querySelector('#tabs [role=tab][aria-selected=true]')
    ?.getAttribute('data-tab-id') ?? undefined;
}
