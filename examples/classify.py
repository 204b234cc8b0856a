"""Names the sounds in audio files.

    python examples/classify.py MODEL FILE... [--top-k 5] [--json] [--plot out.png]

MODEL is an AST on the Hub (MIT/ast-finetuned-audioset-10-10-0.4593) or a directory. FILE is WAV,
FLAC, OGG, Opus or MP3 of any rate and any number of channels: it is mixed down and resampled. A
file longer than the model's input is heard whole, in windows whose scores are averaged. A bad file
is told in one line, the others are classified; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.utils import logging

from modeling_ast import activation, read_audio

WINDOWS_PER_BATCH = 8


@dataclass
class Result:
    """What the model says of one file."""

    file: str
    seconds: float
    scores: dict[str, float]  # label -> score, highest first
    frames: np.ndarray  # (T, F): the first window as the model saw it


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Name the sounds in audio files with an AST checkpoint.",
        epilog="Files over the model's length (10.24 s for AudioSet) are heard in windows; the "
        "scores are the mean over the windows.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint on the Hub, or a directory")
    parser.add_argument("files", metavar="FILE", nargs="+", help="WAV, FLAC, OGG, Opus or MP3")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels shown (5)")
    parser.add_argument(
        "--scores",
        choices=("auto", "sigmoid", "softmax"),
        default="auto",
        help="sigmoid: each label for itself; softmax: one label for all. auto asks the config and "
        "takes sigmoid for AudioSet's 527 classes, whose configs do not say it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", metavar="PNG", help="draw spectrograms and labels to this file")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; a GPU if there is one")
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        parser.error(f"--top-k is {options.top_k}; give at least 1")
    return options


def load(name: str, device: str | None):
    """The model, on its device, and its extractor."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    extractor = AutoFeatureExtractor.from_pretrained(name)
    return AutoModelForAudioClassification.from_pretrained(name).to(device), extractor


def windows_of(waveform: np.ndarray, extractor) -> list[np.ndarray]:
    """Cuts a waveform into windows of the model's length; a short rest joins as its own window."""
    samples = extractor.max_length * extractor.sampling_rate // 100
    shortest = extractor.sampling_rate // 10
    starts = range(0, len(waveform), samples)
    windows = [waveform[start : start + samples] for start in starts]
    if len(windows) > 1 and len(windows[-1]) < shortest:
        windows.pop()  # less than a tenth of a second cannot be told apart from nothing
    return windows


@torch.inference_mode()
def classify(path: str, model, extractor, scores: str = "auto") -> Result:
    """Classifies one file; raises OSError or ValueError with one sentence if it is bad."""
    waveform = read_audio(path, extractor.sampling_rate)
    windows = windows_of(waveform, extractor)
    name, totals, frames = activation(scores, model.config), 0.0, None
    for start in range(0, len(windows), WINDOWS_PER_BATCH):
        batch = windows[start : start + WINDOWS_PER_BATCH]
        inputs = extractor(batch, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        frames = inputs["input_values"][0].numpy() if frames is None else frames
        logits = model(**inputs.to(model.device)).logits.float()  # (windows, C)
        rows = logits.sigmoid() if name == "sigmoid" else logits.softmax(-1)
        weights = torch.tensor([len(window) for window in batch], device=rows.device)
        totals = totals + (weights[:, None] * rows).sum(0)  # (C,)
    means = (totals / sum(len(window) for window in windows)).cpu()
    order = means.argsort(descending=True).tolist()
    by_label = {model.config.id2label[index]: means[index].item() for index in order}
    return Result(str(path), len(waveform) / extractor.sampling_rate, by_label, frames)


def top(result: Result, k: int) -> list[tuple[str, float]]:
    """The k labels of the highest scores."""
    return list(result.scores.items())[:k]


def table(results: list[Result], k: int) -> str:
    """Labels and scores for reading."""
    lines = []
    for result in results:
        lines.append(f"{result.file} ({result.seconds:.2f} s)")
        for label, score in top(result, k):
            bar = "█" * round(20 * score)
            lines.append(f"  {score:6.3f}  {bar:<20}  {label}")
    return "\n".join(lines)


def as_json(results: list[Result], k: int) -> str:
    """Labels and scores for programs."""
    rows = [
        {
            "file": result.file,
            "seconds": round(result.seconds, 3),
            "labels": [{"label": label, "score": score} for label, score in top(result, k)],
        }
        for result in results
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def plot(results: list[Result], k: int, path: str) -> None:
    """Draws a row for each file: its spectrogram, and its labels."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib ({error}); pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results),
        2,
        figsize=(10, 2.6 * len(results)),
        width_ratios=(3, 2),
        squeeze=False,
        layout="constrained",
    )
    for (left, right), result in zip(axes, results):
        # Of each second 98 to 100 frames are whole windows; what follows is padding.
        shown = result.frames[: max(1, round(100 * result.seconds) - 2)]
        extent = (0, len(shown) / 100, 0, shown.shape[1])
        left.imshow(shown.T, origin="lower", aspect="auto", extent=extent, cmap="magma")
        left.set(title=Path(result.file).name, xlabel="seconds", ylabel="mel bin")
        labels, scores = zip(*reversed(top(result, k)))
        right.barh(labels, scores, color="tab:orange")
        right.set(xlim=(0, 1), xlabel="score")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Classifies each file; what is wrong is told in one line."""
    options = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, extractor = load(options.model, options.device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        sys.exit(f"error: cannot load the model {options.model!r}: {reason}")
    results, bad = [], 0
    silent = True if len(options.files) < 2 else None  # None: where nobody is looking
    for path in tqdm(options.files, unit="file", disable=silent, leave=False):
        try:
            results.append(classify(path, model, extractor, options.scores))
        except (OSError, ValueError, ImportError) as error:
            bad += 1
            tqdm.write(f"error: {path}: {error}", file=sys.stderr)
    if results:
        report = as_json if options.json else table
        sys.stdout.write(report(results, options.top_k) + "\n")
    if results and options.plot:
        try:
            plot(results, options.top_k, options.plot)
        except (OSError, ValueError) as error:
            sys.exit(f"error: cannot draw {options.plot}: {error}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
