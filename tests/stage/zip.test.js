import assert from 'node:assert/strict';
import { test } from 'node:test';

import { crc32, zip } from '../../app/stage/zip.js';

const text = new TextEncoder().encode('123456789');

test('the checksum is CRC-32', () => {
  assert.equal(crc32(text), 0xcbf43926);
  assert.equal(crc32(new Uint8Array()), 0);
});

test('entries are stored as they are, behind their headers', () => {
  const bytes = zip([{ name: 'a/ü.txt', bytes: text }, { name: 'b', bytes: new Uint8Array() }]);
  const view = new DataView(bytes.buffer);
  assert.equal(view.getUint32(0, true), 0x04034b50);
  assert.equal(view.getUint16(6, true), 0x0800);
  assert.equal(view.getUint32(14, true), 0xcbf43926);
  assert.equal(view.getUint32(18, true), 9);
  const length = view.getUint16(26, true);
  assert.equal(new TextDecoder().decode(bytes.slice(30, 30 + length)), 'a/ü.txt');
  assert.deepEqual(bytes.slice(30 + length, 30 + length + 9), text);

  const end = bytes.length - 22;
  assert.equal(view.getUint32(end, true), 0x06054b50);
  assert.equal(view.getUint16(end + 10, true), 2);
  const [size, offset] = [view.getUint32(end + 12, true), view.getUint32(end + 16, true)];
  assert.equal(offset + size, end);
  assert.equal(view.getUint32(offset, true), 0x02014b50);
});

test('the date is no clock', () => {
  const entries = [{ name: 'a', bytes: text }];
  assert.deepEqual(zip(entries), zip(entries, new Date(1980, 0, 1)));
  assert.notDeepEqual(zip(entries), zip(entries, new Date(2026, 10, 26)));
});

test('more entries than a ZIP file holds are refused', () => {
  const entries = Array.from({ length: 65536 }, () => ({ name: '', bytes: new Uint8Array() }));
  assert.throws(() => zip(entries), /give at most 65535/);
});
