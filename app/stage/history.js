// Undo and redo.

const MOST = 200;

/**
 * States of a mask, of which the last 200 are kept. One stroke of the brush is one state.
 */
export class History {
  /** @type {readonly string[][]} */
  #states;
  #at = 0;

  /** @param {readonly string[]} rows the first state */
  constructor(rows) {
    this.#states = [[...rows]];
  }

  /** The present state. */
  get rows() {
    return [...this.#states[this.#at]];
  }

  get canUndo() {
    return this.#at > 0;
  }

  get canRedo() {
    return this.#at < this.#states.length - 1;
  }

  /**
   * Add a state after the present one, in place of those that were undone. The present state
   * itself is not added again.
   * @param {readonly string[]} rows
   */
  push(rows) {
    if (rows.join() === this.#states[this.#at].join()) return;
    this.#states = [...this.#states.slice(0, this.#at + 1), [...rows]].slice(-MOST);
    this.#at = this.#states.length - 1;
  }

  /** @returns {string[] | null} the state before, or null if there is none */
  undo() {
    if (!this.canUndo) return null;
    --this.#at;
    return this.rows;
  }

  /** @returns {string[] | null} the state that was undone last, or null if there is none */
  redo() {
    if (!this.canRedo) return null;
    ++this.#at;
    return this.rows;
  }
}
