// Keep and share: settings, a link, files, code, and the history of this visit.

import { addressOf, AskError, CODES } from './backend.js';
import { button, choice, element, fill } from './elements.js';
import { toFragment } from './link.js';
import { paste, PasteError } from './paste.js';
import { visits } from './recorder.js';
import { copy, save } from './saving.js';
import * as snippets from './snippets.js';
import { stage } from './stage.js';
import { keyOf } from './visits.js';
import { zip } from './zip.js';

/** @typedef {import('./stage.js').View} View */
/** @typedef {import('./visits.js').Visit} Visit */

const PANELS = ['original', 'masked', 'reconstruction', 'pasted'];

/** @param {import('./stage.js').Host} host */
export function mount(host) {
  new Keep(host);
}

class Keep {
  /** @type {typeof CODES[number]} */
  code = 'python';
  /** @type {AbortController | null} */
  job = null;
  /** @type {HTMLButtonElement[]} what needs a view */
  needy = [];

  /** @param {import('./stage.js').Host} host */
  constructor({ element: root, texts, signal }) {
    this.texts = texts;
    root.append(element('div', { class: 'keep' },
      this.settings(), this.link(), this.files(), this.snippet(), this.history()));
    stage.addEventListener('view', () => this.show(), { signal });
    visits.addEventListener('change', () => this.list(), { signal });
    signal.addEventListener('abort', () => this.job?.abort());
    this.list();
    this.show();
  }

  /**
   * @param {string} name of the texts
   * @param {Node[]} children
   * @param {string} wide
   */
  block(name, children, wide = '') {
    const title = element('h2', { id: `keep-${name}` }, this.texts[name]);
    return element('section', { class: `${name} ${wide}`, 'aria-labelledby': title.id }, title,
      element('p', { class: 'hint' }, this.texts[`${name}_hint`]), ...children);
  }

  /**
   * @param {string} name of the text
   * @param {(view: View) => void} does with the view on show
   * @param {string} [look]
   */
  press(name, does, look) {
    const made = button(this.texts[name], () => { if (stage.view) does(stage.view); },
      { class: look });
    this.needy.push(made);
    return made;
  }

  settings() {
    const file = /** @type {HTMLInputElement} */ (element('input', {
      type: 'file', accept: '.json,application/json', hidden: '',
    }));
    const said = status();
    file.addEventListener('change', async () => {
      const [chosen] = file.files ?? [];
      file.value = '';
      if (chosen) await this.open(chosen, said);
    });
    return this.block('settings', [
      element('div', { class: 'bar' },
        this.press('save_settings', (view) => {
          save(new Blob([pretty(view.settings)], { type: 'application/json' }), 'settings.json');
        }, 'main'),
        button(this.texts.open_settings, () => file.click()), file),
      said]);
  }

  /**
   * Set the controls by a file; the picture stays.
   * @param {File} file
   * @param {HTMLElement} said
   */
  async open(file, said) {
    let request;
    try {
      request = JSON.parse(await file.text());
    } catch { /* It is no JSON. */ }
    if (typeof request !== 'object' || !request) {
      say(said, fill(this.texts.no_settings, { name: file.name }), true);
      return;
    }
    const problem = await stage.open({ request });
    if (problem) {
      say(said, problem, true);
    } else {
      const same = [undefined, stage.view?.settings.picture].includes(request.picture);
      say(said, same ? this.texts.opened : this.texts.opened_other);
    }
  }

  link() {
    const field = /** @type {HTMLInputElement} */ (element('input', {
      type: 'text', readonly: '', 'aria-label': this.texts.link,
    }));
    const said = status();
    this.address = field;
    this.note = element('p', { class: 'hint' });
    return this.block('link', [
      element('div', { class: 'bar' },
        this.press('copy_link', async () => this.copied(await copy(field.value, field), said),
          'main'),
        field),
      this.note, said]);
  }

  /**
   * @param {boolean} done
   * @param {HTMLElement} said
   */
  copied(done, said) {
    say(said, done ? this.texts.copied : this.texts.selected);
  }

  files() {
    const { question } = this.texts;
    const said = status();
    const progress = element('progress', { hidden: '', 'aria-label': question.progress });
    const cancel = button(question.cancel, () => this.job?.abort(), { hidden: '' });
    const work = async (/** @type {(signal: AbortSignal) => Promise<void>} */ does) => {
      this.job?.abort();
      const job = new AbortController();
      this.job = job;
      const running = (/** @type {boolean} */ on) => {
        progress.hidden = cancel.hidden = !on;
      };
      running(true);
      say(said, '');
      try {
        await does(job.signal);
        say(said, this.texts.saved);
      } catch (error) {
        if (this.job === job) say(said, job.signal.aborted ? '' : this.problem(error), true);
      }
      if (this.job === job) running(false);
    };
    return this.block('files', [
      element('div', { class: 'bar' },
        this.press('save_zip', (view) => work(async (signal) => {
          save(new Blob([await panelsOf(view, signal, (text) => say(said, text))]),
            `${stemOf(view)}-panels.zip`);
        })),
        this.press('save_original', (view) => work(async (signal) => {
          save(await paste(view, stage.images[1], addressOf(view.image.path), signal),
            `${stemOf(view)}-pasted.png`);
        })),
        progress, cancel),
      said]);
  }

  /**
   * A sentence about an error.
   * @param {unknown} error
   */
  problem(error) {
    if (error instanceof AskError) return error.message;
    return this.texts[`problem_${error instanceof PasteError ? error.message : 'other'}`];
  }

  snippet() {
    const said = status();
    const shown = element('code');
    const box = element('pre', { tabindex: '0', 'aria-label': this.texts.snippet }, shown);
    const picture = /** @type {HTMLAnchorElement} */ (element('a', { download: '' }));
    const choices = choice(this.texts.snippet, CODES.map((name) => [name, this.texts[name]]),
      this.code, (name) => {
        this.code = name;
        this.show();
      });
    this.showCode = (/** @type {View} */ view) => {
      const file = fileOf(view);
      shown.textContent = snippets[this.code]({
        settings: view.settings, file, page: pageAddress().href,
      });
      picture.textContent = fill(this.texts.save_picture, { name: file });
      picture.href = addressOf(view.image.path);
      picture.download = file;
      say(said, '');
    };
    return this.block('snippet', [
      element('div', { class: 'bar' },
        choices,
        this.press('copy_code',
          async () => this.copied(await copy(shown.textContent ?? '', box), said)),
        picture, said),
      box], 'wide');
  }

  history() {
    const said = status();
    this.visited = element('ul');
    this.empty = element('p', { class: 'hint' }, this.texts.no_history);
    this.forget = button(this.texts.forget, () => visits.clear());
    this.visited.addEventListener('click', async (event) => {
      const pressed = /** @type {Element} */ (event.target).closest('button');
      const visit = visits.all.find(({ request }) => keyOf(request) === pressed?.dataset.key);
      if (!visit) return;
      const { example, image, request } = visit;
      say(said, await stage.open(example ? { example, request } : { image, request }), true);
    });
    return this.block('history', [
      this.visited, this.empty, element('div', { class: 'bar' }, this.forget, said)], 'wide');
  }

  /** Bring all up to the view on show. */
  show() {
    const { view } = stage;
    for (const made of this.needy) made.disabled = !view;
    this.mark();
    if (!view) return;
    this.showCode?.(view);
    const request = { ...view.settings, picture: undefined };
    const example = view.example ?? undefined;
    const link = toFragment({ example, request }, stage.language);
    if (this.address) this.address.value = new URL(link, pageAddress()).href;
    if (this.note) {
      this.note.textContent = view.example ? this.texts.with_picture : this.texts.without_picture;
    }
  }

  /** Show the history. */
  list() {
    const { all } = visits;
    this.visited?.replaceChildren(...all.map((visit) => element('li', {},
      element('button', {
        type: 'button', 'data-key': keyOf(visit.request), 'aria-label': this.nameOf(visit),
        title: this.nameOf(visit),
      }, element('img', { src: visit.thumbnail, alt: '' })))));
    if (this.empty) this.empty.hidden = all.length > 0;
    if (this.forget) this.forget.hidden = !all.length;
    this.mark();
  }

  /** Mark the view on show in the history. */
  mark() {
    const key = stage.view ? keyOf(stage.view.settings) : '';
    for (const shown of this.visited?.querySelectorAll('button') ?? []) {
      shown.setAttribute('aria-current', String(shown.dataset.key === key));
    }
  }

  /** @param {Visit} visit */
  nameOf({ request, example, image, time }) {
    const { rows, ratio, seed } = request.mask;
    const cells = rows.join('');
    const removed = cells.replaceAll('0', '').length / cells.length;
    return fill(rows.length ? this.texts.visit_own : this.texts.visit, {
      picture: example ?? fileOf({ image }), seed, model: request.model,
      percent: Math.round(100 * (rows.length ? removed : ratio)),
      time: new Date(time).toLocaleTimeString(stage.language, {
        hour: '2-digit', minute: '2-digit', hourCycle: 'h23',
      }),
    });
  }
}

/**
 * The panels as the server encodes them, with settings and facts.
 * @param {View} view
 * @param {AbortSignal} signal
 * @param {(text: string) => void} wait
 */
async function panelsOf(view, signal, wait) {
  /** @type {import('./zip.js').Entry[]} */
  const entries = [];
  for await (const part of stage.ask({ kind: 'files' }, signal)) {
    if (part.waiting) {
      wait(part.waiting);
      continue;
    }
    for (const name of PANELS) {
      const response = await fetch(part[name], { signal });
      if (!response.ok) throw new Error(response.statusText);
      entries.push({ name: `${name}.png`, bytes: new Uint8Array(await response.arrayBuffer()) });
    }
  }
  for (const name of /** @type {const} */ (['settings', 'facts'])) {
    entries.push({ name: `${name}.json`, bytes: new TextEncoder().encode(pretty(view[name])) });
  }
  return zip(entries, new Date());
}

/** @param {object} data */
function pretty(data) {
  return `${JSON.stringify(data, null, 2)}\n`;
}

/** The page's address without the fragment. */
function pageAddress() {
  return new URL('.', document.baseURI);
}

/** @param {Pick<View, 'image'>} view */
function fileOf({ image }) {
  return image.path.split(/[/\\]/).at(-1) ?? '';
}

/**
 * What saved files are named after.
 * @param {View} view
 */
function stemOf(view) {
  return view.example ?? fileOf(view).replace(/[.][^.]*$/, '');
}

/** A line that says how it went. */
function status() {
  return element('span', { class: 'said', role: 'status' });
}

/**
 * @param {HTMLElement} said
 * @param {string} text
 * @param {boolean} problem
 */
function say(said, text, problem = false) {
  said.setAttribute('role', problem && text ? 'alert' : 'status');
  said.textContent = text;
}
