// The visitor's own mask: painted over the masked panel, and sent as rows of 0 and 1.

import { brushed } from './brush.js';
import { fromPicture } from './drawing.js';
import { button, choice, element, fill, svg } from './elements.js';
import { History } from './history.js';
import { Mask } from './mask.js';
import { pixelsOf } from './painting.js';
import { patchAt, steppedTo } from './patches.js';
import { PRESETS } from './presets.js';
import { stage } from './stage.js';

const TOOLS = /** @type {const} */ (['flip', 'hide', 'show']);
const LARGEST_BRUSH = 4;
/** Side of the mask on a shape's button, in patches: halves are halves, and the border is thin. */
const ICON = 8;

// Survives a change of language.
/** @type {History | null} */
let history = null;

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Editor(host);
}

class Editor {
  /** @type {typeof TOOLS[number]} */
  tool = 'flip';
  brush = 0;
  /** Where the keyboard's cursor is, in patches. @type {import('./patches.js').Place} */
  cursor = [0, 0];
  /**
   * Of one pointer; of the keyboard it is over at once, and `pointer` null.
   * @type {{value: 0 | 1, at: import('./brush.js').Point, mask: Mask, pointer: number | null} | null}
   */
  stroke = null;

  /** @param {import('./stage.js').Host} host */
  constructor(host) {
    this.host = host;
    this.texts = host.texts;
    const { signal } = host;
    this.build();
    for (const event of ['view', 'preview']) {
      stage.addEventListener(event, () => this.show(), { signal });
    }
    document.addEventListener('keydown', (event) => this.key(event), { signal });
    for (const [name, handle] of Object.entries({
      pointerdown: this.down, pointermove: this.move, pointerup: this.up, pointercancel: this.up,
      contextmenu: this.menu,
    })) {
      document.addEventListener(name, (event) => {
        handle.call(this, /** @type {PointerEvent} */ (event));
      }, { signal });
    }
    stage.addEventListener('ask', (event) => {
      if (/** @type {CustomEvent} */ (event).detail === 'editor') this.arm(true);
    }, { signal });
    host.watch(['value'], () => this.opened());
    this.show();
  }

  /** The patches over the masked panel. @returns {SVGSVGElement | null} */
  get grid() {
    return document.querySelector('#panel-masked svg.grid');
  }

  get mask() {
    return Mask.fromRows(stage.mask);
  }

  build() {
    const { texts } = this;
    const act = (/** @type {string} */ name, /** @type {() => void} */ does) =>
      button(texts[name], does, { class: name, title: texts[`${name}_hint`] ?? texts[name] });
    this.draw = button(texts.draw, () => {
      this.arm(!this.armed);
      if (this.armed) this.grid?.focus({ preventScroll: true });
    }, {
      class: 'draw', 'aria-pressed': 'false', title: texts.draw_hint,
    });
    this.count = element('output', { class: 'count', for: 'panel-masked' });
    this.said = element('span', { class: 'said', role: 'status' });
    this.own = act('back', () => this.back());
    this.undo = act('undo', () => this.step('undo'));
    this.redo = act('redo', () => this.step('redo'));
    this.size = /** @type {HTMLInputElement} */ (element('input', {
      type: 'range', min: '0', max: String(LARGEST_BRUSH), step: '1', value: '0',
      'aria-label': texts.brush,
    }));
    this.size.addEventListener('input', () => { this.brush = Number(this.size?.value); });
    const file = /** @type {HTMLInputElement} */ (element('input', {
      type: 'file', accept: 'image/*', hidden: '',
    }));
    file.addEventListener('change', () => this.picture(file));
    const names = /** @type {(keyof typeof PRESETS)[]} */ (Object.keys(PRESETS));
    const shapes = names.map((name) => {
      const does = () => this.change((mask) => mask.preset(name));
      const shape = button('', does, { title: texts[name], 'aria-label': texts[name] });
      shape.append(icon(name));
      return shape;
    });
    this.more = element('div', { class: 'tools', hidden: '' },
      choice(texts.tool, TOOLS.map((name) => [name, texts[name], texts[`${name}_hint`]]), this.tool,
        (name) => { this.tool = name; }),
      element('label', { class: 'brush' }, texts.brush, this.size),
      element('span', { class: 'shapes', role: 'group', 'aria-label': texts.presets }, ...shapes),
      act('invert', () => this.change((mask) => mask.invert())),
      act('clear', () => this.change((mask) => mask.fill(0))),
      act('load', () => file.click()), file);
    this.host.element.append(
      element('div', { class: 'bar' }, this.draw, this.count, this.own, this.undo, this.redo,
        this.said),
      this.more);
  }

  get armed() {
    return this.draw?.getAttribute('aria-pressed') === 'true';
  }

  /** @param {boolean} armed whether fingers draw, instead of moving the page */
  arm(armed) {
    this.draw?.setAttribute('aria-pressed', String(armed));
    if (this.more) this.more.hidden = !armed;
    this.grid?.classList.toggle('armed', armed);
  }

  /** Bring grid, count and buttons up to the mask on show. */
  show() {
    const { mask: rows } = stage;
    this.draw?.toggleAttribute('disabled', !rows.length);
    if (!rows.length) {
      if (this.count) this.count.textContent = '';
      return;
    }
    const mask = this.mask;
    if (history?.rows.length !== rows.length || history.rows[0].length !== rows[0].length) {
      history = new History(rows);
    }
    if (this.count) {
      this.count.textContent = fill(this.texts.count, {
        removed: mask.count, patches: mask.cells.length, percent: Math.round(100 * mask.ratio),
      });
    }
    this.outline(mask);
    this.buttons();
  }

  buttons() {
    const { canUndo = false, canRedo = false } = history ?? {};
    if (this.own) this.own.hidden = !this.host.props.value;
    this.undo?.toggleAttribute('disabled', !canUndo);
    this.redo?.toggleAttribute('disabled', !canRedo);
    // Two lines of a phone, until there is something to undo.
    for (const step of [this.undo, this.redo]) {
      step?.toggleAttribute('hidden', !canUndo && !canRedo);
    }
  }

  /** @param {Mask} mask */
  outline({ h, w }) {
    const { grid } = this;
    if (!grid) return;
    grid.classList.toggle('armed', this.armed);
    grid.setAttribute('aria-label', this.texts.canvas);
    if (grid.dataset.size === `${h} ${w}`) return;
    grid.dataset.size = `${h} ${w}`;
    grid.setAttribute('viewBox', `0 0 ${w} ${h}`);
    const lines = [
      ...Array.from({ length: h - 1 }, (_, i) => `M0 ${i + 1}H${w}`),
      ...Array.from({ length: w - 1 }, (_, j) => `M${j + 1} 0V${h}`),
    ].join('');
    grid.replaceChildren(
      svg('path', { d: lines, class: 'lines' }),
      svg('rect', { width: '1', height: '1', class: 'cursor' }));
    this.cursor = [Math.floor(h / 2), Math.floor(w / 2)];
    this.point();
  }

  point() {
    const [y, x] = this.cursor;
    const cursor = this.grid?.querySelector('.cursor');
    cursor?.setAttribute('x', String(x));
    cursor?.setAttribute('y', String(y));
  }

  /**
   * The point of the grid that an event is at, as (y, x) in patches.
   * @param {PointerEvent} event
   * @returns {import('./brush.js').Point | null}
   */
  place(event) {
    const matrix = this.grid?.getScreenCTM();
    if (!matrix) return null;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    return [at.y, at.x];
  }

  /**
   * Whether a press begins a stroke: that of a second finger or of the middle button does not.
   * @param {PointerEvent} event
   */
  draws({ target, pointerType, isPrimary, button: pressed }) {
    const on = target instanceof Element && target.closest('svg.grid');
    const scrolls = pointerType === 'touch' && !this.armed;
    return on && !scrolls && isPrimary && [0, 2].includes(pressed);
  }

  /** @param {PointerEvent} event */
  down(event) {
    if (!this.draws(event)) return;
    const at = this.place(event);
    if (!at || !stage.mask.length) return;
    event.preventDefault();
    this.end();
    this.grid?.focus({ preventScroll: true });
    this.grid?.setPointerCapture(event.pointerId);
    this.begin(at, event.shiftKey || event.button === 2, event.pointerId);
  }

  /**
   * @param {import('./brush.js').Point} at
   * @param {boolean} opposite of what the tool does
   * @param {number | null} pointer
   */
  begin(at, opposite, pointer = null) {
    // The sliders' masks are not in the history until one is edited.
    history?.push(stage.mask);
    const mask = this.mask;
    const [i, j] = patchAt(at, [mask.h, mask.w]);
    const removed = mask.cells[i * mask.w + j] === 1;
    const value = this.tool === 'flip' ? !removed : this.tool === 'hide';
    this.stroke = { value: value !== opposite ? 1 : 0, at, mask, pointer };
    this.paint(at);
  }

  /** @param {import('./brush.js').Point} to */
  paint(to) {
    if (!this.stroke) return;
    const { value, at, mask } = this.stroke;
    const whole = mask.paint(brushed(at, to, this.brush + 0.5, [mask.h, mask.w]), value);
    this.stroke.at = to;
    this.say(whole ? '' : this.texts.last);
    this.send(mask.rows);
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (this.stroke?.pointer !== event.pointerId) return;
    // The button was released where the page did not hear of it.
    if (!event.buttons) this.end();
    const at = this.stroke && this.place(event);
    if (!at) return;
    event.preventDefault();
    this.paint(at);
  }

  /** @param {PointerEvent} event */
  up(event) {
    if (this.stroke?.pointer === event.pointerId) this.end();
  }

  end() {
    if (!this.stroke) return;
    history?.push(this.stroke.mask.rows);
    this.stroke = null;
    this.buttons();
  }

  /** @param {Event} event */
  menu(event) {
    if (event.target instanceof Element && event.target.closest('svg.grid')) event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { target } = event;
    if (!(target instanceof Element) || !stage.mask.length) return;
    const undoes = (event.ctrlKey || event.metaKey) && target.closest('#editor');
    if ((undoes || target.closest('svg.grid')) && this.press(event)) event.preventDefault();
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key means something here
   */
  press(event) {
    const touch = () => this.touch(event.shiftKey);
    /** @type {Record<string, () => void>} */
    const keys = {
      ' ': touch, Enter: touch, '[': () => this.resize(-1), ']': () => this.resize(1),
    };
    const { key } = event;
    const to = steppedTo(key, this.cursor, [stage.mask.length, stage.mask[0].length]);
    if (event.ctrlKey || event.metaKey) {
      if (key.toLowerCase() !== 'z') return false;
      this.step(event.shiftKey ? 'redo' : 'undo');
    } else if (to) {
      this.walk(to);
    } else if (key in keys) {
      keys[key]();
    } else {
      return false;
    }
    return true;
  }

  /** @param {boolean} opposite */
  touch(opposite) {
    const [y, x] = this.cursor;
    this.begin([y + 0.5, x + 0.5], opposite);
    this.end();
    this.where(this.said?.textContent ?? '');
  }

  /** @param {number} by */
  resize(by) {
    this.brush = Math.min(Math.max(this.brush + by, 0), LARGEST_BRUSH);
    if (this.size) this.size.value = String(this.brush);
  }

  /** @param {import('./patches.js').Place} to */
  walk(to) {
    this.cursor = to;
    this.point();
    this.where();
  }

  /**
   * Say where the cursor is, for those who do not see it.
   * @param {string} before a sentence that is still to be heard
   */
  where(before = '') {
    const [y, x] = this.cursor;
    const state = stage.mask[y][x] === '1' ? this.texts.removed : this.texts.visible;
    const at = fill(this.texts.where, { row: y + 1, column: x + 1, state });
    this.say(before ? `${before} ${at}` : at);
  }

  /** @param {string} text */
  say(text) {
    if (this.said) this.said.textContent = text;
  }

  /** @param {(mask: Mask) => boolean} edit */
  change(edit) {
    if (!stage.mask.length) return;
    const mask = this.mask;
    history?.push(stage.mask);
    this.say(edit(mask) ? '' : this.texts.last);
    history?.push(mask.rows);
    this.send(mask.rows);
  }

  /** @param {'undo' | 'redo'} which */
  step(which) {
    if (!stage.mask.length) return;
    if (which === 'undo') history?.push(stage.mask);
    const rows = history?.[which]();
    if (rows) this.send(rows);
    if (document.activeElement === this.grid) this.where();
    else this.say('');
  }

  /** Give the mask to the sliders again. */
  back() {
    const drawn = stage.view?.settings.mask;
    this.host.props.value = null;
    this.host.trigger('input');
    if (drawn) stage.draw(drawn.strategy, drawn.ratio, drawn.seed);
    history?.push(stage.mask);
    this.buttons();
  }

  /** @param {string[]} rows */
  send(rows) {
    stage.preview(rows);
    this.host.props.value = rows;
    this.host.trigger('input');
    this.buttons();
  }

  /** The page itself set the mask: by settings, or by the sliders, which clear it. */
  opened() {
    const rows = this.host.props.value;
    if (rows && rows.join() !== stage.mask.join()) stage.preview(rows);
    if (!this.stroke && stage.mask.length) history?.push(stage.mask);
    this.buttons();
  }

  /** @param {HTMLInputElement} input with a black-and-white picture */
  async picture(input) {
    const [file] = input.files ?? [];
    input.value = '';
    if (!file || !stage.mask.length) return;
    let pixels;
    try {
      pixels = pixelsOf(await fitted(file));
    } catch {
      this.say(this.texts.unreadable);
      return;
    }
    if (!stage.mask.length) return;
    const rows = fromPicture(pixels, [stage.mask.length, stage.mask[0].length]);
    this.change((mask) => mask.set(rows));
  }
}

/**
 * A drawing, cut as the picture on show is.
 * @param {File} file
 */
async function fitted(file) {
  const whole = await createImageBitmap(file);
  if (stage.view?.settings.fit !== 'crop') return whole;
  const { width, height } = whole;
  const side = Math.min(width, height);
  return createImageBitmap(whole, Math.round((width - side) / 2), Math.round((height - side) / 2),
    side, side);
}

/**
 * A small picture of a shape.
 * @param {keyof typeof PRESETS} name
 */
function icon(name) {
  const mask = new Mask([ICON, ICON]);
  mask.preset(name);
  const squares = [...mask.cells].map((removed, patch) =>
    (removed ? `M${patch % ICON} ${Math.floor(patch / ICON)}h1v1h-1z` : ''));
  return svg('svg', { viewBox: `0 0 ${ICON} ${ICON}`, 'aria-hidden': 'true' },
    svg('path', { d: squares.join('') }));
}
