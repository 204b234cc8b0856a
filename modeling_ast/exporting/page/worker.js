// Loads and runs the model in a thread of its own, so that the page stays responsive.
import * as ort from "./vendor/ort.wasm.min.mjs";

let session = null;

// The bytes of a file; calls `onProgress` with the share that has arrived.
async function download(url, onProgress) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answered with status ${response.status}`);
  const total = Number(response.headers.get("content-length")) || 0;
  const chunks = [];
  let size = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
    if (total) onProgress(Math.min(1, size / total));
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function load() {
  ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
  // Several threads need HTTP headers that a Space sends, but a plain server does not.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const report = (progress) => self.postMessage({ progress });
  const model = await download("waveform_quantized.onnx", report);
  session = await ort.InferenceSession.create(model);
  self.postMessage({ ready: true });
}

async function run(waveform) {
  const { logits, scores } = await session.run({
    waveform: new ort.Tensor("float32", waveform, [1, waveform.length]),
    num_samples: new ort.Tensor("int64", [BigInt(waveform.length)], [1]),
  });
  self.postMessage({ logits: logits.data, scores: scores.data });
}

self.onmessage = async ({ data }) => {
  try {
    await (data.waveform ? run(data.waveform) : load());
  } catch (error) {
    self.postMessage({ error: String(error.message ?? error) });
  }
};
