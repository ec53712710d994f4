/** What a visitor is told: a text of the section `web` of the locales, and its values. */
export class Problem extends Error {
  /**
   * @param {string} text name of the text
   * @param {Record<string, string | number>} values of its {placeholders}
   */
  constructor(text, values = {}) {
    super(text);
    this.text = text;
    this.values = values;
  }
}
