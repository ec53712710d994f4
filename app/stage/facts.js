// The line of facts below the panels: about a reconstruction, or why there is none.

import { element, fill } from './elements.js';

/**
 * @typedef {object} Waiting
 * @property {string} waiting a sentence
 * @property {number | null} fraction of the work that is done, where it is known
 * @property {string | null} hint
 */

/**
 * @param {HTMLElement} line is filled
 * @param {Record<string, any> | Waiting | {error: string} | null} value facts, with `step` and
 *   `steps` where the model is still being trained, `licence` where the model is not ours, and
 *   `note`
 * @param {string} label a sentence with {visible}, {patches}, {psnr}, {milliseconds}, {device} and
 *   {model}, whose parts are joined by " · ": one element each, so that a narrow page breaks the
 *   line between facts
 */
export function showFacts(line, value, label) {
  line.replaceChildren(...(value ? lineOf(value, label) : []));
}

/**
 * @param {Record<string, any>} value
 * @param {string} label
 */
function lineOf(value, label) {
  if (value.error) return [element('strong', { role: 'alert' }, value.error)];
  if (value.waiting) {
    const { waiting, fraction, hint } = value;
    return [element('div', { class: 'waiting', role: 'status' }, waiting,
      element('progress', { max: '1', value: fraction === null ? undefined : String(fraction) }),
      ...(hint ? [element('small', {}, hint)] : []))];
  }
  const { visible, patches, psnr, seconds, device, model, licence, note } = value;
  const progress = value.step === undefined || value.step === null ? ''
    : ` (${value.step} / ${value.steps})`;
  const shown = {
    visible, patches,
    psnr: typeof psnr === 'number' ? psnr.toFixed(1) : '–',
    milliseconds: Math.round(seconds * 1000),
    device: String(device).toUpperCase(),
    model: model + progress + (licence ? ` (${licence})` : ''),
  };
  return [
    ...(note ? [element('em', {}, note)] : []),
    ...label.split(' · ').map((part) => element('span', {}, fill(part, shown))),
  ];
}
