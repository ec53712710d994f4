/** @param {import('./stage.js').Host} host */
export function mount({ element }) {
  element.textContent = 'origin';
}
