// Who runs the model next: one at a time, what the panels wait for before what a question asks.

/** A line of two classes. */
export class Turns {
  #busy = false;

  /** By class, the first one first. @type {(() => void)[][]} */
  #waiting = [[], []];

  /**
   * Do some work in its turn.
   * @template Result
   * @param {0 | 1} place 0 goes before all of 1
   * @param {AbortSignal} signal gives the place up
   * @param {() => Promise<Result>} work
   * @returns {Promise<Result>}
   * @throws {unknown} the signal's reason, if it ends before the work begins
   */
  async take(place, signal, work) {
    if (this.#busy) await this.#turn(place, signal);
    else this.#busy = true;
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      // Messages that came while the model kept this thread are heard before the next turn.
      await new Promise((later) => setTimeout(later));
      this.#next();
    }
  }

  /**
   * @param {0 | 1} place
   * @param {AbortSignal} signal
   * @returns {Promise<void>}
   */
  #turn(place, signal) {
    return new Promise((begin, give) => {
      const line = this.#waiting[place];
      line.push(begin);
      signal.addEventListener('abort', () => {
        const at = line.indexOf(begin);
        if (at < 0) return;
        line.splice(at, 1);
        give(signal.reason);
      }, { once: true });
    });
  }

  #next() {
    const begin = this.#waiting[0].shift() ?? this.#waiting[1].shift();
    if (begin) begin();
    else this.#busy = false;
  }
}
