// ZIP files whose entries are stored as they are: pictures are compressed already.

/** @typedef {{name: string, bytes: Uint8Array}} Entry */

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20;
/** Names are UTF-8. */
const FLAGS = 0x0800;
const MOST_ENTRIES = 0xffff;
const MOST_BYTES = 0xffffffff;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let bits = byte;
  for (let turn = 0; turn < 8; ++turn) bits = (bits & 1 ? 0xedb88320 : 0) ^ (bits >>> 1);
  return bits;
});

/**
 * The same entries and date give the same bytes.
 * @param {Entry[]} entries folders in names with /
 * @param {Date} [date] of every entry, in local time from 1980 on; 1 January 1980 if not given
 * @returns {Uint8Array<ArrayBuffer>}
 * @throws {RangeError} if there are more than a ZIP file without extensions holds
 */
export function zip(entries, date = new Date(1980, 0, 1)) {
  /** @type {Uint8Array[]} */
  const files = [];
  /** @type {Uint8Array[]} */
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const encoded = new TextEncoder().encode(name);
    const facts = [
      ...u16(VERSION), ...u16(FLAGS), ...u16(0), ...dosTime(date), ...u32(crc32(bytes)),
      ...u32(bytes.length), ...u32(bytes.length), ...u16(encoded.length), ...u16(0),
    ];
    files.push(Uint8Array.from([...u32(LOCAL), ...facts]), encoded, bytes);
    // No comment, on the first disk, no attributes.
    const rest = [...u16(0), ...u16(0), ...u16(0), ...u32(0), ...u32(offset)];
    directory.push(
      Uint8Array.from([...u32(CENTRAL), ...u16(VERSION), ...facts, ...rest]), encoded,
    );
    offset += 30 + encoded.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  if (entries.length > MOST_ENTRIES || offset + size > MOST_BYTES) {
    throw new RangeError(`${entries.length} files of ${offset} bytes are too many for a ZIP file; ` +
      `give at most ${MOST_ENTRIES} of less than 4 GB together`);
  }
  const end = [
    ...u32(END), ...u16(0), ...u16(0), ...u16(entries.length), ...u16(entries.length),
    ...u32(size), ...u32(offset), ...u16(0),
  ];
  return joined([...files, ...directory, Uint8Array.from(end)]);
}

/** @param {Uint8Array} bytes */
export function crc32(bytes) {
  let bits = 0xffffffff;
  for (const byte of bytes) bits = CRC_TABLE[(bits ^ byte) & 0xff] ^ (bits >>> 8);
  return ~bits >>> 0;
}

/**
 * Time and date of MS-DOS, in steps of two seconds.
 * @param {Date} date
 */
function dosTime(date) {
  const time = date.getHours() << 11 | date.getMinutes() << 5 | date.getSeconds() >> 1;
  const day = (date.getFullYear() - 1980) << 9 | (date.getMonth() + 1) << 5 | date.getDate();
  return [...u16(time), ...u16(day)];
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * Two bytes, the low one first.
 * @param {number} value
 */
function u16(value) {
  return [value & 0xff, value >>> 8 & 0xff];
}

/**
 * Four bytes, the low one first.
 * @param {number} value
 */
function u32(value) {
  return [...u16(value), ...u16(value >>> 16)];
}
