// The generator behind `torch.manual_seed` on a CPU: the 32-bit Mersenne Twister MT19937
// (Matsumoto and Nishimura 1998).

const SIZE = 624;
const SHIFT = 397;
const MAX_SEED = 2n ** 63n - 1n;

export class Mersenne {
  /**
   * @param {number | bigint} seed 0 to 2^63 - 1; the low 32 bits count. As a number at most
   *   2^53 - 1, above which its low bits are lost
   * @throws {RangeError} if the seed is none of these
   */
  constructor(seed) {
    const exact = typeof seed === 'bigint' || Number.isSafeInteger(seed);
    if (!exact || seed < 0 || seed > MAX_SEED) {
      throw new RangeError(`seed is ${seed}; give a whole number from 0 to ${MAX_SEED}, above ` +
        `${Number.MAX_SAFE_INTEGER} as a BigInt`);
    }
    this.state = new Uint32Array(SIZE);
    this.state[0] = Number(BigInt(seed) & 0xffffffffn);
    for (let i = 1; i < SIZE; ++i) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.next = SIZE;
  }

  /** The next 32 bits, 0 to 2^32 - 1. */
  draw() {
    if (this.next === SIZE) this.twist();
    let bits = this.state[this.next++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    bits ^= bits >>> 18;
    return bits >>> 0;
  }

  /** The next number of `torch.rand` in float32: 24 bits of one draw, 0 <= number < 1. */
  float() {
    return (this.draw() & 0xffffff) / 2 ** 24;
  }

  twist() {
    const { state } = this;
    for (let i = 0; i < SIZE; ++i) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
      state[i] = state[(i + SHIFT) % SIZE] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}
