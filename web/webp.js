// An animated WebP made of still ones, as browsers encode them:
// https://developers.google.com/speed/webp/docs/riff_container

import { Problem } from './problem.js';

const ANIMATED = 0b10;
const NOT_BLENDED = 0b10;
const WHITE = [255, 255, 255, 255];

/**
 * An animation that repeats for ever.
 * @param {Uint8Array[]} stills WebP files of one size, without transparency
 * @param {{width: number, height: number}} size of each
 * @param {number} milliseconds that each is shown
 * @returns {Uint8Array<ArrayBuffer>}
 * @throws {Problem} if a still is no WebP file, which some browsers give in place of one
 */
export function animation(stills, { width, height }, milliseconds) {
  const size = [...bytes(width - 1, 3), ...bytes(height - 1, 3)];
  const frames = stills.map((still) => {
    const head = [...bytes(0, 6), ...size, ...bytes(milliseconds, 3), NOT_BLENDED];
    return chunk('ANMF', joined([Uint8Array.from(head), imageOf(still)]));
  });
  const forms = [
    chunk('VP8X', Uint8Array.from([ANIMATED, 0, 0, 0, ...size])),
    chunk('ANIM', Uint8Array.from([...WHITE, ...bytes(0, 2)])),
  ];
  return chunk('RIFF', joined([letters('WEBP'), ...forms, ...frames]));
}

/**
 * The chunk of a file that holds its picture.
 * @param {Uint8Array} still
 */
function imageOf(still) {
  const text = (/** @type {number} */ at) => String.fromCharCode(...still.subarray(at, at + 4));
  const view = new DataView(still.buffer, still.byteOffset, still.byteLength);
  if (text(0) !== 'RIFF' || text(8) !== 'WEBP') throw new Problem('no_webp');
  for (let at = 12; at + 8 <= still.length;) {
    const end = at + 8 + even(view.getUint32(at + 4, true));
    if (text(at) === 'VP8 ' || text(at) === 'VP8L') return still.subarray(at, end);
    at = end;
  }
  throw new Problem('no_webp');
}

/**
 * @param {string} name of 4 letters
 * @param {Uint8Array} content
 */
function chunk(name, content) {
  const padding = new Uint8Array(even(content.length) - content.length);
  return joined([letters(name), Uint8Array.from(bytes(content.length, 4)), content, padding]);
}

/** @param {number} length */
function even(length) {
  return length + length % 2;
}

/** @param {string} text of ASCII */
function letters(text) {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

/**
 * A whole number, the lowest byte first.
 * @param {number} value
 * @param {number} count of bytes
 */
function bytes(value, count) {
  return Array.from({ length: count }, (_, i) => Math.floor(value / 256 ** i) % 256);
}

/**
 * @param {Uint8Array[]} parts
 * @returns {Uint8Array<ArrayBuffer>}
 */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
