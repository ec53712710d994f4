// Rounding as in Python.

/**
 * To the nearest integer, halves to the even one: `round` and `numpy.rint`.
 * @param {number} value
 */
export function halfToEven(value) {
  const down = Math.floor(value);
  return value - down === 0.5 ? down + down % 2 : Math.round(value);
}
