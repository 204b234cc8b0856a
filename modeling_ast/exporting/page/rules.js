// The package's rules that the page needs: cutting long recordings, and events from the parts.

// Python's round: halves go to the even number.
function round(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

// Where a recording is cut: equal parts of at most `longest` samples, as [start, stop].
export function equalParts(numSamples, longest) {
  const count = Math.max(1, Math.ceil(numSamples / longest));
  const bounds = Array.from({ length: count + 1 }, (_, n) => round((n * numSamples) / count));
  return bounds.slice(1).map((stop, n) => [bounds[n], stop]);
}

// The mean of the parts' scores: those of the whole recording.
export function meanScores(partScores) {
  return Array.from(partScores[0], (_, label) => {
    const sum = partScores.reduce((total, scores) => total + scores[label], 0);
    return sum / partScores.length;
  });
}

// Stretches of consecutive parts in which a label reaches the threshold, by time.
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
