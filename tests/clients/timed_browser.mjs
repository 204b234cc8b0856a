// ONNX files in headless Chromium by onnxruntime-web, one run at a time, as they are asked for.
// node timed_browser.mjs CHROMIUM URL, then a line of JSON {"file", "threads"} on standard input for
// each run; answers with a line {"milliseconds", "logits"}. URL serves the files, the folder
// `runtime` of onnxruntime-web and `frames.json`: {"shape", "file"} of the input, float32.
import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const [chromium, url] = process.argv.slice(2);
const patience = { protocolTimeout: 1800000 };
const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox"], ...patience });

// A page for each file and number of threads: the runtime reads that number once.
async function open(file, threads) {
  const page = await browser.newPage();
  await page.goto(`${url}blank.html`);
  await page.evaluate(
    async (file, threads) => {
      const ort = await import("./runtime/ort.wasm.min.mjs");
      ort.env.wasm.wasmPaths = new URL("./runtime/", location.href).href;
      ort.env.wasm.numThreads = threads;
      const frames = await (await fetch("frames.json")).json();
      const values = new Float32Array(await (await fetch(frames.file)).arrayBuffer());
      const input_values = new ort.Tensor("float32", values, frames.shape);
      const session = await ort.InferenceSession.create(file);
      window.run = async () => {
        const start = performance.now();
        const { logits } = await session.run({ input_values });
        return { milliseconds: performance.now() - start, logits: Array.from(logits.data) };
      };
    },
    file,
    threads,
  );
  return page;
}

const pages = new Map();
try {
  for await (const line of createInterface({ input: process.stdin })) {
    const { file, threads } = JSON.parse(line);
    const key = `${file} ${threads}`;
    if (!pages.has(key)) pages.set(key, await open(file, threads));
    const page = pages.get(key);
    await page.bringToFront();
    const answer = await page.evaluate(() => window.run());
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
} finally {
  await browser.close();
}
