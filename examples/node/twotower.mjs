/**
 * From rows to embeddings, with model_meta.json and the ONNX file alone.
 *
 * The formulas are written out in README.md. This file has no other dependency than the `Tensor` that onnxruntime-node
 * (servers) and onnxruntime-web (browsers, edge functions) share, so it works with a session of either.
 */
import { Tensor } from 'onnxruntime-common';

/**
 * @typedef {'item' | 'user'} Side
 *
 * @typedef {object} Segment one stretch of the vector
 * @property {string} name unique on its side
 * @property {string} column the field that it reads
 * @property {'multi_hot' | 'one_hot' | 'numeric' | 'binned' | 'hashed'} kind
 * @property {number} offset its first position
 * @property {number} width how many positions it has
 * @property {string} [vocabulary] multi_hot, one_hot: where its words are
 * @property {'identity' | 'log1p' | 'year'} [transform] numeric, binned
 * @property {number} [mean] numeric
 * @property {number} [std] numeric
 * @property {number[]} [edges] binned, ascending
 *
 * @typedef {{ width: number, segments: Segment[] }} SideDefinition
 *
 * @typedef {object} Meta model_meta.json, as far as it is needed here
 * @property {{ input_schema_version: number, vocabularies: Record<string, string[]>,
 *              item: SideDefinition, user: SideDefinition }} encoding
 *
 * @typedef {'embedding' | 'taste'} Output what to ask a tower for
 *
 * @typedef {Record<string, unknown>} Row an item or a user; every field may be missing or null
 *
 * @typedef {object} Vectors
 * @property {Float32Array} data one row after the other
 * @property {number} rows
 * @property {number} width
 *
 * @typedef {object} Report nothing of this is an error, all of it is worth a look
 * @property {number} rows
 * @property {string[]} ignoredColumns fields that the model does not know
 * @property {string[]} missingColumns fields that the model knows and no row has; they count as zeros
 * @property {Record<string, number>} unknownWords by segment, words that the vocabulary does not know
 */

/** The newest definition that this file can read. */
export const INPUT_SCHEMA_VERSION = 1;

/** Positions of words by vocabulary; a Map, since 'constructor' is a word like any other. */
const positions = new WeakMap();

/** @param {Meta} meta @param {string} vocabulary @returns {Map<string, number>} */
function positionsOf(meta, vocabulary) {
  if (!positions.has(meta)) positions.set(meta, new Map());
  const known = positions.get(meta);
  if (!known.has(vocabulary)) {
    known.set(vocabulary, new Map(meta.encoding.vocabularies[vocabulary].map((word, position) => [word, position])));
  }
  return known.get(vocabulary);
}

/** What a row has in a segment's column, checked. @param {Segment} segment @param {unknown} value */
function checked(segment, value) {
  const isText = (x) => typeof x === 'string';
  const rules = {
    multi_hot: ['a list of texts', (x) => Array.isArray(x) && x.every((word) => word == null || isText(word))],
    one_hot: ['a text', isText],
    hashed: ['a text', isText],
    number: ['a number', (x) => typeof x === 'number' || typeof x === 'boolean'],
    year: ['a date, YYYY-MM-DD', (x) => isText(x) && !Number.isNaN(days(x))],
  };
  const [what, holds] = rules[segment.transform === 'year' ? 'year' : segment.kind] ?? rules.number;
  if (!holds(value)) throw new TypeError(`${segment.column} must be ${what}, not ${JSON.stringify(value)}`);
  return value;
}

/** Days since 1970-01-01, NaN if the text is no date of the calendar. @param {string} text */
function days(text) {
  const time = /^\d{4}-\d{2}-\d{2}$/.test(text) ? Date.parse(text) : NaN;
  return !Number.isNaN(time) && new Date(time).toISOString().startsWith(text) ? time / 86_400_000 : NaN;
}

/** @param {Segment} segment @param {any} value @returns {number} NaN or an infinity counts as missing */
function transformed(segment, value) {
  if (segment.transform === 'year') return 1970 + days(value) / 365.2425;
  const x = Number(value);
  return segment.transform === 'log1p' && Number.isFinite(x) ? Math.log1p(Math.max(x, 0)) : x;
}

/**
 * Buckets of the trigrams of a text.
 *
 * Each code point becomes the first code point of its lower case, all by itself: `text.toLowerCase()` would look at the
 * neighbours of a sigma and make two code points of İ.
 *
 * @param {string} text @param {number} size number of buckets @returns {Set<number>}
 */
export function trigrams(text, size) {
  const lower = Array.from(text.normalize('NFKC'), (c) => c.toLowerCase().codePointAt(0));
  const codes = [0x20, ...lower, 0x20];
  const buckets = new Set();
  for (let i = 0; i < lower.length; i++) {
    const first = Math.imul(codes[i], 0x9e3779b1); // imul multiplies modulo 2 ** 32
    const h = Math.imul(Math.imul(first + codes[i + 1], 0x85ebca77) + codes[i + 2], 0xc2b2ae3d);
    buckets.add(((h ^ (h >>> 16)) >>> 0) % size);
  }
  return buckets;
}

/**
 * What one segment says of one row.
 *
 * @param {Meta} meta @param {Segment} segment @param {any} value not null
 * @returns {{ at: Iterable<number>, value: number, unknown?: number }} the same value at some positions of the segment
 */
function stretch(meta, segment, value) {
  const even = (at) => ({ at, value: 1 / Math.sqrt(at.size) }); // a vector of length 1
  switch (segment.kind) {
    case 'multi_hot':
    case 'one_hot': {
      const known = positionsOf(meta, segment.vocabulary);
      const words = (Array.isArray(value) ? value : [value]).filter((word) => word != null);
      const found = words.map((word) => known.get(word)).filter((position) => position !== undefined);
      return { ...even(new Set(found)), unknown: words.length - found.length };
    }
    case 'hashed':
      return even(trigrams(value, segment.width));
    case 'numeric': {
      const z = (transformed(segment, value) - segment.mean) / segment.std;
      return { at: Number.isFinite(z) ? [0] : [], value: Math.min(Math.max(z, -4), 4) };
    }
    case 'binned': {
      const x = transformed(segment, value);
      return { at: Number.isFinite(x) ? [segment.edges.filter((edge) => edge <= x).length] : [], value: 1 };
    }
    default:
      throw new TypeError(`segment ${segment.name} is of the unknown kind ${segment.kind}`);
  }
}

/**
 * Turn rows into vectors. They are dense, so send a large catalogue some hundred rows at a time.
 *
 * @param {Meta} meta @param {Side} side @param {Row[]} rows
 * @returns {{ vectors: Vectors, report: Report }}
 */
export function encode(meta, side, rows) {
  const { input_schema_version: version, [side]: definition } = meta.encoding;
  if (version > INPUT_SCHEMA_VERSION) {
    throw new RangeError(`the model has input_schema_version ${version}, this program knows ${INPUT_SCHEMA_VERSION}`);
  }
  const { width, segments } = definition;
  const data = new Float32Array(rows.length * width);
  /** @type {Record<string, number>} */
  const unknownWords = {};
  for (const segment of segments) {
    rows.forEach((row, i) => {
      const given = row[segment.column];
      if (given == null) return; // zeros
      const { at, value, unknown = 0 } = stretch(meta, segment, checked(segment, given));
      for (const position of at) data[i * width + segment.offset + position] = value;
      if (unknown) unknownWords[segment.name] = (unknownWords[segment.name] ?? 0) + unknown;
    });
  }
  const present = new Set(rows.flatMap((row) => Object.keys(row).filter((column) => row[column] != null)));
  const wanted = segments.map((segment) => segment.column);
  const ignoredColumns = [...present].filter((name) => ![...wanted, `${side}_id`, 'video_id'].includes(name)).sort();
  const missingColumns = wanted.filter((name) => !present.has(name));
  const report = { rows: rows.length, ignoredColumns, missingColumns, unknownWords };
  return { vectors: { data, rows: rows.length, width }, report };
}

/**
 * Complete vectors of an older definition with zeros, for a model whose definition begins with the older one.
 *
 * @param {Vectors} vectors @param {number} width what the model expects @returns {Vectors}
 */
export function pad(vectors, width) {
  if (vectors.width > width) throw new RangeError(`vectors have ${vectors.width} columns, the model has only ${width}`);
  const data = new Float32Array(vectors.rows * width);
  for (let i = 0; i < vectors.rows; i++) {
    data.set(vectors.data.subarray(i * vectors.width, (i + 1) * vectors.width), i * width);
  }
  return { data, rows: vectors.rows, width };
}

/** Can the model say how likely a like is? @param {import('onnxruntime-common').InferenceSession} session */
export const hasTaste = (session) => session.outputNames.includes('user_taste');

/** @param {import('onnxruntime-common').InferenceSession} session @param {Record<string, Tensor>} feeds @param {string} name */
async function answer(session, feeds, name) {
  if (!session.outputNames.includes(name)) throw new RangeError(`the model has no ${name}: it was made without tastes`);
  return (await session.run(feeds, [name]))[name];
}

/**
 * How likely this user is to like this video rather than to dislike it, once they have seen it.
 *
 * @param {Float32Array} user a taste of a user @param {Float32Array} item a taste of an item @returns {number} 0 to 1
 */
export function probability(user, item) {
  return 1 / (1 + Math.exp(-user.reduce((odds, x, i) => odds + x * item[i], 0)));
}

/**
 * Ask one tower; the other one gets no rows.
 *
 * @param {import('onnxruntime-common').InferenceSession} session of two_tower_latest.onnx
 * @param {Side} side @param {Vectors} vectors @param {Output} [what]
 * @returns {Promise<Float32Array[]>} for each row an embedding of length 1, or a taste
 */
export async function embed(session, side, vectors, what = 'embedding') {
  /** @type {Record<string, Tensor>} */
  const feeds = {};
  for (const input of session.inputMetadata) {
    if (input.isTensor) feeds[input.name] = new Tensor('float32', new Float32Array(0), [0, Number(input.shape[1])]);
  }
  const name = `${side}_features`;
  const expected = feeds[name].dims[1];
  if (vectors.width !== expected) {
    throw new RangeError(`${side} vectors have ${vectors.width} columns, the model takes ${expected}`);
  }
  feeds[name] = new Tensor('float32', vectors.data, [vectors.rows, vectors.width]);
  const result = await answer(session, feeds, `${side}_${what}`);
  const data = /** @type {Float32Array} */ (result.data);
  const dimension = result.dims[1];
  return Array.from({ length: vectors.rows }, (_, i) => data.slice(i * dimension, (i + 1) * dimension));
}

/**
 * Positions and values of what is set in each row, as two_tower_latest.sparse.onnx takes them; −1 fills up the shorter rows.
 *
 * @param {Vectors} vectors @returns {{ indices: BigInt64Array, values: Float32Array, rows: number, places: number }}
 */
export function sparse({ data, rows, width }) {
  const set = Array.from({ length: rows }, () => []);
  data.forEach((value, i) => value !== 0 && set[Math.floor(i / width)].push(i % width));
  const places = Math.max(0, ...set.map((row) => row.length));
  const indices = new BigInt64Array(rows * places).fill(-1n);
  const values = new Float32Array(rows * places);
  set.forEach((row, i) =>
    row.forEach((position, j) => {
      indices[i * places + j] = BigInt(position);
      values[i * places + j] = data[i * width + position];
    }),
  );
  return { indices, values, rows, places };
}

/**
 * Ask one tower of the second graph, which takes a fraction of the memory where vectors are wide.
 *
 * @param {import('onnxruntime-common').InferenceSession} session of two_tower_latest.sparse.onnx
 * @param {Side} side @param {ReturnType<typeof sparse>} given @param {Output} [what]
 * @returns {Promise<Float32Array[]>} for each row an embedding of length 1, or a taste
 */
export async function embedSparse(session, side, { indices, values, rows, places }, what = 'embedding') {
  /** @type {Record<string, Tensor>} */
  const feeds = {};
  for (const name of ['user', 'item']) {
    const [i, v, dims] = name === side ? [indices, values, [rows, places]] : [new BigInt64Array(0), new Float32Array(0), [0, 0]];
    feeds[`${name}_indices`] = new Tensor('int64', i, dims);
    feeds[`${name}_values`] = new Tensor('float32', v, dims);
  }
  const result = await answer(session, feeds, `${side}_${what}`);
  const data = /** @type {Float32Array} */ (result.data);
  return Array.from({ length: rows }, (_, i) => data.slice(i * result.dims[1], (i + 1) * result.dims[1]));
}
