"""Checks that memory does not grow: 100,000 short clips, then 100,000 files, in AudioTagger.

    python -m tests.benchmarks.memory [--clips 100000] [--every 5000]

The model is tiny, so that it takes minutes. What could grow (queues, window, results, journal) is
the same with any model. The files are links to twenty WAVs of different lengths. Prints Markdown:
resident memory of this process and of its worker processes together, after every 5,000 clips.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import soundfile
import torch

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, AudioTagger

RATE = 16000
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "frequency_stride": 16,
    "time_stride": 16,
    "num_labels": 527,
}


def noises() -> list[np.ndarray]:
    """Twenty clips with log-uniform lengths from 0.1 to 1 s."""
    random = np.random.default_rng(0)
    seconds = np.exp(random.uniform(np.log(0.1), np.log(1.0), 20))
    return [(0.1 * random.standard_normal(int(RATE * s))).astype(np.float32) for s in seconds]


def arrays(count: int) -> Iterator[np.ndarray]:
    clips = noises()
    for number in range(count):
        yield clips[number % len(clips)].copy()


def files(count: int, folder: Path) -> Iterator[Path]:
    """Makes links, a thousand per folder, as file systems limit the number of links to one file."""
    for number, clip in enumerate(noises()):
        soundfile.write(folder / f"{number}.wav", clip, RATE)
    for number in range(count):
        link = folder / str(number // 1000) / f"{number}.wav"
        if number % 1000 == 0:
            link.parent.mkdir()
        os.link(folder / f"{number % 20}.wav", link)
        yield link


def resident_mb(process: int | str = "self") -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3


def watch(title: str, tagger: AudioTagger, clips: Iterable, every: int) -> None:
    """Prints a row after every `every` clips, and the growth of memory since the first row."""
    print(f"\n| {title} | this process, MB | workers, MB | clips/s |\n| --: | --: | --: | --: |")
    begin, sizes = time.perf_counter(), []
    for number, tags in enumerate(tagger(clips), 1):
        if tags.error is not None:
            raise SystemExit(f"{tags.name}: {tags.error}")
        if number % every == 0:
            workers = sum(resident_mb(child.pid) for child in active_children())
            sizes.append((resident_mb(), workers))
            speed = number / (time.perf_counter() - begin)
            print(f"| {number:,} | {sizes[-1][0]:.1f} | {workers:.1f} | {speed:.0f} |", flush=True)
    # The workers have ended when the last results arrive.
    grown, workers = (last - first for first, last in zip(sizes[0], sizes[-2]))
    print(f"\nFrom the first row to the last but one: {grown:+.1f} MB, workers {workers:+.1f} MB.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch AudioTagger's memory over many clips.")
    parser.add_argument("--clips", type=int, default=100_000, metavar="N")
    parser.add_argument("--every", type=int, default=5_000, metavar="N")
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ASTConfig(**TINY)
    model = ASTForAudioClassification(config).eval()
    tagger = AudioTagger(model, ASTFeatureExtractor.from_config(config))
    watch("arrays of a generator", tagger, arrays(options.clips), options.every)
    with tempfile.TemporaryDirectory() as folder:
        paths = files(options.clips, Path(folder))
        watch("files of a folder", tagger, paths, options.every)


if __name__ == "__main__":
    main()
