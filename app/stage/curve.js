// A chart of PSNR over the frames of a film.

import { element, svg } from './elements.js';
import { ticksOver } from './scale.js';

/**
 * @typedef {{share: number, values: (number | null)[]}} Point its place, 0 left to 1 right, and a
 *   value in dB of each line
 * @typedef {{title: string, ticks: {share: number, label: string}[]}} Axis
 */

const [WIDTH, HEIGHT] = [420, 250];
const [LEFT, RIGHT, TOP, BOTTOM] = [38, WIDTH - 14, 26, HEIGHT - 42];
const STEPS = 5;

/** Marks of the lines, around (0, 0); dashes are in the style sheet. */
const MARKS = ['M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0', 'M-2.5 -2.5h5v5h-5z', 'M0 -3.5l3.5 6h-7z'];

export class Curve {
  /**
   * @param {Record<string, string>} texts
   * @param {string[]} names of the lines, the main one first
   * @param {(share: number) => void} point is called with the place that is pointed at
   */
  constructor(texts, names, point) {
    this.texts = texts;
    this.chart = svg('svg', {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': texts.curve,
    });
    this.values = names.map(() => element('output'));
    this.element = element('div', { class: 'curve' }, this.chart,
      element('ul', {}, ...names.map((name, i) => element('li', {},
        svg('svg', { viewBox: '-16 -6 32 12', 'aria-hidden': 'true', class: `line-${i}` },
          svg('path', { d: 'M-15 0H15' }), svg('path', { d: MARKS[i], class: 'mark' })),
        element('span', {}, name), this.values[i]))));
    this.chart.addEventListener('pointerdown', (event) => {
      this.chart.setPointerCapture(event.pointerId);
      point(this.shareAt(event));
    });
    this.chart.addEventListener('pointermove', (event) => {
      if (this.chart.hasPointerCapture(event.pointerId)) point(this.shareAt(event));
    });
  }

  /** @param {PointerEvent} event */
  shareAt(event) {
    const box = this.chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * WIDTH;
    return (x - LEFT) / (RIGHT - LEFT);
  }

  /**
   * @param {Point[]} points those there are, in order
   * @param {number} at index of the current one
   * @param {Axis} axis
   */
  draw(points, at, axis) {
    const known = points.flatMap(({ values }) => values.filter((value) => value !== null));
    const ticks = known.length ? ticksOver(Math.min(...known), Math.max(...known), STEPS) : [0, 1];
    const [low, high] = [ticks[0], ticks[ticks.length - 1]];
    const yOf = (/** @type {number} */ value) =>
      BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP);
    const x = xOf(points[at].share);
    this.chart.replaceChildren(
      ...ticks.map((tick) => svg('path', { class: 'rule', d: `M${LEFT} ${yOf(tick)}H${RIGHT}` })),
      ...ticks.map((tick) => text(LEFT - 6, yOf(tick) + 4, 'end', String(tick))),
      ...axis.ticks.map(({ share, label }) => text(xOf(share), BOTTOM + 17, 'middle', label)),
      text(0, 12, 'start', this.texts.psnr_axis),
      text((LEFT + RIGHT) / 2, HEIGHT - 6, 'middle', axis.title),
      svg('path', { class: 'now', d: `M${x} ${TOP}V${BOTTOM}` }),
      ...this.values.map((_, line) => drawn(points, line, yOf)),
      ...points[at].values.map((value, line) => svg('circle', {
        class: `point line-${line}`, cx: String(x), cy: String(yOf(value ?? low)), r: '6',
        visibility: value === null ? 'hidden' : undefined,
      })));
    points[at].values.forEach((value, line) => {
      const output = this.values[line];
      output.textContent = value === null ? '–' : `${value.toFixed(1)} dB`;
      const item = /** @type {HTMLElement} */ (output.closest('li'));
      item.hidden = points.every(({ values }) => values[line] === null);
    });
  }
}

/**
 * @param {Point[]} points
 * @param {number} line
 * @param {(value: number) => number} yOf
 */
function drawn(points, line, yOf) {
  const places = points.flatMap(({ share, values }) => {
    const value = values[line];
    return value === null ? [] : [`${xOf(share)} ${yOf(value)}`];
  });
  return svg('g', { class: `line-${line}` },
    svg('path', { d: places.length ? `M${places.join('L')}` : '' }),
    ...places.map((place) => svg('path', {
      d: MARKS[line], class: 'mark', transform: `translate(${place})`,
    })));
}

/** @param {number} share */
function xOf(share) {
  return LEFT + share * (RIGHT - LEFT);
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} anchor
 * @param {string} words
 */
function text(x, y, anchor, words) {
  return svg('text', { x: String(x), y: String(y), 'text-anchor': anchor }, words);
}
