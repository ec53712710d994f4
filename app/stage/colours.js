// The colour scale of maps: from dark blue by magenta and orange to light yellow.
//
// Lightness in Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab/) rises evenly, so
// that equal steps look equal, in grey and to people who see fewer colours too.

/** @typedef {[red: number, green: number, blue: number]} Colour each 0 to 255 */

const LIGHTNESS = [0.24, 0.94];
/** Degrees. */
const HUE = [285, 460];
// Near what sRGB has at the ends, and more between them.
const CHROMA = 0.115;
const MORE_CHROMA = 0.055;

/** Greys of what has no value, which alternate like a checkerboard. */
const NO_VALUE = [110, 146];

/**
 * @param {number} t place on the scale; outside 0 to 1 it is that of the nearer end
 * @returns {Colour}
 */
export function colourOf(t) {
  const at = Math.min(Math.max(t, 0), 1);
  const chroma = CHROMA + MORE_CHROMA * Math.sin(Math.PI * at);
  const hue = between(HUE, at) * Math.PI / 180;
  return fromOklab(between(LIGHTNESS, at), chroma * Math.cos(hue), chroma * Math.sin(hue));
}

/**
 * Paint a map, one pixel a value.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image an ImageData
 * @param {Float32Array} values row by row; NaN where there is none
 * @param {number} max the value at the light end; 0 is at the dark one
 * @throws {RangeError} if there are not as many values as pixels
 */
export function paintMap({ data, width, height }, values, max) {
  if (values.length !== width * height) {
    throw new RangeError(`${values.length} values for ${height} x ${width} pixels; give one each`);
  }
  values.forEach((value, at) => {
    const grey = NO_VALUE[(at % width + Math.floor(at / width)) % 2];
    const colour = Number.isNaN(value) ? [grey, grey, grey] : colourOf(max > 0 ? value / max : 0);
    data.set([...colour, 255], 4 * at);
  });
}

/**
 * @param {number[]} ends
 * @param {number} t
 */
function between([start, end], t) {
  return start + (end - start) * t;
}

/**
 * @param {number} lightness 0 to 1
 * @param {number} a green to red
 * @param {number} b blue to yellow
 * @returns {Colour}
 */
function fromOklab(lightness, a, b) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    encoded(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    encoded(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    encoded(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

/**
 * A channel of sRGB.
 * @param {number} light linear, 0 to 1
 */
function encoded(light) {
  return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
}
