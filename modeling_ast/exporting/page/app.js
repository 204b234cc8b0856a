// The page: it shows the spectrogram, the scores and the timeline of a recording.
import { decode, heightOf, spectrogram } from "./audio.js";
import { equalParts, findEvents, meanScores } from "./rules.js";

const NUM_SHOWN = 10; // rows in the table of scores
const QUIETEST_DB = -80; // relative to the loudest value; everything below has the first colour
// From quiet to loud; lighter is louder, also without colours and for the colour-blind.
const COLOURS = [[5, 4, 25], [60, 15, 105], [140, 40, 125], [225, 80, 95], [252, 165, 110], [252, 253, 191]];
const NUM_ROWS = 128; // of the spectrogram, in mel
const HEIGHT = 220;
const AXIS = 36; // pixels for the axes; the timeline has as many at its left (style.css)
const KHZ_TICKS = [0.25, 0.5, 1, 2, 4, 8, 16];
const MOST_TIME_TICKS = 8;
// By default a browser cleans up speech, which changes every other sound.
const AS_IT_SOUNDS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const BITS_PER_SECOND = 256000;

const element = (id) => document.getElementById(id);
const settings = await fetch("settings.json")
  .then((response) => response.json())
  .catch((error) => {
    say("The model cannot be loaded.");
    fail(`The page is not complete (settings.json: ${error.message}). Reload the page.`);
    throw error;
  });
const worker = new Worker("worker.js", { type: "module" });
let result = null; // the result of the recording that is shown
let url = null;

function say(text, progress = null) {
  element("status").textContent = text;
  element("progress").hidden = progress === null;
  if (progress !== null) element("progress").value = progress;
}

function fail(text) {
  element("error").textContent = text;
  element("error").hidden = false;
}

// The worker's answer to a message; before the answer, the worker may report its progress.
function ask(message, onProgress = () => {}) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data.progress !== undefined) onProgress(data.progress);
      else if (data.error) reject(new Error(data.error));
      else resolve(data);
    };
    worker.onerror = () => reject(new Error("the worker cannot start; use a newer browser"));
    worker.postMessage(message);
  });
}

element("model").textContent =
  `Model: ${settings.model}. It knows ${settings.labels.length} sounds.`;
element("labels").textContent = settings.labels.join(" · ");
const ready = ask({}, (share) => say(`Loading the model: ${Math.round(100 * share)} %`, share))
  .then(() => say("Ready: choose a file, drop one, or record."))
  .catch((error) => {
    say("The model cannot be loaded.");
    fail(`The model cannot be loaded (${error.message}). Reload the page.`);
    throw error;
  });
ready.catch(() => {});

// Recordings are classified one after the other: each waits for those before it.
let queue = ready;
function classify(file) {
  queue = queue.then(() => classifyNow(file));
}

async function classifyNow(file) {
  element("error").hidden = true;
  element("result").hidden = true;
  try {
    say(`Decoding ${file.name} …`, 0);
    const samples = await decode(file, settings.sampling_rate);
    if (samples.length < settings.min_samples) {
      const shortest = (1000 * settings.min_samples) / settings.sampling_rate;
      throw new Error(
        `${file.name} is too short: at least ${shortest} ms are needed. Choose a longer recording.`,
      );
    }
    const parts = equalParts(samples.length, settings.max_samples);
    const partScores = [];
    const partLogits = [];
    for (const [start, stop] of parts) {
      say(`Classifying ${file.name} …`, partScores.length / parts.length);
      const { logits, scores } = await ask({ waveform: samples.slice(start, stop) });
      partLogits.push(logits);
      partScores.push(scores);
    }
    result = { file, samples, parts, partScores, scores: meanScores(partLogits, settings) };
    show();
    say(`Done: ${file.name}, ${seconds(samples.length)}.`);
  } catch (error) {
    say("Ready for another recording.");
    fail(error.message);
  }
}

function seconds(numSamples) {
  return `${(numSamples / settings.sampling_rate).toFixed(2)} s`;
}

function show() {
  const { file, samples, parts, scores } = result;
  element("result").hidden = false;
  element("name").textContent = file.name;
  if (url) URL.revokeObjectURL(url);
  url = URL.createObjectURL(file);
  element("player").src = url;
  const order = scores.map((_, n) => n).sort((a, b) => scores[b] - scores[a]);
  const rows = order.slice(0, NUM_SHOWN).map((n) => [settings.labels[n], scores[n].toFixed(4)]);
  fill("scores", rows, 0);
  document.querySelectorAll("#scores tbody tr").forEach((row, n) => {
    row.dataset.score = scores[order[n]];
  });
  element("timeline").hidden = parts.length === 1;
  showEvents();
  draw(samples);
  element("spectrogram").setAttribute(
    "aria-label",
    `Spectrogram of ${file.name}, ${seconds(samples.length)}, ` +
      `up to ${settings.sampling_rate / 2000} kHz`,
  );
}

// Writes rows of text into the body of a table. `heading` is the column that names a row; the last
// column is a score with a bar.
function fill(id, rows, heading) {
  const body = element(id).tBodies[0];
  body.replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach((text, n) => {
        const cell = document.createElement(n === heading ? "th" : "td");
        if (n === heading) cell.scope = "row";
        cell.textContent = text;
        row.append(cell);
      });
      row.lastChild.className = "bar";
      row.lastChild.style.setProperty("--score", cells.at(-1));
      return row;
    }),
  );
}

function showEvents() {
  const threshold = Number(element("threshold").value);
  element("shown").textContent = threshold.toFixed(2);
  if (!result) return;
  const { samples, parts, partScores } = result;
  const events = findEvents(parts, partScores, settings.labels, threshold);
  fill(
    "events",
    events.map(({ start, stop, label, score }) => [
      seconds(start), seconds(stop), label, score.toFixed(4),
    ]),
    2,
  );
  const lanes = [...new Set(events.map(({ label }) => label))].map((label) => {
    const lane = document.createElement("div");
    lane.className = "lane";
    for (const event of events.filter((other) => other.label === label)) {
      const bar = document.createElement("i");
      bar.style.left = `${(100 * event.start) / samples.length}%`;
      bar.style.width = `${(100 * (event.stop - event.start)) / samples.length}%`;
      lane.append(bar);
    }
    const name = document.createElement("span");
    name.textContent = label;
    lane.append(name);
    return lane;
  });
  const times = document.createElement("div");
  times.className = "times";
  const duration = samples.length / settings.sampling_rate;
  for (const [time, text] of timeTicks(duration)) {
    const label = document.createElement("span");
    label.style.left = `${(100 * time) / duration}%`;
    if (time / duration > 0.97) label.style.transform = "translateX(-100%)"; // else it is cut
    label.textContent = text;
    times.append(label);
  }
  element("lanes").replaceChildren(...lanes, ...(lanes.length ? [times] : []));
}

function draw(samples) {
  const canvas = element("spectrogram");
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.width = width * scale;
  canvas.height = HEIGHT * scale;
  const context = canvas.getContext("2d");
  const [left, bottom] = [AXIS * scale, canvas.height - (AXIS / 2) * scale];
  const rate = settings.sampling_rate;
  const columns = spectrogram(samples, rate, canvas.width - left, NUM_ROWS);
  const loudest = columns.reduce((most, column) => Math.max(most, ...column), -Infinity);
  const image = context.createImageData(columns.length, NUM_ROWS);
  columns.forEach((column, x) => {
    column.forEach((db, row) => {
      const place = Math.max(0, 1 - (db - loudest) / QUIETEST_DB);
      image.data.set(colourAt(place), 4 * ((NUM_ROWS - 1 - row) * columns.length + x));
    });
  });
  const picture = new OffscreenCanvas(columns.length, NUM_ROWS);
  picture.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(picture, left, 0, canvas.width - left, bottom);
  axes(context, scale, left, bottom, samples.length / rate);
}

// The colour of a loudness from 0 to 1, as red, green, blue and opacity.
function colourAt(place) {
  const position = place * (COLOURS.length - 1);
  const below = Math.min(Math.floor(position), COLOURS.length - 2);
  const share = position - below;
  return [...COLOURS[below].map((v, n) => v * (1 - share) + COLOURS[below + 1][n] * share), 255];
}

// Round numbers of seconds from 0 up to `duration`: at most MOST_TIME_TICKS steps.
function timeTicks(duration) {
  const least = duration / MOST_TIME_TICKS;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((wide) => wide >= least);
  const count = Math.floor(duration / step + 1e-6) + 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-6));
  return Array.from({ length: count }, (_, n) => [n * step, `${(n * step).toFixed(digits)}`]);
}

function axes(context, scale, left, bottom, duration) {
  context.fillStyle = context.strokeStyle = getComputedStyle(document.body).color;
  context.font = `${11 * scale}px system-ui, sans-serif`;
  context.lineWidth = scale;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const tick = (x, y, toX, toY) => {
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(toX, toY);
    context.stroke();
  };
  context.fillText("kHz", left - 6 * scale, 7 * scale);
  for (const khz of KHZ_TICKS) {
    const y = bottom * (1 - heightOf(1000 * khz, settings.sampling_rate));
    if (y < 14 * scale) continue; // above the picture, or where "kHz" stands
    tick(left - 4 * scale, y, left, y);
    context.fillText(`${khz}`, left - 6 * scale, y);
  }
  context.textBaseline = "top";
  for (const [time, text] of timeTicks(duration)) {
    const x = left + ((context.canvas.width - left) * time) / duration;
    tick(x, bottom, x, bottom + 3 * scale);
    const isAtEnd = x + context.measureText(text).width / 2 > context.canvas.width;
    context.textAlign = isAtEnd ? "right" : "center";
    context.fillText(text, x, bottom + 5 * scale);
  }
}

// A sentence for what getUserMedia throws.
function whyNoMicrophone(error) {
  if (!window.isSecureContext) return "The microphone needs a page from https:// or localhost.";
  const reasons = {
    NotAllowedError: "The microphone is not allowed: allow it for this page in the browser.",
    NotFoundError: "No microphone is connected.",
    NotReadableError: "The microphone does not answer: another program may be using it.",
  };
  return reasons[error.name] ?? `The microphone cannot be used (${error.message}).`;
}

async function record() {
  const button = element("record");
  button.onclick = null; // until the browser has an answer
  element("error").hidden = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_SOUNDS });
  } catch (error) {
    button.onclick = record;
    fail(`${whyNoMicrophone(error)} A file can be chosen all the same.`);
    return;
  }
  const recorder = new MediaRecorder(stream, { audioBitsPerSecond: BITS_PER_SECOND });
  const chunks = [];
  let clock = null;
  recorder.ondataavailable = ({ data }) => chunks.push(data);
  recorder.onstart = () => {
    const start = performance.now();
    clock = setInterval(() => {
      element("elapsed").textContent = `${((performance.now() - start) / 1000).toFixed(1)} s`;
    }, 100);
    say("Recording …");
  };
  recorder.onstop = () => {
    clearInterval(clock);
    element("elapsed").textContent = "";
    stream.getTracks().forEach((track) => track.stop());
    button.textContent = "Record";
    button.onclick = record;
    classify(new File(chunks, "Recording", { type: recorder.mimeType }));
  };
  recorder.start();
  button.textContent = "Stop";
  button.onclick = () => recorder.stop();
}

element("file").onchange = ({ target }) => {
  for (const file of target.files) classify(file);
  target.value = "";
};
element("record").onclick = record;
element("threshold").oninput = showEvents;
const drop = element("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") for (const file of event.dataTransfer.files) classify(file);
  });
}
window.addEventListener("resize", () => result && !element("result").hidden && draw(result.samples));
