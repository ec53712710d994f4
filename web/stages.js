// What happens to one picture inside the model, stage by stage: `mae_core.inside.stages`. Shapes
// and costs follow from the model's description and the tokens that its encoder had.

/** @typedef {import('./reconstruction.js').Description} Description */

/** @typedef {{name: string, block: number | null, shape: number[], flops: number}} Stage */

/**
 * One run, as `Trace.to_json`.
 * @param {import('./reconstruction.js').Reconstruction} result
 */
export function traceOf({ description, mask: { rows, idsKeep, idsRestore }, ratio, run }) {
  const { depth } = description.config;
  const length = idsRestore.length;
  const tokens = run.changes.length / depth;
  const [stages, all] = [tokens, length].map((count) => stagesOf(description, length, 1 + count));
  // An encoder that sees mask tokens has one for each removed patch too.
  const encoderIds = tokens === idsKeep.length ? idsKeep : inverse(idsRestore);
  return {
    stages,
    grid_size: [rows.length, rows[0].length],
    mask_ratio: ratio,
    ids_keep: idsKeep,
    ids_restore: idsRestore,
    encoder_ids: encoderIds,
    changes: Array.from({ length: depth }, (_, block) =>
      Array.from(run.changes.subarray(block * tokens, (block + 1) * tokens))),
    encoder_tokens: 1 + tokens,
    encoder_tokens_all: 1 + length,
    flops: total(stages),
    flops_all: total(all),
    encoder_flops: total(stages.filter(ofEncoder)),
    encoder_flops_all: total(all.filter(ofEncoder)),
    ...parametersOf(description),
  };
}

/** @param {number[]} ids a permutation */
function inverse(ids) {
  /** @type {number[]} */
  const places = new Array(ids.length);
  ids.forEach((place, id) => { places[place] = id; });
  return places;
}

/** @param {Stage[]} stages */
function total(stages) {
  return stages.reduce((sum, { flops }) => sum + flops, 0);
}

/** @param {Stage} stage */
function ofEncoder({ name }) {
  return name === 'embed' || name === 'encoder_block';
}

/**
 * @param {Description} description
 * @param {number} length L
 * @param {number} tokens of the encoder, the class token among them
 * @returns {Stage[]}
 */
function stagesOf(description, length, tokens) {
  const { encoder, decoder, values, target } = partsOf(description);
  const all = 1 + length;
  const inside = [1, tokens, encoder.width];
  const stage = (/** @type {string} */ name, /** @type {number[]} */ shape, flops = 0) =>
    ({ name, block: null, shape, flops });
  return [
    stage('patches', [1, length, values]),
    stage('embed', [1, length, encoder.width], 2 * length * values * encoder.width),
    stage('keep', inside),
    ...blocks('encoder_block', encoder, tokens),
    stage('norm', inside),
    stage('decoder_embed', [1, tokens, decoder.width], 2 * tokens * encoder.width * decoder.width),
    stage('restore', [1, all, decoder.width]),
    ...blocks('decoder_block', decoder, all),
    // The class token's row is predicted too, and dropped.
    stage('predict', [1, length, target], 2 * all * decoder.width * target),
  ];
}

/**
 * @param {string} name
 * @param {Part} part
 * @param {number} tokens
 * @returns {Stage[]}
 */
function blocks(name, part, tokens) {
  const flops = blockFlops(part, tokens);
  return Array.from({ length: part.depth }, (_, block) =>
    ({ name, block, shape: [1, tokens, part.width], flops }));
}

/** @typedef {{width: number, depth: number, hidden: number}} Part encoder or decoder */

/**
 * The sizes of a model; `values` and `target` are those of a patch and of what is predicted of it.
 * @param {Description} description
 */
function partsOf({ config, patch_size: side }) {
  const ratio = config.decoder_mlp_ratio ?? config.mlp_ratio;
  const [width, decoderWidth] = [config.embed_dim, config.decoder_embed_dim];
  const values = 3 * side ** 2;
  return {
    encoder: { width, depth: config.depth, hidden: Math.trunc(width * config.mlp_ratio) },
    decoder: {
      width: decoderWidth, depth: config.decoder_depth, hidden: Math.trunc(decoderWidth * ratio),
    },
    values,
    target: config.pca_components || values,
  };
}

/**
 * Matrix products only, a multiply-add counted as 2.
 * @param {Part} part
 * @param {number} tokens
 */
function blockFlops({ width, hidden }, tokens) {
  return 2 * tokens * 4 * width ** 2 + 4 * tokens ** 2 * width + 4 * tokens * width * hidden;
}

/** @param {Description} description */
function parametersOf(description) {
  const { encoder, decoder, values, target } = partsOf(description);
  const positions = 1 + description.grid[0] * description.grid[1];
  // Tokens, positions, blocks and a norm are in both.
  const own = (/** @type {Part} */ part) =>
    part.width + positions * part.width + part.depth * blockParameters(part) + 2 * part.width;
  const maskTokens = description.config.encoder_mask_tokens ? encoder.width : 0;
  return {
    encoder_parameters: own(encoder) + linear(values, encoder.width) + maskTokens,
    decoder_parameters: own(decoder) + linear(encoder.width, decoder.width)
      + linear(decoder.width, target),
  };
}

/** @param {Part} part */
function blockParameters({ width, hidden }) {
  return 4 * width + linear(width, 3 * width) + linear(width, width) + linear(width, hidden)
    + linear(hidden, width);
}

/**
 * @param {number} from
 * @param {number} to
 */
function linear(from, to) {
  return from * to + to;
}
