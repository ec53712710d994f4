// Where layers and heads of a model looked from one patch.

import { element, fill, options } from './elements.js';
import { percent } from './scale.js';

/**
 * An answer of the kind `attention`. Rows are shares: of the class token first, then of patches.
 * @typedef {object} Attention
 * @property {number} patch
 * @property {number[][][]} decoder layer, head, 1 + L
 * @property {number[][][] | null} encoder layer, head, 1 + the patches of `visible`
 * @property {number[]} visible
 */

export class Looks {
  /** @type {Attention | null} */
  attention = null;

  /**
   * @param {Record<string, string>} texts
   * @param {() => void} changed another layer or head is chosen
   */
  constructor(texts, changed) {
    this.texts = texts;
    this.stack = select('stack');
    this.layer = select('layer');
    this.head = select('head');
    this.stack.append(...options([['decoder', texts.decoder], ['encoder', texts.encoder]]));
    this.unseen = element('p', { class: 'said' }, texts.unseen);
    this.classToken = element('p');
    this.element = element('div', { class: 'looks' },
      element('div', { class: 'bar' }, ...[this.stack, this.layer, this.head].map(
        (one) => element('label', {}, texts[one.name], one))),
      this.unseen, this.classToken);
    this.element.addEventListener('change', () => {
      this.offer(this.attention);
      changed();
    });
  }

  /**
   * Offer the layers and heads that there are; null offers nothing.
   * @param {Attention | null} attention
   */
  offer(attention) {
    this.attention = attention;
    this.element.hidden = !attention;
    if (!attention) return;
    this.unseen.hidden = Boolean(attention.encoder);
    this.stack.options[1].disabled = !attention.encoder;
    if (!attention.encoder) this.stack.value = 'decoder';
    const layers = this.layers(attention);
    const kind = `${this.stack.value} ${layers.length} ${layers[0].length}`;
    if (this.element.dataset.kind !== kind) {
      this.element.dataset.kind = kind;
      this.layer.replaceChildren(...options(numbered(layers)));
      this.layer.selectedIndex = layers.length - 1;
      this.head.replaceChildren(...options([['mean', this.texts.mean], ...numbered(layers[0])]));
    }
    const value = percent(this.shares[0], 2);
    this.classToken.textContent = fill(this.texts.class_token, { value });
  }

  /** @param {Attention} attention */
  layers({ decoder, encoder }) {
    return this.stack.value === 'encoder' && encoder ? encoder : decoder;
  }

  /** Shares in the chosen layer and head: of the class token, then of patches. */
  get shares() {
    if (!this.attention) return [];
    const heads = this.layers(this.attention)[Number(this.layer.value)];
    return this.head.value === 'mean' ? mean(heads) : heads[Number(this.head.value)];
  }

  /** @returns {import('./study.js').Values} the share of each patch */
  get values() {
    const patches = this.stack.value === 'encoder' ? this.attention?.visible : undefined;
    return new Map(this.shares.slice(1).map((share, i) => [patches?.[i] ?? i, share]));
  }
}

/** @param {string} name */
function select(name) {
  return /** @type {HTMLSelectElement} */ (element('select', { name }));
}

/** @param {unknown[]} things */
function numbered(things) {
  return things.map((_, i) => [String(i), String(i + 1)]);
}

/** @param {number[][]} rows */
function mean(rows) {
  return rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
}
