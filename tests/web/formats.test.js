import assert from 'node:assert/strict';
import { test } from 'node:test';

import { readHeader, takeOrientation } from '../../web/formats.js';
import { LIMITS, openPicture } from '../../web/pictures.js';

/** @param {string} text each letter a byte */
const latin = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

/** @param {number} value */
const u16 = (value) => String.fromCharCode(value >> 8, value & 0xff);

/** @param {number} value */
const u32 = (value) => u16(value >>> 16) + u16(value & 0xffff);

/** @param {number} marker @param {string} body */
const segment = (marker, body) => `\xff${String.fromCharCode(marker)}${u16(body.length + 2)}${body}`;

/** @param {string} name @param {string} body */
const chunk = (name, body) => `${u32(body.length)}${name}${body}\0\0\0\0`;

/** @param {string} name @param {string} body */
const box = (name, body) => `${u32(body.length + 8)}${name}${body}`;

/** @param {number} marker */
const frame = (marker) => segment(marker, `\x08${u16(300)}${u16(400)}\x03`);

const SOI = '\xff\xd8';
const SOS = '\xff\xda\0\x02';
const TURN = `MM\0*${u32(8)}${u16(1)}${u16(0x112)}${u16(3)}${u32(1)}${u16(6)}\0\0`;
const PNG = `\x89PNG\r\n\x1a\n${chunk('IHDR', `${u32(400)}${u32(300)}\x08\x02\0\0\0`)}`;
const AVIF = `${box('ftyp', 'avif\0\0\0\0')}${box('meta', `\0\0\0\0${box('iprp', box('ipco',
  box('ispe', `\0\0\0\0${u32(40)}${u32(30)}`) + box('ispe', `\0\0\0\0${u32(400)}${u32(300)}`)
  + box('colr', 'prof')))}`)}`;
const EXTENDED = `RIFF${'\0'.repeat(4)}WEBPVP8X\x0a\0\0\0\x28\0\0\0\x8f\x01\0\x2b\x01\0`;
const EXIF = `${String.fromCharCode(TURN.length)}\0\0\0`;

const FILES = Object.entries({
  JPEG: SOI + frame(0xc2) + SOS,
  'JPEG behind tables, a restart and filled-up markers':
    `${SOI}\xff\xd0${segment(0xc4, 'tables')}rubbish\xff\xff\xff${frame(0xc0).slice(1)}${SOS}`,
  'JPEG with a picture in its EXIF data':
    `${SOI}${segment(0xe1, `Exif\0\0${SOI}\xff\xc0\0\x0b\x08\x09\x09\x09\x09`)}${frame(0xc0)}${SOS}`,
  'JPEG of two frames': SOI + frame(0xc0) + segment(0xc0, '\x08\xff\xff\xff\xff\x03') + SOS,
  PNG,
  'PNG with a chunk of 4 GB': `${PNG}\xff\xff\xff\xffeXIf`,
  'WebP lossy': 'RIFF....WEBPVP8 ....\x10\0\0\x9d\x01\x2a\x90\x41\x2c\x81',
  'WebP lossless': 'RIFF....WEBPVP8L....\x2f\x8f\xc1\x4a\x10',
  'WebP extended': EXTENDED,
  GIF: 'GIF89a\x90\x01\x2c\x01',
  BMP: `BM${'.'.repeat(12)}\x28\0\0\0\x90\x01\0\0\x2c\x01\0\0`,
  'BMP from top to bottom': `BM${'.'.repeat(12)}\x28\0\0\0\x90\x01\0\0\xd4\xfe\xff\xff`,
  'BMP of OS/2': `BM${'.'.repeat(12)}\x0c\0\0\0\x90\x01\x2c\x01`,
  AVIF,
});

for (const [name, file] of FILES) {
  test(`size of ${name}`, () => {
    const { format, width, height } = readHeader(latin(file));
    assert.deepEqual([format, width, height], [name.split(' ')[0], 400, 300]);
  });
}

test('no beginning of a file does harm', () => {
  for (const [, file] of FILES) {
    for (let length = 0; length <= file.length; length += 1) {
      try {
        readHeader(latin(file.slice(0, length)));
      } catch (problem) {
        assert.match(/** @type {any} */ (problem).text ?? String(problem), /^picture_/);
      }
    }
  }
});

for (const [name, file] of Object.entries({
  'markers only': SOI + '\xff\xd0'.repeat(10_000),
  'filled-up markers only': SOI + '\xff'.repeat(10_000),
  'no frame before the scan': SOI + segment(0xe0, 'JFIF') + SOS + frame(0xc0),
  'a segment of no length': `${SOI}\xff\xe0\0\0${frame(0xc0)}`,
  'a segment beyond the end': `${SOI}\xff\xe0\xff\xff${frame(0xc0)}`,
  'PNG without its header': `\x89PNG\r\n\x1a\n${chunk('IDAT', '.'.repeat(20))}`,
  'a box of no end': `${box('ftyp', 'avif\0\0\0\0')}\0\0\0\x01meta${'\xff'.repeat(8)}`,
  'boxes without sizes': box('ftyp', 'avif\0\0\0\0') + '\0\0\0\x02free'.repeat(1000),
  'an unknown WebP': 'RIFF....WEBPVP9 ....',
})) {
  test(`damaged: ${name}`, () => {
    const wanted = { text: 'picture_damaged' };
    assert.throws(() => readHeader(latin(file)), wanted);
  });
}

test('other formats are refused by what is in them', () => {
  for (const start of ['', '<svg/>', 'II*\0', `${u32(24)}ftypheic`, '%PDF', '\xff\xd8']) {
    assert.throws(() => readHeader(latin(start)), {
      text: 'picture_format', values: { allowed: 'JPEG, PNG, WebP, GIF, BMP, AVIF' },
    });
  }
});

test('profiles are found', () => {
  const profiles = [
    SOI + segment(0xe2, 'ICC_PROFILE\0\x01\x01') + frame(0xc0) + SOS, PNG + chunk('iCCP', ''),
    EXTENDED, AVIF,
  ];
  for (const file of profiles) assert.equal(readHeader(latin(file)).profile, true);
  assert.equal(readHeader(latin(PNG)).profile, false);
});

for (const [name, file] of Object.entries({
  JPEG: SOI + segment(0xe1, `Exif\0\0${TURN}`) + frame(0xc0) + SOS,
  PNG: PNG + chunk('eXIf', TURN),
  WebP: `${EXTENDED}EXIF${EXIF}${TURN}`,
})) {
  test(`the orientation is taken out of ${name}`, () => {
    const bytes = latin(file);
    assert.equal(takeOrientation(bytes, readHeader(bytes)), 6);
    assert.equal(takeOrientation(bytes, readHeader(bytes)), 1);
    assert.deepEqual([bytes.length, bytes.indexOf(0x12)], [file.length, -1]);
  });
}

test('damaged EXIF data turns nothing', () => {
  for (const exif of ['', 'II', `MM\0*${u32(0xffffffff)}`, TURN.slice(0, 15),
    TURN.replace('\x06', '\x09'), `MM\0*${u32(8)}\xff\xff`]) {
    const bytes = latin(SOI + segment(0xe1, `Exif\0\0${exif}`) + frame(0xc0) + SOS);
    assert.equal(takeOrientation(bytes, readHeader(bytes)), 1);
  }
});

/** @param {number} width @param {number} height */
const png = (width, height) =>
  new Blob([latin(PNG.replace(u32(400) + u32(300), u32(width) + u32(height)))]);

for (const [blob, text, values] of /** @type {[Blob, string, object][]} */ ([
  [png(0xffffffff, 0xffffffff), 'picture_pixels',
    { width: 0xffffffff, height: 0xffffffff, allowed: 33.5 }],
  [png(7000, 5000), 'picture_pixels', { width: 7000, height: 5000, allowed: 33.5 }],
  [png(0, 5000), 'picture_small', { width: 0, height: 5000, allowed: 16 }],
  [png(15, 20), 'picture_small', { width: 15, height: 20, allowed: 16 }],
  [png(20, 401), 'picture_long', { width: 20, height: 401, allowed: 20 }],
  // Within all limits: there is no decoder here.
  [png(20, 400), 'picture_damaged', {}],
])) {
  test(`refused before it is decoded: ${text} ${JSON.stringify(values)}`, async () => {
    await assert.rejects(openPicture(blob), { text, values });
  });
}

test('a file of too many bytes is not read', async () => {
  const blob = new Blob([new Uint8Array(LIMITS.maxBytes + 1)]);
  blob.arrayBuffer = () => assert.fail('it was read');
  const wanted = { text: 'picture_bytes', values: { given: 21, allowed: 20 } };
  await assert.rejects(openPicture(blob), wanted);
});
