// A view as code: what makes its panels again, in Python and by HTTP.

/**
 * @typedef {object} Subject
 * @property {Record<string, any>} settings the request, as the server writes it
 * @property {string} file name of the picture's file, in the folder where the code runs
 * @property {string} page address, with the last /
 */

/**
 * With the library, on the reader's own machine.
 * @param {Subject} subject
 */
export function python({ settings, file }) {
  const { model, ...values } = named(settings);
  return `import mae_core

${rowsOf(settings)}reconstruct = mae_core.Reconstructor(mae_core.load(${literal(model)}))
result = reconstruct(
    ${literal(file)},
${lines(values, settings, 'cell == "1"')})
print(result.facts())
result.save("panels")
`;
}

/**
 * With `gradio_client`, by the page.
 * @param {Subject} subject
 */
export function client({ settings, file, page }) {
  return `import shutil

from gradio_client import Client, handle_file

${rowsOf(settings)}page = Client(${literal(page)})
*panels, facts = page.predict(
    image=handle_file(${literal(file)}),
${lines(named(settings), settings, 'int(cell)')}    api_name="/reconstruct",
)
for path in panels:
    shutil.copy(path, ".")
print(facts)
`;
}

/**
 * With cURL, by the page.
 * @param {Subject} subject
 */
export function curl({ settings, file, page }) {
  const { mask } = settings;
  const values = [
    mask.ratio, mask.seed, mask.strategy, settings.fit, settings.model, settings.image_size,
    settings.view, mask.rows.length ? mask.rows : null,
  ].map((value) => JSON.stringify(value)).join(', ');
  const form = `files=@"${file.replace(/["\\]/g, '\\$&')}"`;
  return `set -e
page=${quoted(page)}
path=$(curl -sSf -F ${quoted(form)} "\${page}gradio_api/upload" | cut -d '"' -f 2)
image="{\\"path\\": \\"$path\\", \\"meta\\": {\\"_type\\": \\"gradio.FileData\\"}}"
values=${quoted(values)}
id=$(curl -sSf "\${page}gradio_api/call/reconstruct" -H 'Content-Type: application/json' \\
  -d "{\\"data\\": [$image, $values]}" | cut -d '"' -f 4)
curl -sSfN "\${page}gradio_api/call/reconstruct/$id" | tee answer.txt
grep -o '"url": *"[^"]*' answer.txt | cut -d '"' -f 4 | while read -r url; do
  curl -sSfO "$url"
done
`;
}

/**
 * Values by the names of the API; an own mask takes the place of ratio, seed and strategy.
 * @param {Record<string, any>} settings
 * @returns {Record<string, any>}
 */
function named({ mask, fit, model, image_size, view }) {
  const { ratio: mask_ratio, seed, strategy } = mask;
  const drawn = mask.rows.length ? {} : { mask_ratio, seed, strategy };
  return { ...drawn, fit, model, image_size, view };
}

/**
 * Arguments of a call in Python, one in each line.
 * @param {Record<string, any>} values
 * @param {Record<string, any>} settings
 * @param {string} cell what a cell of an own mask becomes
 */
function lines(values, { mask }, cell) {
  const given = Object.entries(values).map(([name, value]) => `    ${name}=${literal(value)},\n`);
  if (mask.rows.length) given.push(`    mask=[[${cell} for cell in row] for row in rows],\n`);
  return given.join('');
}

/** @param {Record<string, any>} settings */
function rowsOf({ mask }) {
  return mask.rows.length ? `rows = """\n${mask.rows.join('\n')}\n""".split()\n\n` : '';
}

/**
 * A text, a number or nothing in Python.
 * @param {string | number | null} value
 */
function literal(value) {
  return value === null ? 'None' : JSON.stringify(value);
}

/**
 * A text as one word of a shell.
 * @param {string} text
 */
function quoted(text) {
  return `'${text.replace(/'/g, "'\\''")}'`;
}
