// transformers.js in Node on frames, one run at a time, as they are asked for.
// node timed_node.mjs FOLDER, then a line of JSON {"dtype"} on standard input for each run; answers
// with a line {"milliseconds", "logits"}. FOLDER holds `frames.json`: {"shape", "file"} of the input.
import { readFileSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { AutoModelForAudioClassification, env, Tensor } from "@huggingface/transformers";

const folder = path.resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const { shape, file } = JSON.parse(readFileSync(path.join(folder, "frames.json"), "utf8"));
const bytes = readFileSync(path.join(folder, file));
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const input_values = new Tensor("float32", values, shape);

const models = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const { dtype } = JSON.parse(line);
  if (!models.has(dtype)) {
    const given = { dtype };
    models.set(dtype, await AutoModelForAudioClassification.from_pretrained(path.basename(folder), given));
  }
  const start = performance.now();
  const { logits } = await models.get(dtype)({ input_values });
  const milliseconds = performance.now() - start;
  process.stdout.write(`${JSON.stringify({ milliseconds, logits: Array.from(logits.data) })}\n`);
}
