"""The metrics of each ONNX file on held-out clips, and those of the model in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..clip_parts import equal_parts
from ..tagging import AudioTagger
from ..training.data_sources import DataArguments
from ..training.held_out import columns_of, judge, read_held_out
from ..workers import decode_clips
from .onnx_files import OnnxFile
from .running import inputs_of, open_session

TORCH = "torch"


def judge_files(
    paths: Mapping[OnnxFile, Path], tagger: AudioTagger, data: DataArguments
) -> dict[str, dict[str, float]]:
    """Metrics of each file, and of the model in torch, on the held-out part of a data set.

    Each file is used as its clients use it. model.onnx and the files made from it get clips padded
    to max_length, as transformers.js pads them. model_masked.onnx gets them without such padding,
    with the mask. waveform.onnx pads the clips itself, as the saved extractor says.

    Args:
        paths: File -> the path that it was written to.
        tagger: With the model in torch, on the CPU.
        data: Its held-out part is used.
    Returns:
        Path of a file, or "torch" -> its metrics.
    Raises:
        OSError, ValueError: The data cannot be read, or the model lacks one of its classes.
    """
    held_out = read_held_out(data)
    own = columns_of(tagger.model.config, held_out.classes)
    run = {TORCH: tagger.logits} | {
        file.path: _logits_by(file, path, tagger) for file, path in paths.items()
    }
    scores: dict[str, list[np.ndarray]] = {name: [] for name in run}
    read: list[int] = []  # indices of the clips that can be read
    clips = map(held_out.reader.clip, held_out.clips)
    rate, shortest = tagger.extractor.sampling_rate, tagger.extractor.window_samples
    decoded = decode_clips(clips, rate, tagger.num_workers, min_samples=shortest)
    for clip in tqdm(decoded, "Held-out clips", len(held_out.clips), unit="clip", leave=False):
        if clip.error is not None:
            continue
        read.append(clip.number)
        bounds = equal_parts(len(clip.waveform), tagger.extractor.max_samples)
        for name, logits_of in run.items():
            parts = [logits_of([clip.waveform[start:stop]]) for start, stop in bounds]
            mean = tagger.scores_of(torch.cat(parts)).mean(0)  # (C,)
            if tagger.calibration is not None:
                mean = tagger.calibration.apply(mean)
            scores[name].append(mean[own])
    if not read:
        raise ValueError("none of the held-out clips can be read; check --data and --audio-root")
    judged = held_out.select(read)
    return {name: judge(np.stack(rows), judged) for name, rows in scores.items()}


def _logits_by(file: OnnxFile, path: Path, tagger: AudioTagger) -> Callable[[list[Tensor]], Tensor]:
    session = open_session(path)
    padding = "longest" if file.graph == "masked" else "max_length"

    def logits(clips: list[Tensor]) -> Tensor:
        inputs = inputs_of(file, clips, tagger.extractor, padding)
        return torch.from_numpy(session.run(["logits"], inputs)[0])  # (B, C)

    return logits


__all__ = ["TORCH", "judge_files"]
