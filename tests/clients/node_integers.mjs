// An ONNX file of integers in WebAssembly (onnxruntime-web): node node_integers.mjs MODEL COLUMNS
// Its input `x`, uint8 [256, COLUMNS], has 0 to 255 in each column. Prints the output `y`.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [file, columns] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(file));
const values = Uint8Array.from({ length: 256 * columns }, (_, n) => Math.floor(n / columns));
const x = new ort.Tensor("uint8", values, [256, Number(columns)]);
const { y } = await session.run({ x });
process.stdout.write(JSON.stringify(Array.from(y.data)));
