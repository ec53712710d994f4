// How the model works on this picture: its stages in one diagram, walked through, and their cost.

import { button, element, fill } from './elements.js';
import { legend } from './legend.js';
import { Question, asking } from './question.js';
import { stage } from './stage.js';
import { CLASS_TOKEN, MASK_TOKEN, column, grid, plain, shade, thumbnail } from './tokens.js';

/**
 * What the server counted; see `mae_core.inside.stages`.
 * @typedef {object} Trace
 * @property {{name: string, block: number | null, shape: number[], flops: number}[]} stages
 * @property {number[]} grid_size
 * @property {number} mask_ratio
 * @property {number[]} ids_keep
 * @property {number[]} ids_restore
 * @property {number[]} encoder_ids
 * @property {number[][]} changes
 * @property {number} encoder_tokens
 * @property {number} encoder_tokens_all
 * @property {number} flops
 * @property {number} flops_all
 * @property {number} encoder_flops
 * @property {number} encoder_flops_all
 * @property {number} encoder_parameters
 * @property {number} decoder_parameters
 * @property {ImageBitmap[]} images original and reconstruction
 */

const STEPS = [
  'patches', 'shuffle', 'keep', 'encoder_block', 'decoder_embed', 'restore', 'decoder_block',
  'predict', 'price',
];
/** How long a step is on show, in milliseconds. */
/** Milliseconds that a view stays before it is asked about: a slider passes many. */
const REST = 300;
const STEP_TIME = 5000;

// These survive a change of language.
const question = new Question();
let at = 0;

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Inside(host);
}

class Inside {
  /** @type {Trace | null} */
  drawn = null;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  playing = undefined;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  resting = undefined;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { element: into, texts, signal } = host;
    this.into = into;
    this.texts = texts;
    const language = stage.language;
    this.whole = new Intl.NumberFormat(language);
    this.short = new Intl.NumberFormat(language, { maximumSignificantDigits: 3 });
    this.narrow = matchMedia('(max-width: 760px)');
    this.still = matchMedia('(prefers-reduced-motion: reduce)');
    this.again = button(texts.again, () => this.ask());
    this.cost = element('div', { class: 'cost' });
    this.play = button(texts.play, () => this.run(!this.playing), { class: 'main' });
    this.step = element('output', { class: 'count' });
    this.sentence = element('p', { class: 'sentence', role: 'status' });
    this.diagram = element('ol', { class: 'diagram', tabindex: '0', 'aria-label': texts.diagram });
    this.legend = element('div', { class: 'legend' });
    this.body = element('div', { class: 'body', hidden: '' }, this.cost,
      element('div', { class: 'walk' },
        element('div', { class: 'bar', title: texts.keys },
          button(texts.back, () => this.go(at - 1)), this.play,
          button(texts.next, () => this.go(at + 1)), this.step),
        this.sentence),
      this.diagram, this.legend);
    // Before `asking`, which moves the keyboard's focus to the button.
    question.addEventListener('change', () => this.show(), { signal });
    this.show();
    into.append(element('p', {}, texts.intro), asking(question, host, this.again), this.body);
    into.addEventListener('keydown', (event) => this.key(event));
    stage.addEventListener('view', () => this.update(), { signal });
    this.narrow.addEventListener('change', () => this.draw(), { signal });
    // A tab that is hidden asks nothing, and catches up when it is shown.
    const seen = new ResizeObserver(() => this.update());
    seen.observe(into);
    signal.addEventListener('abort', () => {
      clearTimeout(this.resting);
      seen.disconnect();
      this.run(false);
    });
    this.update();
  }

  /** Ask about the view on show once it stays, unless that has been done. */
  update() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      if (this.into.clientWidth && question.asked !== question.keyNow) this.ask();
    }, REST);
  }

  ask() {
    const { images } = stage;
    question.ask({ kind: 'inside' }, async (trace) => ({ ...trace, images }));
  }

  /** The newest answer. */
  get trace() {
    return /** @type {Trace | undefined} */ (question.parts.at(-1));
  }

  show() {
    this.again.hidden = !question.ended;
    this.body.classList.toggle('old', question.old);
    if (this.trace && this.trace !== this.drawn) this.draw();
  }

  draw() {
    const { trace } = this;
    this.body.hidden = !trace;
    if (!trace) return;
    this.drawn = trace;
    this.cost.replaceChildren(...this.bars(trace));
    const left = this.diagram.scrollLeft;
    this.diagram.replaceChildren(...this.stages(trace));
    this.diagram.scrollLeft = left;
    this.legend.replaceChildren(...this.colours(trace));
    this.mark();
  }

  /** @param {Trace} trace */
  bars(trace) {
    const { texts } = this;
    const rows = [
      [texts.encoder, trace.encoder_flops, trace.encoder_flops_all],
      [texts.whole, trace.flops, trace.flops_all],
    ].map(([name, flops, all]) => {
      const fillet = element('i');
      fillet.style.width = `${100 * Number(flops) / Number(all)}%`;
      return element('div', {}, element('span', {}, String(name)),
        element('span', { class: 'track', 'aria-hidden': 'true' }, fillet),
        element('span', {}, fill(texts.bar, {
          flops: this.giga(Number(flops)), all: this.giga(Number(all)),
        }), ' · ', element('strong', {}, this.less(Number(flops), Number(all)))));
    });
    return [
      element('h2', {}, fill(texts.cost, { percent: Math.round(100 * trace.mask_ratio) })),
      ...rows,
      element('p', { class: 'said' }, texts.unit, ' ', fill(texts.parameters, {
        encoder: this.whole.format(trace.encoder_parameters),
        decoder: this.whole.format(trace.decoder_parameters),
      })),
    ];
  }

  /** @param {number} flops */
  giga(flops) {
    return this.short.format(flops / 1e9);
  }

  /**
   * @param {number} flops
   * @param {number} all
   */
  less(flops, all) {
    if (flops === all) return this.texts.same;
    return fill(this.texts.less, { factor: (all / flops).toFixed(1) });
  }

  /** @param {Trace} trace */
  stages(trace) {
    const { texts } = this;
    const [original, reconstruction] = trace.images;
    const { grid_size: size, ids_keep: kept, ids_restore: places, encoder_ids: ids } = trace;
    const [, w] = size;
    const across = this.narrow.matches;
    const { from, to } = countsOf(trace).decoder_embed;
    /** @type {number[]} */
    const order = [];
    places.forEach((place, patch) => { order[place] = patch; });
    const isKept = (/** @type {number} */ patch) => places[patch] < kept.length;
    const patches = places.map((_, patch) => patch);
    const token = (/** @type {number} */ patch) =>
      isKept(patch) ? thumbnail(original, size, patch) : plain(MASK_TOKEN);
    const all = [plain(CLASS_TOKEN), ...patches.map(token)];
    // So that the picture below stays in its rows, the class token has one for itself.
    const restored = [...all.slice(0, 1), ...Array(w - 1).fill(() => {}), ...all.slice(1)];
    const most = mostOf(trace);
    /** @type {Record<string, HTMLElement[]>} */
    const drawn = {
      patches: [grid(texts.alt_patches, w, patches.map((i) => thumbnail(original, size, i)))],
      shuffle: [grid(texts.alt_shuffle, w, order.map((i) => {
        return thumbnail(original, size, i, isKept(i) ? 1 : 0.25);
      }))],
      keep: [column(texts.alt_keep, across, [all[0], ...ids.map(token)])],
      encoder_block: trace.changes.map((changes, block) => {
        const [least, highest] = [Math.min(...changes), Math.max(...changes)];
        const label = fill(texts.alt_encoder, {
          block: block + 1, least: this.short.format(least), most: this.short.format(highest),
        });
        const cells = changes.map((change) => shade(most ? change / most : 0));
        return this.block(block, column(label, across, [all[0], ...cells]));
      }),
      decoder_embed: [
        element('span', { class: 'arrow', 'aria-hidden': 'true' }, `${from} → ${to}`),
      ],
      restore: [grid(texts.alt_restore, w, restored)],
      decoder_block: trace.stages.filter(({ name }) => name === 'decoder_block')
        .map((_, block) => this.block(block, column(texts.alt_decoder, across, all))),
      predict: [grid(texts.alt_predict, w, patches.map((i) => {
        return thumbnail(reconstruction, size, i);
      }))],
    };
    return Object.entries(drawn).map(([name, pictures]) => {
      const flops = trace.stages.filter((one) => stepOf(one.name) === name)
        .reduce((sum, one) => sum + one.flops, 0);
      return element('li', { 'data-step': name },
        element('h2', {}, texts[name]),
        element('div', { class: 'drawn' }, ...pictures),
        element('p', {}, this.words('count', name, trace)),
        element('p', { class: 'said' }, flops ? fill(texts.flops, { flops: this.giga(flops) }) : ''));
    });
  }

  /**
   * @param {number} number of a block, from 0
   * @param {HTMLElement} canvas
   */
  block(number, canvas) {
    return element('figure', { title: fill(this.texts.block, { block: number + 1 }) }, canvas,
      element('figcaption', {}, String(number + 1)));
  }

  /**
   * A text about a step; of a model whose encoder gets a token for each patch, some are others.
   * @param {'count' | 'say'} kind
   * @param {string} step
   * @param {Trace} trace
   */
  words(kind, step, trace) {
    const { texts } = this;
    const every = trace.encoder_ids.length > trace.ids_keep.length;
    const name = `${kind}_${step}`;
    const values = step === 'price' ? {
      flops: this.giga(trace.encoder_flops), all: this.giga(trace.encoder_flops_all),
      less: this.less(trace.encoder_flops, trace.encoder_flops_all),
    } : Reflect.get(countsOf(trace), step);
    return fill((every && texts[`${name}_all`]) || (texts[name] ?? texts.count_tokens), values);
  }

  /** @param {Trace} trace */
  colours(trace) {
    const { texts } = this;
    const swatch = (/** @type {string} */ colour) => {
      const made = element('span', { class: 'swatch', 'aria-hidden': 'true' });
      made.style.background = colour;
      return made;
    };
    return [
      texts.legend, legend(['0', this.short.format(mostOf(trace))]), texts.legend_unit, swatch(CLASS_TOKEN), texts.class_token,
      swatch(MASK_TOKEN), texts.mask_token,
    ];
  }

  /** @param {number} step */
  go(step) {
    at = Math.min(Math.max(step, 0), STEPS.length - 1);
    if (at === STEPS.length - 1) this.run(false);
    this.mark();
    // The diagram alone: the page stays where the visitor has it.
    const place = /** @type {HTMLElement | null} */ (
      this.diagram.querySelector('[aria-current=step]'));
    if (place) {
      this.diagram.scrollTo({
        left: place.offsetLeft - (this.diagram.clientWidth - place.clientWidth) / 2,
        behavior: this.still.matches ? 'auto' : 'smooth',
      });
    }
  }

  /** Mark the stage of the step, and say what happens there. */
  mark() {
    const { trace } = this;
    if (!trace) return;
    const step = STEPS[at];
    for (const one of this.diagram.children) {
      const current = one.getAttribute('data-step') === step;
      one.setAttribute('aria-current', current ? 'step' : 'false');
    }
    this.cost.classList.toggle('current', step === 'price');
    this.step.textContent = fill(this.texts.step, { step: at + 1, steps: STEPS.length });
    const sentence = this.words('say', step, trace);
    if (this.sentence.textContent !== sentence) this.sentence.textContent = sentence;
  }

  /** @param {boolean} on */
  run(on) {
    clearInterval(this.playing);
    this.playing = undefined;
    if (on) {
      this.go(at === STEPS.length - 1 ? 0 : at);
      this.playing = setInterval(() => this.go(at + 1), STEP_TIME);
    }
    this.play.textContent = this.texts[on ? 'pause' : 'play'];
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.run(false);
    this.go(at + by);
  }
}

/**
 * The numbers of each step, all from the shapes of its tensors.
 * @param {Trace} trace
 */
function countsOf({ stages, grid_size: [h, w], ids_keep: kept, ids_restore: places, ...trace }) {
  /** @type {Record<string, number[]>} */
  const shapes = Object.fromEntries(stages.map(({ name, shape }) => [name, shape]));
  const blocks = (/** @type {string} */ name) => stages.filter((one) => one.name === name).length;
  const of = (/** @type {string} */ name) => ({
    tokens: shapes[name][1], width: shapes[name][2], blocks: blocks(name),
  });
  const removed = places.length - kept.length;
  return {
    patches: {
      h, w, patches: shapes.patches[1], values: shapes.patches[2], width: shapes.embed[2],
    },
    shuffle: { kept: kept.length, removed },
    keep: {
      ...of('keep'), kept: kept.length, removed, all: trace.encoder_tokens_all,
      class: shapes.keep[1] - trace.encoder_ids.length,
    },
    encoder_block: of('encoder_block'),
    decoder_embed: {
      ...of('decoder_embed'), from: shapes.norm[2], to: shapes.decoder_embed[2],
    },
    restore: { ...of('restore'), mask_tokens: shapes.restore[1] - shapes.decoder_embed[1] },
    decoder_block: of('decoder_block'),
    predict: { patches: shapes.predict[1], values: shapes.predict[2] },
  };
}

/**
 * The step of the walk that a stage of the model belongs to.
 * @param {string} name
 */
function stepOf(name) {
  return { embed: 'patches', norm: 'decoder_embed' }[name] ?? name;
}

/** @param {Trace} trace */
function mostOf(trace) {
  return trace.changes.flat().reduce((most, change) => Math.max(most, change), 0);
}
