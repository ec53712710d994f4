// Elements of the page, made in one line each.

/**
 * @param {string} name of the tag
 * @param {Record<string, string | undefined>} attributes those undefined are left out
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  set(made, attributes);
  made.append(...children);
  return made;
}

/**
 * @param {string} name
 * @param {Record<string, string | undefined>} attributes
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  set(made, attributes);
  made.append(...children);
  return made;
}

/**
 * @param {string} text
 * @param {() => void} does when it is pressed
 * @param {Record<string, string | undefined>} attributes
 */
export function button(text, does, attributes = {}) {
  const made = element('button', { type: 'button', ...attributes }, text);
  made.addEventListener('click', does);
  return /** @type {HTMLButtonElement} */ (made);
}

/**
 * A list from which one value is chosen.
 * @param {string} label
 * @param {string[][]} choices value and text
 */
export function list(label, choices) {
  return /** @type {HTMLSelectElement} */ (
    element('select', { 'aria-label': label }, ...options(choices)));
}

/** @param {string[][]} choices value and text */
export function options(choices) {
  return choices.map(([value, text]) => element('option', { value }, text));
}

/**
 * Buttons of which one is pressed.
 * @template {string | number} Value
 * @param {string} label
 * @param {[value: Value, text: string, hint?: string][]} choices
 * @param {Value} chosen
 * @param {(value: Value) => void} does when another is pressed
 */
export function choice(label, choices, chosen, does) {
  const buttons = choices.map(([value, text, title]) => button(text, () => {
    press(value);
    does(value);
  }, { title }));
  const press = (/** @type {Value} */ value) => buttons.forEach((one, i) => {
    one.setAttribute('aria-pressed', String(choices[i][0] === value));
  });
  press(chosen);
  return element('span', { class: 'choice', role: 'group', 'aria-label': label }, ...buttons);
}

/** @param {string} label of the picture, for screen readers */
export function canvas(label) {
  return /** @type {HTMLCanvasElement} */ (
    element('canvas', { role: 'img', 'aria-label': label }));
}

/**
 * A text with its {placeholders} filled.
 * @param {string} text
 * @param {Record<string, string | number>} values
 */
export function fill(text, values) {
  return text.replace(/[{](.*?)[}]/g, (_, name) => String(values[name]));
}

/**
 * @param {Element} made
 * @param {Record<string, string | undefined>} attributes
 */
function set(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) made.setAttribute(name, value);
  }
}
