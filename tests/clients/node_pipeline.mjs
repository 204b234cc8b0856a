// transformers.js on a folder: for each WAV-like list of samples the features, logits and labels.
// node node_pipeline.mjs FOLDER DTYPE < clips.json > results.json
import { readFileSync } from "node:fs";
import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const classify = await pipeline("audio-classification", path.basename(folder), { dtype });
const results = [];
for (const clip of JSON.parse(readFileSync(0, "utf8"))) {
  const samples = Float32Array.from(clip);
  const inputs = await classify.processor(samples);
  const { logits } = await classify.model(inputs);
  const labels = await classify(samples, { top_k: 3 });
  results.push({
    shape: inputs.input_values.dims,
    features: Array.from(inputs.input_values.data),
    logits: Array.from(logits.data),
    labels,
  });
}
process.stdout.write(JSON.stringify(results));
