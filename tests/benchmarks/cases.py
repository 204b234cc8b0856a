"""The cases that run.py measures, each with a call of ours and one of the peer's."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
import transformers

import modeling_ast
from modeling_ast.clip_parts import equal_parts
from modeling_ast.fbank_cpu import write_fbank
from tests.benchmarks.file_cases import reading_cases, tagging_cases
from tests.benchmarks.measuring import Case, seconds_of

RATE = 16000
BASE_LABELS = 527


def is_cpu(options: argparse.Namespace) -> bool:
    return options.device == "cpu"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    return (0.1 * samples).astype(np.float32)


def mixed(shortest: float, longest: float, count: int) -> list[np.ndarray]:
    """Clips with lengths spread evenly in the logarithm over a range, in random order."""
    share = (np.random.default_rng(1).permutation(count) + 0.5) / count
    return [noise(seconds) for seconds in shortest * (longest / shortest) ** share]


def feature_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Our extractor against transformers', and our bare filterbank against torchaudio's."""
    ours = modeling_ast.ASTFeatureExtractor()
    peer = transformers.ASTFeatureExtractor()
    for seconds, count in ((10, 8), (1, 32)) if is_cpu(options) else ((10, 64), (1, 512)):
        clips = [noise(seconds, seed) for seed in range(count)]
        for threads in sorted({1, options.threads}) if is_cpu(options) else (options.threads,):
            where = f"{threads} thread{'s' * (threads > 1)}" if is_cpu(options) else "to the GPU"
            calls = {
                "extractor": extractor_calls(options, ours, peer, clips),
                "bare fbank": fbank_calls(options, clips),
            }
            for name, (our_call, peer_call) in calls.items():
                title = f"{name}, {seconds} s clips, {where}"
                yield Case(title, our_call, peer_call, count, count, threads)


def extractor_calls(options: argparse.Namespace, ours, peer, clips: list[np.ndarray]):
    """Both start from arrays; on a GPU the peer computes on all CPU threads and then copies."""
    settings = {"sampling_rate": RATE, "return_tensors": "pt"}
    if is_cpu(options):
        return partial(ours, clips, **settings), partial(peer, clips, **settings)
    return (
        partial(ours, clips, device=options.device, **settings),
        lambda: peer(clips, **settings).to(options.device),
    )


def fbank_calls(options: argparse.Namespace, clips: list[np.ndarray]):
    """Both start from tensors on the device; on a GPU ours processes all clips in one pass."""
    waveforms = [torch.from_numpy(clip).to(options.device) for clip in clips]
    batch = torch.stack(waveforms)
    settings = {"window_type": "hanning", "num_mel_bins": 128}
    extractor = modeling_ast.ASTFeatureExtractor()
    window, hop = extractor.window_samples, extractor.hop_samples

    def clip_by_clip() -> None:
        for x in waveforms:
            out = x.new_empty(extractor.count_frames(len(x)), 128)  # (T, F)
            write_fbank([x], [out], RATE, window, hop)

    return (
        clip_by_clip if is_cpu(options) else lambda: extractor.log_mel(batch),
        lambda: [kaldi.fbank(x[None], **settings) for x in waveforms],
    )


def models(options: argparse.Namespace, dtype: torch.dtype):
    """Our model and the peer's, which share the memory of weights (its place alone changes 3 %)."""
    layers = 4 if options.quick else 12
    torch.manual_seed(0)
    given = {"num_labels": BASE_LABELS, "num_hidden_layers": layers}
    ours = modeling_ast.ASTForAudioClassification(modeling_ast.ASTConfig(**given))
    peer = transformers.ASTForAudioClassification(transformers.ASTConfig(**given))
    peer.load_state_dict(ours.state_dict(), assign=True)
    return [model.to(options.device, dtype).eval() for model in (ours, peer)]


def model_cases(options: argparse.Namespace) -> Iterator[Case]:
    """The forward pass alone, and the way from waveforms to scores."""
    dtypes = [torch.float32] if is_cpu(options) else [torch.float16, torch.bfloat16]
    for dtype in dtypes:
        ours, peer = models(options, dtype)
        yield from forward_cases(options, ours, peer)
    yield from variant_cases(options, ours, peer)
    yield from corpus_cases(options, ours, peer)
    yield from tagging_cases(options, ours, peer)


def forward_case(
    options: argparse.Namespace, title: str, model, other, batch: int, other_batch: int
) -> Case:
    """Two models on random frames, each with its own batch size."""
    values = [
        torch.randn(count, 1024, 128, device=model.device, dtype=model.dtype)
        for count in (batch, other_batch)
    ]
    return Case(
        f"forward, {title}",
        partial(forward, model, values[0]),
        partial(forward, other, values[1]),
        batch,
        other_batch,
        options.threads,
        multiply_adds=batch * multiply_adds(model.config, 1024),
    )


def forward_cases(options: argparse.Namespace, ours, peer) -> Iterator[Case]:
    dtype = str(ours.dtype).removeprefix("torch.")
    for batch in (1, 4) if is_cpu(options) else (1, 4, 32, 128):
        yield forward_case(options, f"{dtype}, batch {batch}", ours, peer, batch, batch)


def variant_cases(options: argparse.Namespace, ours, peer) -> Iterator[Case]:
    """Our model against itself, in batches and in 8-bit integers, and both models compiled."""
    if is_cpu(options):
        yield forward_case(options, "batch 4 (peer: ours, batch 1)", ours, ours, 4, 1)
        small = modeling_ast.quantize_int8(ours)
        yield forward_case(options, "batch 1, int8 (peer: ours, float32)", small, ours, 1, 1)
    if not options.quick:
        batch = 1 if is_cpu(options) else 32
        both = [torch.compile(model) for model in (ours, peer)]
        yield forward_case(options, f"batch {batch}, both compiled", *both, batch, batch)


def corpus_cases(options: argparse.Namespace, ours, peer) -> Iterator[Case]:
    """The way from waveforms in memory to scores, against the peer's fastest ways."""
    extractors = modeling_ast.ASTFeatureExtractor(), transformers.ASTFeatureExtractor()
    taggers = {
        padding: modeling_ast.AudioTagger(ours, extractors[0], num_workers=0, padding=padding)
        for padding in ("longest", "max_length")
    }
    few = (12, 1) if options.quick else (24, 3)
    count, peer_count = few if is_cpu(options) else (2048, 256)
    # Each clip costs the peer the same, whatever its length, so that some of the clips are enough.
    heard = [noise(10.0, seed) for seed in range(peer_count)]
    corpora = {
        "1 s clips": [noise(1.0, seed) for seed in range(count)],
        "10 s clips": heard * (3 if is_cpu(options) else 8),
        "mixed 0.5-10 s": mixed(0.5, 10, count),
        "mixed 0.5-30 s, all heard": mixed(0.5, 30, count),
    }
    if is_cpu(options):
        peers = {"": (partial(classify, peer, extractors[1], heard, 1), heard, list(corpora))}
    else:
        # More clips for workers, because otherwise most of the time would be their start.
        many, two = heard * 4, ["10 s clips", "mixed 0.5-10 s"]
        alone = fastest_pipeline(peer, extractors[1], heard, 0)
        peers = {
            " (peer: pipeline)": (alone, heard, list(corpora)),
            " (peer: pipeline, 8 workers)": (
                fastest_pipeline(peer, extractors[1], many, 8),
                many,
                two,
            ),
        }
    for peer_name, (call, peer_clips, names) in peers.items():
        # The default padding costs the same for each clip, so it is measured on one corpus only.
        default = [("max_length", "1 s clips")] if "1 s clips" in names else []
        for padding, name in [*(("longest", name) for name in names), *default]:
            clips, tagger = corpora[name], taggers[padding]
            yield Case(
                f"waveforms to scores, {name}, padding {padding}{peer_name}",
                partial(tag, tagger, clips),
                call,
                len(clips),
                len(peer_clips),
                options.threads,
                multiply_adds=sum(
                    multiply_adds(ours.config, frames) for frames in frames_heard(tagger, clips)
                ),
            )
    if not is_cpu(options):
        on_device = modeling_ast.ASTFeatureExtractor(device=options.device)
        yield Case(
            "both in the pipeline, 10 s clips",
            fastest_pipeline(ours, on_device, heard, 0),
            alone,
            len(heard),
            len(heard),
            options.threads,
            multiply_adds=len(heard) * multiply_adds(ours.config, 1024),
        )


def frames_heard(tagger, clips: list[np.ndarray]) -> Iterator[int]:
    """The number of frames of each part of each clip, with padding."""
    extractor = tagger.extractor
    for clip in clips:
        for start, stop in equal_parts(len(clip), extractor.max_samples):
            yield extractor.num_frames([stop - start], tagger.padding)


def fastest_pipeline(
    model, extractor, clips: list[np.ndarray], workers: int
) -> Callable[[], object]:
    """transformers' pipeline with the batch size that is fastest on this machine."""
    classify = transformers.pipeline(
        "audio-classification", model=model, feature_extractor=extractor, device=model.device
    )
    settings = {"num_workers": workers, "function_to_apply": "sigmoid"}
    calls = [
        lambda batch=batch: list(classify(clips, batch_size=batch, **settings))
        for batch in (8, 32, 128)
    ]
    calls[0]()
    return min(calls, key=lambda call: seconds_of(call, str(model.device)))


@torch.inference_mode()
def forward(model, values: torch.Tensor) -> torch.Tensor:
    return model(values).logits


def tag(tagger, clips: list[np.ndarray]) -> list:
    return list(tagger(clips))


@torch.inference_mode()
def classify(model, extractor, clips: list[np.ndarray], batch: int) -> list:
    """The peer with a batch of 1, which is its fastest way on a CPU."""
    scores = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        inputs = extractor(part, sampling_rate=RATE, return_tensors="pt")
        logits = model(**inputs.to(model.device, model.dtype)).logits
        scores += logits.float().sigmoid().cpu().topk(5).values.tolist()
    return scores


def multiply_adds(config, frames: int) -> float:
    """Multiply-adds of one clip in our model.

    The last layer computes keys and values for all tokens, but everything else only for the two
    tokens that the classifier reads.
    """
    patches = config.num_patches(frames)
    tokens, width = patches + 2, config.hidden_size
    keys_and_values = 2 * width**2
    others = 2 * width**2 + 2 * width * config.intermediate_size
    layer = tokens * (keys_and_values + others) + 2 * tokens**2 * width
    last = tokens * keys_and_values + 2 * others + 2 * 2 * tokens * width
    return (config.num_hidden_layers - 1) * layer + last + patches * 256 * width


def import_case() -> Case:
    """The import in new processes, each of which prints its time after torch and transformers."""
    start = "import time, torch, transformers; t = time.perf_counter(); "
    end = "; print('took', time.perf_counter() - t)"
    peer = "from transformers import ASTFeatureExtractor, ASTForAudioClassification, ASTConfig"
    return Case(
        "import, after torch and transformers (peer: its AST)",
        lambda: import_seconds(start + "import modeling_ast" + end),
        lambda: import_seconds(start + peer + end),
    )


def import_seconds(code: str) -> float:
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(re.search(r"took (\S+)", run.stdout)[1])


def cases(options: argparse.Namespace) -> Iterator[Case]:
    yield from reading_cases(options)
    yield from feature_cases(options)
    yield from model_cases(options)
    if is_cpu(options):
        yield import_case()
