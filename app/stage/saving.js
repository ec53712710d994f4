// Files for the visitor: saved, or copied as text.

/**
 * @param {Blob} blob
 * @param {string} name of the file
 */
export function save(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/**
 * Copy a text; where the browser forbids it, select it instead.
 * @param {string} text
 * @param {HTMLElement} shown an element that holds it
 * @returns {Promise<boolean>} whether it is copied
 */
export async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    shown.focus();
    if (shown instanceof HTMLInputElement) shown.select();
    else getSelection()?.selectAllChildren(shown);
    return false;
  }
}
