// Where a prediction came from: which visible patches it depends on, and where layers looked.

import { ORIGINS } from './backend.js';
import { button, choice, element, fill } from './elements.js';
import { Glow } from './glow.js';
import { legend } from './legend.js';
import { Looks } from './looks.js';
import { Question, asking } from './question.js';
import { percent } from './scale.js';
import { stage } from './stage.js';
import { MOST_LEFT_OUT, strongest, Study } from './study.js';

const LISTED = 5;

// These survive a change of language.
const question = new Question();
/** @type {Study | null} */
let study = null;
/** @type {typeof ORIGINS[number]} */
let mode = 'influence';

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Origin(host);
}

class Origin {
  /** @type {Study | null} the one that is drawn */
  drawn = null;
  /** @type {number | null} */
  hovered = null;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    const { texts } = host;
    this.texts = texts;
    this.start = button('', () => this.ask(), { class: 'main' });
    this.cost = element('p', { class: 'said cost' });
    this.told = element('p', { class: 'said told', role: 'status' });
    this.glow = new Glow({ picture: texts.picture, grid: texts.grid },
      (patch) => { this.hovered = patch; this.point(); }, (patch) => this.pin(patch));
    this.where = element('p', { class: 'where' });
    this.looks = new Looks(texts, () => { this.point(); this.tell(); });
    this.listed = element('p');
    this.list = element('ol');
    this.scale = element('div');
    this.unit = element('p', { class: 'said' });
    this.legend = element('div', {}, this.listed, this.list, this.scale, this.unit);
    this.about = element('p', { class: 'said' });
    this.study = element('div', { class: 'study' }, this.glow.element,
      element('div', {}, this.where, this.looks.element, this.legend, this.about));
    host.element.append(
      element('div', { class: 'bar' },
        ...(ORIGINS.length < 2 ? [] : [choice(texts.way, ORIGINS.map((name) => [name, texts[name]]),
          mode, (name) => this.choose(name))]),
        asking(question, host, this.start)),
      this.cost, this.told, this.study);
    question.addEventListener('change', () => this.show(), { signal: host.signal });
    stage.addEventListener('view', () => this.follow(), { signal: host.signal });
    this.follow();
  }

  /** Take what the panels show, unless something was found out about an earlier view. */
  follow() {
    if (!study || (study.empty && !question.running)) this.begin();
    this.show();
  }

  /** Study the view on show; the pin stays on a grid of the same size. */
  begin() {
    const before = study;
    question.parts = [];
    study = stage.view && new Study(stage.view, stage.images);
    if (study && study.cells.length === before?.cells.length) study.pin = before.pin;
    return study;
  }

  /** @param {typeof ORIGINS[number]} name */
  choose(name) {
    if (mode === name) return;
    mode = name;
    question.cancel();
    question.ended = '';
    // Of an earlier view there may be nothing of this kind.
    if (question.old && !(mode === 'attention' ? study?.attention : study?.changes.size)) {
      this.begin();
    }
    question.changed();
    this.look();
  }

  /** @param {number} patch */
  pin(patch) {
    if (!study) return;
    study.pin = patch;
    this.hovered = null;
    this.look();
  }

  /** Show what is known of the pinned patch; what is not known of its attention is asked for. */
  look() {
    if (mode === 'attention' && study && !question.old && !study.pinned) {
      this.ask();
    } else {
      this.show();
      this.tell();
    }
  }

  /** Measure, or ask where the model looked from the pinned patch. */
  async ask() {
    const asked = study && !question.old ? study : this.begin();
    if (!asked) return;
    this.told.textContent = '';
    if (mode === 'influence') asked.changes.clear();
    const plan = mode === 'influence' ? { kind: mode } : { kind: mode, patch: asked.pin };
    const whole = await question.ask(plan, async (part) => {
      if (plan.kind === 'influence') asked.changes.set(part.patch, part.change);
      else asked.attention = /** @type {import('./looks.js').Attention} */ (part);
      return part;
    });
    if (whole) this.tell();
  }

  show() {
    this.study.hidden = !study;
    this.cost.hidden = !study;
    this.start.textContent = this.texts[`${mode}_${question.old ? 'again' : 'start'}`];
    if (!study) return;
    if (this.drawn !== study) this.glow.show(study.images, study.view.mask);
    this.drawn = study;
    this.glow.pin = study.pin;
    this.study.classList.toggle('old', question.old);
    this.looks.offer(mode === 'attention' ? study.pinned : null);
    this.control(study);
    this.point();
  }

  /**
   * Say what the answer costs or how far it is; a whole one is not asked for again.
   * @param {Study} of
   */
  control({ changes, visible, measurable, cells, pinned }) {
    let [whole, how] = [pinned !== null, 'one_run'];
    if (mode === 'influence') {
      whole = changes.size === visible;
      how = whole ? 'measured' : changes.size ? 'so_far' : 'cost';
      if (!measurable) [whole, how] = [true, 'impossible'];
    }
    const focused = document.activeElement === this.start;
    this.start.hidden = whole && !question.old && !question.running;
    if (focused && this.start.hidden) this.glow.grid.focus({ preventScroll: true });
    const values = {
      done: changes.size, visible, runs: visible + 1, patches: cells.length, most: MOST_LEFT_OUT,
    };
    this.cost.textContent = fill(this.texts[how], values);
  }

  /**
   * What glows when a patch is pointed at.
   * @param {number} patch
   * @returns {import('./study.js').Values}
   */
  values(patch) {
    return mode === 'attention' ? this.looks.values : study?.influence(patch) ?? new Map();
  }

  /** Show what is known of the patch that is pointed at. */
  point() {
    if (!study) return;
    const { texts } = this;
    // Attention is known of the pinned patch alone.
    const patch = (mode === 'influence' ? this.hovered : null) ?? study.pin;
    const values = this.values(patch);
    const listed = strongest(values, LISTED);
    const [[, max]] = [...listed, [patch, 0]];
    this.glow.draw(patch, values, max);
    this.where.textContent = this.place(patch);
    this.legend.hidden = !listed.length;
    this.listed.textContent = texts[mode === 'attention' ? 'looked_at'
      : study.isRemoved(patch) ? 'from_visible' : 'to_removed'];
    this.list.replaceChildren(...listed.map(([at, value]) =>
      element('li', {}, `${this.spot(at)}: ${percent(value, 2)}`)));
    this.scale.replaceChildren(legend([percent(0, 2), percent(max, 2)]));
    this.unit.textContent = texts[`${mode}_unit`];
    this.about.textContent = texts[`${mode}_about`];
  }

  /** Say what was found out about the pinned patch, for those who do not see it. */
  tell() {
    if (!study) return;
    const place = this.place(study.pin);
    const [first] = strongest(this.values(study.pin), 1);
    this.told.textContent = first ? fill(this.texts.strongest, {
      place, spot: this.spot(first[0]), value: percent(first[1], 2),
    }) : place;
  }

  /** @param {number} patch */
  spot(patch) {
    const { w } = this.glow;
    return fill(this.texts.spot, { row: Math.floor(patch / w) + 1, column: patch % w + 1 });
  }

  /** @param {number} patch */
  place(patch) {
    return fill(this.texts.place, {
      spot: this.spot(patch), state: this.texts[study?.isRemoved(patch) ? 'removed' : 'visible'],
    });
  }
}
