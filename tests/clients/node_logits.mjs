// transformers.js on many clips of one length: node node_logits.mjs FOLDER DTYPE SAMPLES LENGTH
// SAMPLES holds float32 samples, clip after clip. Prints the logits of each.
import { readFileSync } from "node:fs";
import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, dtype, file, length] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const { processor, model } = await pipeline("audio-classification", path.basename(folder), { dtype });
const samples = new Float32Array(Uint8Array.from(readFileSync(file)).buffer);
const rows = [];
for (let start = 0; start < samples.length; start += Number(length)) {
  const inputs = await processor(samples.slice(start, start + Number(length)));
  rows.push(Array.from((await model(inputs)).logits.data));
}
process.stdout.write(JSON.stringify(rows));
