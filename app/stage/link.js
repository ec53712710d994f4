// A view as the fragment of the page's address: `#s=` and settings in base64url, then `&lang=`.
// The language stands by itself, because the head of the page reads it before any module runs.

const VERSION = 1;

/**
 * What a link opens.
 * @typedef {object} Link
 * @property {string} [example] name of a picture; an upload does not travel
 * @property {Record<string, any>} [request] settings, without the picture
 * @property {string} [tab] to be shown
 */

/**
 * @param {Link} link
 * @param {string} language `en` or `zh`
 */
export function toFragment({ example, request, tab }, language) {
  const text = JSON.stringify({ v: VERSION, example, request, tab });
  const bytes = Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte));
  const code = btoa(bytes.join('')).replace(/[+]/g, '-').replace(/[/]/g, '_').replace(/=+$/, '');
  return `#s=${code}&lang=${language}`;
}

/**
 * @param {string} fragment of an address, with its #
 * @returns {Link | null} null if it is no such link
 * @throws {Error} if it is damaged, or of another version
 */
export function fromFragment(fragment) {
  const code = new URLSearchParams(fragment.slice(1)).get('s');
  if (code === null) return null;
  const bytes = atob(code.replace(/-/g, '+').replace(/_/g, '/'));
  const encoded = Uint8Array.from(bytes, (byte) => byte.charCodeAt(0));
  const text = new TextDecoder('utf-8', { fatal: true }).decode(encoded);
  const { v, example, request, tab } = JSON.parse(text);
  if (v !== VERSION) throw new Error(`a link of version ${v}`);
  return { example, request, tab };
}
