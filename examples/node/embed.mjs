/** node embed.mjs MODEL_FOLDER items.json users.json: prints the embeddings of both lists as JSON, and the tastes if the model has them. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { embed, encode, hasTaste } from './twotower.mjs';

const [folder, items, users] = process.argv.slice(2);
if (!users) {
  console.error('usage: node embed.mjs MODEL_FOLDER items.json users.json');
  process.exit(2);
}
const read = async (file) => JSON.parse(await readFile(file, 'utf8'));

const meta = await read(path.join(folder, 'model_meta.json'));
const session = await InferenceSession.create(path.join(folder, 'two_tower_latest.onnx'));

/** @param {import('./twotower.mjs').Side} side @param {string} file @param {string} key the field of the id */
async function embedded(side, file, key) {
  const rows = await read(file);
  const { vectors, report } = encode(meta, side, rows);
  const embeddings = await embed(session, side, vectors);
  const tastes = hasTaste(session) ? await embed(session, side, vectors, 'taste') : [];
  const told = (i) => (tastes[i] ? { taste: [...tastes[i]] } : {});
  return { report, embeddings: embeddings.map((e, i) => ({ [key]: rows[i][key], embedding: [...e], ...told(i) })) };
}

const result = { item: await embedded('item', items, 'video_id'), user: await embedded('user', users, 'user_id') };
console.log(JSON.stringify(result));
