// waveform.onnx in WebAssembly (onnxruntime-web) on many clips of one length:
// node node_wasm.mjs MODEL SAMPLES LENGTH. SAMPLES holds float32 samples, clip after clip. Prints the
// scores of each.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [model, file, length] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model));
const samples = new Float32Array(Uint8Array.from(readFileSync(file)).buffer);
const rows = [];
for (let start = 0; start < samples.length; start += Number(length)) {
  const clip = samples.slice(start, start + Number(length));
  const { scores } = await session.run({
    waveform: new ort.Tensor("float32", clip, [1, clip.length]),
    num_samples: new ort.Tensor("int64", [BigInt(clip.length)], [1]),
  });
  rows.push(Array.from(scores.data));
}
process.stdout.write(JSON.stringify(rows));
