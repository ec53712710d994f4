// The two sides of a comparison, in words and figures.

import { element, fill } from './elements.js';
import { pixelsOf } from './painting.js';

/**
 * An answer with its pictures, original and reconstruction.
 * @typedef {{view: import('./stage.js').View, images: ImageBitmap[]}} Side
 * @typedef {{a: Side, b: Side}} Pair
 */

/** @typedef {Record<string, string>} Texts of the part */

/**
 * What A and B are called: only what differs, or all where nothing does.
 * @param {Texts} texts
 * @param {Pair} pair
 */
export function captions(texts, { a, b }) {
  const lines = [a, b].map((one) => [
    one.view.facts.model, maskOf(texts, one), viewOf(texts, one),
  ]);
  return lines.map((line, i) => {
    const differing = line.filter((text, j) => text !== lines[1 - i][j]);
    return `${'AB'[i]}: ${(differing.length ? differing : line.slice(0, 2)).join(' · ')}`;
  });
}

/**
 * @param {Texts} texts
 * @param {Side} side
 */
function maskOf(texts, { view: { settings: { mask } } }) {
  if (mask.rows.length) return texts.own;
  return fill(texts.drawn, {
    strategy: texts[mask.strategy], percent: Math.round(100 * mask.ratio), seed: mask.seed,
  });
}

/**
 * @param {Texts} texts
 * @param {Side} side
 */
function viewOf(texts, { view: { facts } }) {
  return facts.view === null ? '–' : texts[facts.view];
}

/**
 * A table of both, and of how much B has more.
 * @param {Texts} texts
 * @param {Pair} pair
 * @returns {HTMLElement}
 */
export function figures(texts, { a, b }) {
  const facts = [a.view.facts, b.view.facts];
  /** @type {[string, string[], (number | null)[] | null, number][]} */
  const rows = [
    [texts.model, facts.map((one) => one.model), null, 0],
    [texts.mask, [a, b].map((one) => maskOf(texts, one)), null, 0],
    [texts.removed, facts.map((one) => `${one.patches - one.visible} / ${one.patches}`),
      facts.map((one) => one.patches - one.visible), 0],
    [texts.psnr, [], facts.map((one) => one.psnr), 2],
    [texts.ssim, [], facts.map((one) => one.ssim), 3],
  ];
  // Of one model, they differ by what else the machine did.
  if (facts[0].model !== facts[1].model) {
    rows.push([texts.time, facts.map((one) => decimals(1000 * one.seconds, 0)), null, 0]);
  }
  if (facts.some(({ view }) => view !== null)) {
    rows.splice(2, 0, [texts.view, [a, b].map((one) => viewOf(texts, one)), null, 0]);
  }
  const cells = rows.map(([name, words, numbers, digits]) => {
    const shown = words.length ? words : (numbers ?? []).map((value) => decimals(value, digits));
    return element('tr', {}, element('th', { scope: 'row' }, name),
      ...[...shown, apart(numbers, digits)].map((text) => element('td', {}, text)));
  });
  const head = ['A', 'B', 'B − A'].map((text) => element('th', { scope: 'col' }, text));
  return element('table', {}, element('caption', {}, texts.figures),
    element('thead', {}, element('tr', {}, element('td'), ...head)), element('tbody', {}, ...cells));
}

/**
 * @param {ImageBitmap} one
 * @param {ImageBitmap} other
 */
export function samePixels(one, other) {
  if (one === other) return true;
  const sizes = [one, other].map((image) => `${image.width} ${image.height}`);
  if (sizes[0] !== sizes[1]) return false;
  const { data } = pixelsOf(other);
  return pixelsOf(one).data.every((value, at) => value === data[at]);
}

/**
 * @param {number | null} value
 * @param {number} digits after the point
 */
export function decimals(value, digits) {
  return value === null ? '–' : value.toFixed(digits);
}

/**
 * How much B has more than A.
 * @param {(number | null)[] | null} numbers
 * @param {number} digits
 */
function apart(numbers, digits) {
  const [a, b] = numbers ?? [null, null];
  if (a === null || b === null) return '';
  // Of the numbers as they are shown.
  const more = Number(b.toFixed(digits)) - Number(a.toFixed(digits));
  const size = Math.abs(more).toFixed(digits);
  return Number(size) === 0 ? size : `${more > 0 ? '+' : '−'}${size}`;
}
