// The rules of the Python package that the page needs: cutting long recordings, averaging the
// scores of their parts, and finding events.

// Rounds as Python does: halves go to the even number.
function round(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

// Cuts a recording into equal parts of at most `longest` samples, each as [start, stop].
export function equalParts(numSamples, longest) {
  const count = Math.max(1, Math.ceil(numSamples / longest));
  const bounds = Array.from({ length: count + 1 }, (_, n) => round((n * numSamples) / count));
  return bounds.slice(1).map((stop, n) => [bounds[n], stop]);
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (x) => Math.exp(x - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// The scores of a whole recording: the mean of the scores of its parts, then the calibration.
export function meanScores(partLogits, { activation, slopes, intercepts }) {
  const several = activation === "sigmoid";
  const rows = partLogits.map((logits) =>
    several ? Array.from(logits, sigmoid) : softmax(logits),
  );
  const mean = rows[0].map((_, n) => rows.reduce((sum, row) => sum + row[n], 0) / rows.length);
  if (!slopes) return mean;
  if (!several) return softmax(mean.map((p, n) => slopes[n] * Math.log(p)));
  return mean.map((p, n) => sigmoid(slopes[n] * Math.log(p / (1 - p)) + intercepts[n]));
}

// Events: consecutive parts in which a label reaches the threshold, in the order of their start.
export function findEvents(parts, partScores, labels, threshold) {
  const events = [];
  labels.forEach((label, index) => {
    let current = null;
    parts.forEach(([start, stop], number) => {
      const score = partScores[number][index];
      if (score < threshold) {
        current = null;
      } else if (current) {
        current.stop = stop;
        current.score = Math.max(current.score, score);
      } else {
        events.push((current = { start, stop, label, score }));
      }
    });
  });
  return events.sort((a, b) => a.start - b.start || b.score - a.score);
}
