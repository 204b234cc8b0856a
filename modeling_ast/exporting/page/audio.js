// File -> mono samples at the model's rate; samples -> spectrogram.

const FORMATS = { 1: "integers", 3: "floats" };

// The samples of a plain WAV file at the model's rate, exactly as Python reads them; null for any
// other file.
function readWav(buffer, rate) {
  const view = new DataView(buffer);
  const word = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (view.byteLength < 44 || word(0) !== "RIFF" || word(8) !== "WAVE") return null;
  let format = null;
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    const body = at + 8;
    if (word(at) === "fmt " && body + 16 <= view.byteLength) {
      let kind = view.getUint16(body, true);
      if (kind === 0xfffe && size >= 26) kind = view.getUint16(body + 24, true); // extensible
      format = {
        kind: FORMATS[kind],
        channels: view.getUint16(body + 2, true),
        rate: view.getUint32(body + 4, true),
        bits: view.getUint16(body + 14, true),
      };
    } else if (word(at) === "data" && format) {
      return readSamples(view, body, Math.min(size, view.byteLength - body), format, rate);
    }
    at = body + size + (size % 2);
  }
  return null;
}

function readSamples(view, start, numBytes, { kind, channels, rate, bits }, wanted) {
  const readers = {
    "integers 16": (at) => view.getInt16(at, true) / 32768,
    "integers 24": (at) =>
      (view.getUint8(at) + 256 * view.getUint8(at + 1) + 65536 * view.getInt8(at + 2)) / 8388608,
    "integers 32": (at) => view.getInt32(at, true) / 2147483648,
    "floats 32": (at) => view.getFloat32(at, true),
  };
  const read = readers[`${kind} ${bits}`];
  if (!read || rate !== wanted || channels === 0) return null;
  const width = bits / 8;
  const samples = new Float32Array(Math.floor(numBytes / (width * channels)));
  for (let n = 0; n < samples.length; n++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += read(start + (n * channels + c) * width);
    samples[n] = sum / channels;
  }
  return samples;
}

// The mono samples of a file at `rate`; throws an Error with a message for the user.
export async function decode(file, rate) {
  const buffer = await file.arrayBuffer();
  let samples = readWav(buffer, rate);
  if (!samples) {
    let decoded;
    try {
      // The browser decodes any format that it can play, and resamples it.
      decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(buffer);
    } catch {
      throw new Error(
        `${file.name} cannot be decoded: it is damaged, or this browser cannot play its format. ` +
          "Try WAV, MP3, OGG or FLAC.",
      );
    }
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, c) =>
      decoded.getChannelData(c),
    );
    samples = channels[0].map((_, n) => {
      const sum = channels.reduce((total, channel) => total + channel[n], 0);
      return sum / channels.length;
    });
  }
  if (!samples.every(Number.isFinite)) {
    throw new Error(`${file.name} has samples that are NaN or infinity. Choose another file.`);
  }
  return samples;
}

const FFT_SIZE = 1024;

// FFT in place, radix 2: `real` and `imaginary` hold the samples and then the spectrum.
function fft(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let length = 2; length <= size; length *= 2) {
    const half = length / 2;
    for (let k = 0; k < half; k++) {
      const cos = Math.cos((-2 * Math.PI * k) / length);
      const sin = Math.sin((-2 * Math.PI * k) / length);
      for (let a = k; a < size; a += length) {
        const b = a + half;
        const re = real[b] * cos - imaginary[b] * sin;
        const im = real[b] * sin + imaginary[b] * cos;
        [real[b], imaginary[b]] = [real[a] - re, imaginary[a] - im];
        [real[a], imaginary[a]] = [real[a] + re, imaginary[a] + im];
      }
    }
  }
}

const mel = (hz) => 1127 * Math.log(1 + hz / 700);
const hzOfMel = (value) => 700 * (Math.exp(value / 1127) - 1);

// How high a frequency stands in the spectrogram: 0 at its lower edge, 1 at its upper edge.
export function heightOf(hz, rate) {
  return mel(hz) / mel(rate / 2);
}

// The spectrogram in decibels, from low to high: an array of `numRows` values, equally spaced in
// mel, for each column of time. There are about `numColumns` columns, or fewer for a short
// recording.
export function spectrogram(samples, rate, numColumns, numRows) {
  const columns = [];
  const bins = Array.from({ length: numRows }, (_, row) => {
    const hz = hzOfMel(((row + 0.5) / numRows) * mel(rate / 2));
    return Math.min((hz * FFT_SIZE) / rate, FFT_SIZE / 2 - 1);
  });
  const step = Math.max(rate / 100, (samples.length - FFT_SIZE) / numColumns);
  for (let at = 0; at + FFT_SIZE <= samples.length || columns.length === 0; at += step) {
    const real = new Float32Array(FFT_SIZE);
    real.set(samples.subarray(Math.floor(at), Math.floor(at) + FFT_SIZE));
    for (let n = 0; n < FFT_SIZE; n++) {
      real[n] *= 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / (FFT_SIZE - 1));
    }
    const imaginary = new Float32Array(FFT_SIZE);
    fft(real, imaginary);
    const power = real.map((re, n) => re * re + imaginary[n] ** 2);
    columns.push(
      bins.map((bin) => {
        const [below, share] = [Math.floor(bin), bin % 1];
        const between = power[below] * (1 - share) + power[below + 1] * share;
        return 10 * Math.log10(between + 1e-10);
      }),
    );
  }
  return columns;
}
