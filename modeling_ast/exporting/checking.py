"""Compares the logits of ONNX files with those of the package, for many lengths and batches.

The references are the extractor and the network in torch, which share no code with the front end
of the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..conversion.key_maps import ConversionError
from ..feature_extraction_ast import ASTFeatureExtractor
from ..tagging import AudioTagger
from .onnx_files import OPTIONAL, OnnxFile
from .running import inputs_of, open_session

NUM_LENGTHS, MOST_CLIPS = 30, 4
# Largest error of a file. For floats the error is the largest difference from torch, divided by the
# largest logit (at least 1); rounding explains errors up to the limit. For int8 it is the root mean
# square of the differences, divided by the standard deviation of the logits.
LIMITS = {"float32": 1e-4, "float16": 1e-2, "int8": 0.05}
# Number of timed runs of each file, on a clip of the model's length.
TIMED_RUNS = 5


class FileReport(NamedTuple):
    """The size, the error and the speed of a file."""

    file: str
    megabytes: float
    error: float  # see LIMITS
    limit: float
    ms_per_clip: float  # median for one clip of the model's length


class Probe(NamedTuple):
    """A batch of clips and its logits in torch."""

    waveforms: list[Tensor]
    logits: dict[str, Tensor]  # (B, C) by kind of graph


def made_up_clips(extractor: ASTFeatureExtractor) -> list[list[Tensor]]:
    """Batches of 1 to 4 clips, for 30 lengths from one frame to the model's length.

    The first clip of a batch has that length, and the others are not longer. Each clip is a rising
    tone in noise; the clips have levels from very quiet to full scale.
    """
    generator = np.random.default_rng(0)
    shortest, longest, rate = (
        extractor.window_samples,
        extractor.max_samples,
        extractor.sampling_rate,
    )
    lengths = np.linspace(shortest, longest, NUM_LENGTHS).round().astype(int).tolist()
    batches = []
    for number, length in enumerate(lengths):
        others = generator.integers(shortest, length + 1, number % MOST_CLIPS).tolist()
        clips = []
        for num_samples in (length, *others):
            seconds = np.arange(num_samples) / rate
            hz = generator.uniform(50, rate / 8)
            tone = np.sin(2 * np.pi * hz * (1 + seconds / 10) * seconds)
            noise = generator.standard_normal(num_samples) * 10 ** generator.uniform(-4, -1)
            clip = (tone + noise) * 10 ** generator.uniform(-3, 0)
            clips.append(torch.from_numpy(clip.clip(-1, 1).astype(np.float32)))
        batches.append(clips)
    return batches


@torch.inference_mode()
def judged_clips(tagger: AudioTagger, kinds: Iterable[str]) -> list[Probe]:
    """The made-up clips with their logits in torch, for each kind of graph."""
    model, extractor = tagger.model, tagger.extractor
    judges: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "frames": lambda clips: model(extractor.extract(clips, "longest").input_values).logits,
        "masked": lambda clips: model(**extractor.extract(clips, "longest")).logits,
        "waveform": tagger.logits,
    }
    batches = tqdm(made_up_clips(extractor), "Made-up clips in torch", leave=False)
    wanted = sorted(set(kinds))
    return [Probe(clips, {kind: judges[kind](clips) for kind in wanted}) for clips in batches]


def error_of(file: OnnxFile, path: Path, probes: list[Probe], tagger: AudioTagger) -> float:
    """The error of a file's logits, as defined at `LIMITS`; scores count like logits."""
    session = open_session(path)
    differences, expected = [], []
    for probe in tqdm(probes, file.name, leave=False):
        inputs = inputs_of(file, probe.waveforms, tagger.extractor, "longest")
        logits, *scores = session.run(None, inputs)
        reference = probe.logits[file.graph]  # (B, C)
        differences.append(logits - reference.numpy())
        expected.append(reference.numpy())
        if scores and file.precision != "int8":
            own = tagger.scores_of(reference)  # (B, C)
            if tagger.calibration is not None:
                own = tagger.calibration.apply(own)
            differences.append(scores[0] - own)
    difference, logits = np.concatenate(differences), np.concatenate(expected)
    if not np.isfinite(difference).all():
        return float("inf")
    if file.precision == "int8":
        return float(np.sqrt(np.mean(difference**2)) / logits.std())
    return float(np.abs(difference).max() / max(1.0, np.abs(logits).max()))


def check_files(
    paths: Mapping[OnnxFile, Path], tagger: AudioTagger
) -> tuple[list[FileReport], float]:
    """Compares each file with torch, and times it.

    Args:
        paths: File -> the path that it was written to.
        tagger: With the model in torch, float32, on the CPU, and the extractor.
    Returns:
        A report for each file, and torch's milliseconds for a clip of the model's length.
    Raises:
        ConversionError: The error of a file exceeds its limit.
    """
    probes = judged_clips(tagger, [file.graph for file in paths])
    errors = {}
    for file, path in paths.items():
        errors[file] = error_of(file, path, probes, tagger)
        if not errors[file] <= LIMITS[file.precision]:
            remedy = f": export the others with --leave-out {file.precision}"
            raise ConversionError(
                f"the logits of {file.path} have an error of {errors[file]:.2g} but at most "
                f"{LIMITS[file.precision]:g} is allowed for {file.precision}; nothing was written"
                f"{remedy if file.precision in OPTIONAL else ''}"
            )
    times = milliseconds(paths, tagger)
    reports = [
        FileReport(
            file.path,
            path.stat().st_size / 1e6,
            errors[file],
            LIMITS[file.precision],
            times[file],
        )
        for file, path in paths.items()
    ]
    return reports, times[None]


def milliseconds(
    paths: Mapping[OnnxFile, Path], tagger: AudioTagger
) -> dict[OnnxFile | None, float]:
    """Median time for one clip of the model's length: of each file, and of torch under None.

    They run in turns, so that other work of the machine affects all of them equally. Times of files
    that take frames do not include the extractor.
    """
    noise = torch.from_numpy(
        np.random.default_rng(0).uniform(-0.1, 0.1, tagger.extractor.max_samples)
    )
    clip = [noise.float()]
    runs: dict[OnnxFile | None, Callable[[], object]] = {None: lambda: tagger.logits(clip)}
    for file, path in paths.items():
        session = open_session(path)
        inputs = inputs_of(file, clip, tagger.extractor, "max_length")
        runs[file] = partial(session.run, None, inputs)
    times: dict[OnnxFile | None, list[float]] = {file: [] for file in runs}
    for number in range(1 + TIMED_RUNS):
        for name, run in runs.items():
            start = perf_counter()
            run()
            if number:  # the first run only warms up
                times[name].append(1000 * (perf_counter() - start))
    return {file: median(values) for file, values in times.items()}


__all__ = ["LIMITS", "FileReport", "check_files", "made_up_clips"]
