"""The cases of run.py that start from files: reading them, and tagging them by their paths."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
import transformers

import modeling_ast
from tests.benchmarks.measuring import Case

RATE, STORED_RATE, SECONDS = 16000, 48000, 10
FORMATS = ("flac", "mp3", "ogg", "wav")


def music(seed: int) -> np.ndarray:
    """(S, 2) at 48 kHz: a few falling tones in noise, about as hard to encode as music."""
    generator = np.random.default_rng(seed)
    place = np.arange(SECONDS * STORED_RATE)[:, None] / STORED_RATE
    pitches = generator.uniform(80, 4000, (6, 2))
    tones = sum(np.sin(2 * np.pi * hz * place * (1 - 0.01 * place)) / hz**0.5 for hz in pitches)
    noise = 0.01 * generator.standard_normal((len(place), 2))
    return (tones / np.abs(tones).max() * 0.5 + noise).astype(np.float32)


def written(folder: Path, suffix: str, count: int) -> list[str]:
    """Paths of stereo files of 10 s at 48 kHz."""
    paths = [str(folder / f"{number}.{suffix}") for number in range(count)]
    for number, path in enumerate(paths):
        soundfile.write(path, music(number), STORED_RATE)
    return paths


def by_soundfile(path: str) -> torch.Tensor:
    """The plain way to read a clip: soundfile, numpy's mean, torchaudio's resampling."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.mean(axis=1))
    return torchaudio.functional.resample(mono, rate, RATE)


def by_librosa(path: str) -> np.ndarray:
    return import_module("librosa").load(path, sr=RATE, mono=True)[0]


def by_torchcodec(path: str) -> torch.Tensor:
    decoder = import_module("torchcodec.decoders").AudioDecoder
    return decoder(path, sample_rate=RATE, num_channels=1).get_all_samples().data[0]


def by_miniaudio(path: str) -> np.ndarray:
    miniaudio = import_module("miniaudio")
    settings = {"nchannels": 1, "sample_rate": RATE}
    decoded = miniaudio.decode_file(path, miniaudio.SampleFormat.FLOAT32, **settings)
    return np.asarray(decoded.samples)


READERS = {
    "soundfile + mean + torchaudio": by_soundfile,
    "librosa": by_librosa,
    "torchcodec": by_torchcodec,
    "miniaudio": by_miniaudio,
}


def read_all(read: Callable[[str], object], paths: list[str]) -> None:
    for path in paths:
        read(path)


def works(read: Callable[[str], object], path: str) -> bool:
    """Whether a reader is installed, can be loaded and knows the format."""
    try:
        read(path)
    # Four foreign libraries, each with its own errors; a library that fails has no row.
    except Exception:
        return False
    return True


def reading_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Our reader against each other reader, in one thread."""
    count = 4 if options.quick else 16
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            paths = written(Path(folder), suffix, count)
            for name, read in READERS.items():
                if works(read, paths[0]):
                    yield Case(
                        f"from files, {suffix}, reading (peer: {name})",
                        partial(read_all, modeling_ast.read_audio, paths),
                        partial(read_all, read, paths),
                        count,
                        count,
                        1,
                    )


def tagging_cases(options: argparse.Namespace, ours, peer) -> Iterator[Case]:
    """From paths to scores: AudioTagger against pipelines, which read files with ffmpeg."""
    count = 4 if options.quick else 16 if options.device == "cpu" else 512
    tagger = modeling_ast.AudioTagger(ours, modeling_ast.ASTFeatureExtractor())
    device = {"device": peer.device}
    pipelines = [
        transformers.pipeline("audio-classification", model=model, feature_extractor=own, **device)
        for model, own in (
            (ours, modeling_ast.ASTFeatureExtractor()),
            (peer, transformers.ASTFeatureExtractor()),
        )
    ]
    ours_by_path, peer_by_path = (partial(classified, pipeline) for pipeline in pipelines)
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            paths = written(Path(folder), suffix, count)
            if not works(pipelines[1], paths[0]):
                return  # no ffmpeg
            few = paths[: count // 2]
            peer_call = partial(peer_by_path, few)
            for name, call, clips in (
                ("tagging", lambda clips=paths: list(tagger(clips)), paths),
                ("both in the pipeline", partial(ours_by_path, few), few),
            ):
                title = f"from files, {suffix}, {name} (peer: pipeline with paths)"
                yield Case(title, call, peer_call, len(clips), len(few), options.threads)


def classified(pipeline, paths: list[str]) -> list:
    return list(pipeline(paths, batch_size=1 if pipeline.device.type == "cpu" else 32))
