// Legend of the colour scale.

import { colourOf } from './colours.js';
import { element } from './elements.js';

const STOPS = 33;
const SCALE = `linear-gradient(to right, ${
  Array.from({ length: STOPS }, (_, i) => `rgb(${colourOf(i / (STOPS - 1))})`).join(', ')})`;

/**
 * The colour scale from its dark end to its light one.
 * @param {string[]} labels of evenly spaced values, of both ends at least
 */
export function legend(labels) {
  const bar = element('div', { class: 'colours' });
  bar.style.background = SCALE;
  const ticks = labels.map((label, i) => {
    const tick = element('span', {}, label);
    tick.style.left = `${100 * i / (labels.length - 1)}%`;
    return tick;
  });
  return element('div', { class: 'scale' }, bar, element('div', { class: 'ticks' }, ...ticks));
}
