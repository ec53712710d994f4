// Where a prediction came from: which visible patches it depends on, and where layers looked.

import { Asking, isOnShow } from './asking.js';
import { button, element, fill } from './elements.js';
import { Glow, percent, SCALE } from './glow.js';
import { Looks } from './looks.js';
import { stage } from './stage.js';
import { strongest, Study } from './study.js';

const LISTED = 5;
const MODES = /** @type {const} */ (['influence', 'attention']);

// Survive a change of language.
/** @type {Study | null} */
let study = null;
/** @type {typeof MODES[number]} */
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
    this.asking = new Asking(host, () => this.show());
    this.modes = MODES.map((name) => button(texts[name], () => this.choose(name)));
    this.start = button('', () => this.ask(), { class: 'main' });
    this.count = element('span', { class: 'count' });
    this.glow = new Glow({ picture: texts.picture, grid: texts.grid },
      (patch) => { this.hovered = patch; this.point(); }, (patch) => this.pin(patch));
    this.asking.next = this.glow.grid;
    this.where = element('p', { class: 'where' });
    this.looks = new Looks(texts, () => { this.point(); this.tell(); });
    this.listed = element('p');
    this.list = element('ol');
    this.most = element('span');
    this.unit = element('p', { class: 'said' });
    const scale = element('div', { class: 'scale' });
    scale.style.background = SCALE;
    this.legend = element('div', {}, this.listed, this.list, scale,
      element('div', { class: 'ends' }, element('span', {}, percent(0, texts.percent)), this.most), this.unit);
    this.about = element('p', { class: 'said' });
    this.study = element('div', { class: 'study' }, this.glow.element,
      element('div', {}, this.where, this.looks.element, this.legend, this.about));
    const { cancel, progress, said, alert } = this.asking;
    host.element.append(
      element('div', { class: 'bar' },
        element('span', { class: 'choice', role: 'group', 'aria-label': texts.way }, ...this.modes),
        this.start, cancel, progress, this.count),
      said, alert, this.study);
    stage.addEventListener('view', () => this.follow(), { signal: host.signal });
    this.follow();
  }

  /** Take what the panels show, unless something was found out about an earlier view. */
  follow() {
    if (!study || !isOnShow(study.view)) {
      this.asking.stop();
      if (!study || study.empty) this.begin();
    }
    this.show();
  }

  /** Study the view on show; the pin stays on a grid of the same size. */
  begin() {
    const before = study;
    study = stage.view && new Study(stage.view, stage.images);
    if (study && study.cells.length === before?.cells.length) study.pin = before.pin;
    return study;
  }

  /** @param {typeof MODES[number]} name */
  choose(name) {
    if (mode === name) return;
    this.asking.stop();
    this.asking.alert.textContent = '';
    mode = name;
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
    if (mode === 'attention' && study && isOnShow(study.view) && !study.pinned) {
      this.ask();
    } else {
      this.show();
      this.tell();
    }
  }

  /** Measure, or ask where the model looked from the pinned patch. */
  async ask() {
    const asked = study && isOnShow(study.view) ? study : this.begin();
    if (!asked) return;
    let whole;
    if (mode === 'influence') {
      asked.changes.clear();
      whole = await this.asking.ask({ kind: mode },
        ({ patch, change }) => asked.changes.set(patch, change));
    } else {
      whole = await this.asking.ask({ kind: mode, patch: asked.pin },
        (part) => { asked.attention = /** @type {import('./looks.js').Attention} */ (part); });
    }
    if (whole) this.tell();
  }

  show() {
    this.study.hidden = !study;
    this.modes.forEach((one, i) => one.setAttribute('aria-pressed', String(MODES[i] === mode)));
    if (!study) {
      this.start.hidden = true;
      this.count.textContent = this.texts.nothing;
      return;
    }
    if (this.drawn !== study) this.glow.show(study.images, study.view.mask);
    this.drawn = study;
    this.glow.pin = study.pin;
    this.study.classList.toggle('old', !isOnShow(study.view));
    this.looks.offer(mode === 'attention' ? study.pinned : null);
    this.control(study);
    this.point();
  }

  /**
   * Bring button, progress and count up to date.
   * @param {Study} of
   */
  control({ view, changes, visible, pinned }) {
    const { texts, asking } = this;
    const old = !isOnShow(view);
    const values = { done: changes.size, visible, runs: visible + 1 };
    let [whole, how] = [pinned !== null, 'one_run'];
    asking.progress.removeAttribute('value');
    if (mode === 'influence') {
      whole = changes.size === visible;
      how = whole ? 'measured' : changes.size ? 'so_far' : 'cost';
      asking.progress.value = changes.size / visible;
    }
    this.start.hidden = !stage.view || asking.busy || (whole && !old);
    this.start.textContent = texts[`${mode}_${old ? 'again' : 'start'}`];
    this.count.textContent = fill(texts[old ? 'old' : how], values);
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
      element('li', {}, `${this.spot(at)}: ${percent(value, texts.percent)}`)));
    this.most.textContent = percent(max, texts.percent);
    this.unit.textContent = texts[`${mode}_unit`];
    this.about.textContent = texts[`${mode}_about`];
  }

  /** Say what was found out about the pinned patch, for those who do not see it. */
  tell() {
    if (!study) return;
    const place = this.place(study.pin);
    const [first] = strongest(this.values(study.pin), 1);
    this.asking.said.textContent = first ? fill(this.texts.strongest, {
      place, spot: this.spot(first[0]), value: percent(first[1], this.texts.percent),
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
