/** node embed.mjs MODEL_FOLDER items.json users.json: prints the embeddings of both lists as JSON. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { embed, encode } from './twotower.mjs';

const [folder, items, users] = process.argv.slice(2);
if (!users) {
  console.error('usage: node embed.mjs MODEL_FOLDER items.json users.json');
  process.exit(2);
}
const read = async (file) => JSON.parse(await readFile(file, 'utf8'));

const meta = await read(path.join(folder, 'model_meta.json'));
const session = await InferenceSession.create(path.join(folder, 'two_tower_latest.onnx'));
const result = {};
for (const [side, file, key] of [['item', items, 'video_id'], ['user', users, 'user_id']]) {
  const rows = await read(file);
  const { vectors, report } = encode(meta, side, rows);
  const embeddings = await embed(session, side, vectors);
  result[side] = { report, embeddings: embeddings.map((e, i) => ({ [key]: rows[i][key], embedding: [...e] })) };
}
console.log(JSON.stringify(result));
