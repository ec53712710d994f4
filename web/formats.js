// Formats of picture files, told by their first bytes, and what their headers say. Nothing is
// decoded, and nothing here trusts a length that a file claims.

import { crc32 } from '../app/stage/zip.js';
import { Problem } from './problem.js';

/**
 * @typedef {object} Header
 * @property {string} format
 * @property {number} width as it is stored, before it is turned
 * @property {number} height
 * @property {boolean} profile whether there is an ICC profile
 * @property {[number, number][]} exif first byte and end of each block of EXIF data
 */

/** @typedef {Omit<Header, 'format'>} Facts */

/* eslint-disable no-control-regex -- files begin so */
/**
 * What browsers decode of the formats that Python tells by the same bytes.
 * @type {[string, RegExp, (bytes: Uint8Array, view: DataView) => Facts | undefined][]}
 */
const FORMATS = [
  ['JPEG', /^\xff\xd8\xff/, jpeg],
  ['PNG', /^\x89PNG\r\n\x1a\n/, png],
  ['WebP', /^RIFF....WEBP/s, webp],
  ['GIF', /^GIF8[79]a/, gif],
  ['BMP', /^BM.{12}[\x0c-\x7c]\0\0\0/s, bmp],
  ['AVIF', /^....ftyp(?:....)*?avi[fs]/s, avif],
];
/* eslint-enable no-control-regex */
const START_BYTES = 64;

// Markers of JPEG. Tables, an extension and conditioning are numbered among the frames.
const [RST0, SOI, EOI, SOS, APP1, APP2] = [0xd0, 0xd8, 0xd9, 0xda, 0xe1, 0xe2];
const NO_FRAMES = [0xc4, 0xc8, 0xcc];

/**
 * @param {Uint8Array} bytes of a whole file
 * @returns {Header}
 * @throws {Problem} `picture_format` or `picture_damaged`
 */
export function readHeader(bytes) {
  const start = latin(bytes, 0, START_BYTES);
  const known = FORMATS.find(([, pattern]) => pattern.test(start));
  if (!known) {
    throw new Problem('picture_format', { allowed: FORMATS.map(([name]) => name).join(', ') });
  }
  let facts;
  try {
    facts = known[2](bytes, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  } catch (error) {
    // Of a file that is cut short.
    if (!(error instanceof RangeError)) throw error;
  }
  if (!facts) throw new Problem('picture_damaged');
  return { format: known[0], ...facts };
}

/**
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Facts | undefined}
 */
function jpeg(bytes, view) {
  let size;
  let profile = false;
  /** @type {[number, number][]} */
  const exif = [];
  for (const [marker, start, end] of segments(bytes, view)) {
    if (marker >> 4 === 0xc && !NO_FRAMES.includes(marker)) {
      size ??= { width: view.getUint16(start + 3), height: view.getUint16(start + 1) };
    }
    const name = latin(bytes, start, start + 12);
    profile ||= marker === APP2 && name === 'ICC_PROFILE\0';
    if (marker === APP1 && name.startsWith('Exif\0\0')) exif.push([start, end]);
  }
  return size && { ...size, profile, exif };
}

/**
 * Marker, first byte and end of each segment before the first scan. As in libjpeg, what is between
 * two segments is skipped, and a marker may be filled up.
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Generator<[number, number, number]>}
 */
function* segments(bytes, view) {
  for (let at = bytes.indexOf(0xff, 2); at >= 0; at = bytes.indexOf(0xff, at)) {
    while (bytes[at] === 0xff) at += 1;
    const marker = bytes[at];
    at += 1;
    if (marker === SOS || marker === EOI) return;
    if (marker < 2 || (marker >= RST0 && marker <= SOI)) continue;
    const length = view.getUint16(at);
    if (length < 2) return;
    yield [marker, at + 2, at + length];
    at += length;
  }
}

/**
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Facts | undefined}
 */
function png(bytes, view) {
  if (latin(bytes, 12, 16) !== 'IHDR') return undefined;
  let profile = false;
  /** @type {[number, number][]} */
  const exif = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const name = latin(bytes, at + 4, at + 8);
    const end = at + 8 + view.getUint32(at);
    profile ||= name === 'iCCP';
    if (name === 'eXIf' && end + 4 <= bytes.length) exif.push([at + 8, end]);
    at = end + 4;
  }
  return { width: view.getUint32(16), height: view.getUint32(20), profile, exif };
}

/**
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Facts | undefined}
 */
function webp(bytes, view) {
  const u24 = (/** @type {number} */ at) => view.getUint16(at, true) | view.getUint8(at + 2) << 16;
  const plain = { profile: false, exif: [] };
  const name = latin(bytes, 12, 16);
  if (name === 'VP8 ' && u24(23) === 0x2a019d) {
    const [width, height] = [26, 28].map((at) => view.getUint16(at, true) & 0x3fff);
    return { ...plain, width, height };
  }
  if (name === 'VP8L' && bytes[20] === 0x2f) {
    const bits = view.getUint32(21, true);
    return { ...plain, width: (bits & 0x3fff) + 1, height: (bits >>> 14 & 0x3fff) + 1 };
  }
  if (name !== 'VP8X') return undefined;
  /** @type {[number, number][]} */
  const exif = [];
  for (let at = 12; at + 8 <= bytes.length;) {
    const end = at + 8 + view.getUint32(at + 4, true);
    if (latin(bytes, at, at + 4) === 'EXIF') exif.push([at + 8, Math.min(end, bytes.length)]);
    at = end + end % 2;
  }
  const profile = (bytes[20] & 0x20) !== 0;
  return { width: u24(24) + 1, height: u24(27) + 1, profile, exif };
}

/**
 * @param {Uint8Array} _
 * @param {DataView} view
 * @returns {Facts}
 */
function gif(_, view) {
  const [width, height] = [6, 8].map((at) => view.getUint16(at, true));
  return { width, height, profile: false, exif: [] };
}

/**
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Facts}
 */
function bmp(bytes, view) {
  const [width, height] = bytes[14] === 12
    ? [18, 20].map((at) => view.getUint16(at, true))
    : [18, 22].map((at) => Math.abs(view.getInt32(at, true)));  // negative: from top to bottom
  return { width, height, profile: false, exif: [] };
}

/**
 * The size is the largest of a picture in the file. EXIF data has no say in how it is turned.
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @returns {Facts | undefined}
 */
function avif(bytes, view) {
  const inside = [...boxes(bytes, view, 0, bytes.length, 'meta')].flatMap(([start, end]) =>
    [...boxes(bytes, view, start + 4, end, 'iprp')]).flatMap(([start, end]) =>
    [...boxes(bytes, view, start, end, 'ipco')]);
  const found = (/** @type {string} */ name) =>
    inside.flatMap(([start, end]) => [...boxes(bytes, view, start, end, name)]);
  const sizes = found('ispe').map(([at]) =>
    ({ width: view.getUint32(at + 4), height: view.getUint32(at + 8) }));
  sizes.sort((a, b) => b.width * b.height - a.width * a.height);
  const profile = found('colr').some(([at]) =>
    ['prof', 'rICC'].includes(latin(bytes, at, at + 4)));
  return sizes.length ? { ...sizes[0], profile, exif: [] } : undefined;
}

/**
 * First byte of what is in each box of a name, and its end.
 * @param {Uint8Array} bytes
 * @param {DataView} view
 * @param {number} from
 * @param {number} to
 * @param {string} name
 * @returns {Generator<[number, number]>}
 */
function* boxes(bytes, view, from, to, name) {
  for (let at = from; at + 8 <= to;) {
    let size = view.getUint32(at);
    let start = at + 8;
    if (size === 1) {
      size = Number(view.getBigUint64(start));
      start += 8;
    }
    const end = size === 0 ? to : Math.min(to, at + size);
    if (end < start) return;
    if (latin(bytes, at + 4, at + 8) === name) yield [start, end];
    at = end;
  }
}

/**
 * How a picture is turned, by its EXIF data; 1 if nothing is said. The data is wiped, for browsers
 * apply it in some formats and not in others.
 * @param {Uint8Array} bytes of the file; changed
 * @param {Header} header
 */
export function takeOrientation(bytes, { format, exif }) {
  const orientation = exif.length ? orientationOf(bytes.slice(...exif[0])) : 1;
  for (const [start, end] of exif) {
    bytes.fill(0, start, end);
    if (format === 'PNG') {
      new DataView(bytes.buffer, bytes.byteOffset)
        .setUint32(end, crc32(bytes.subarray(start - 4, end)));
    }
  }
  return orientation;
}

/** @param {Uint8Array} exif */
function orientationOf(exif) {
  const tiff = latin(exif, 0, 6) === 'Exif\0\0' ? exif.subarray(6) : exif;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const little = latin(tiff, 0, 2) === 'II';
  try {
    const at = view.getUint32(4, little);
    const count = view.getUint16(at, little);
    for (let entry = at + 2; entry < at + 2 + 12 * count; entry += 12) {
      const kind = view.getUint16(entry + 2, little);
      if (view.getUint16(entry, little) === 0x112) {
        const value = kind === 4
          ? view.getUint32(entry + 8, little) : view.getUint16(entry + 8, little);
        return value >= 1 && value <= 8 ? value : 1;
      }
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/**
 * @param {Uint8Array} bytes
 * @param {number} start
 * @param {number} end
 */
function latin(bytes, start, end) {
  return String.fromCharCode(...bytes.subarray(start, end));
}
