// Scales with round numbers, and shares in per cent.

/**
 * Evenly spaced round numbers that cover a range.
 * @param {number} low
 * @param {number} high
 * @param {number} steps at most so many between them, 2 or more
 * @returns {number[]} from at most `low` to at least `high`, two of them or more
 */
export function ticksOver(low, high, steps) {
  const least = (high > low ? high - low : 1) / steps;
  const power = 10 ** Math.floor(Math.log10(least));
  for (const size of [1, 2, 2.5, 5, 10, 20].map((factor) => factor * power)) {
    const first = Math.floor(low / size + 1e-9);
    const last = Math.max(Math.ceil(high / size - 1e-9), first + 1);
    if (last - first > steps) continue;
    return Array.from({ length: last - first + 1 }, (_, i) => round((first + i) * size));
  }
  throw new RangeError(`no ${steps} steps cover ${low} to ${high}; give numbers`);
}

/**
 * The value below which a share of the values lie.
 * @param {Float32Array} values NaN where there is none
 * @param {number} share 0 to 1
 * @returns {number} 0 if there are none
 */
export function quantile(values, share) {
  const known = values.filter((value) => !Number.isNaN(value)).sort();
  return known.length ? known[Math.round(share * (known.length - 1))] : 0;
}

/**
 * @param {number} share 0 to 1
 * @param {number} digits after the point
 */
export function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)}%`;
}

/** @param {number} value */
function round(value) {
  return Number(value.toPrecision(12));
}
