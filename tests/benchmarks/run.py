"""Speed and memory, side by side with transformers' AST and torchaudio's Kaldi.

    python tests/benchmarks/run.py [--device cuda] [--quick] [--only forward]

Both sides run in this process on the same inputs, one after the other in each repetition; the ratio
is the median of the repetitions' ratios, with the least and the greatest. The model has the base
size and random weights, float32 on a CPU, bfloat16 and float16 on a GPU; the peer has the same
weights, sdpa, inference_mode and the batch that is its best. Standard output is a block of Markdown
for README.md beside this file; the numbers go to run_<device>.json, unless --only leaves some out.
--quick takes 2 of the 12 layers and fewer clips, which leaves the ratios nearly as they are, and
does not compile.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
import transformers

import modeling_ast
from modeling_ast.fbank_ast import fbank

RATE = 16000
BASE_LABELS = 527
# What takes less is repeated three times as often.
SHORT_SECONDS = 0.5
LONG_SECONDS = (10, 60, 300)


@dataclass
class Case:
    """Two ways to do the same; each counts the clips that it does in one call."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    our_clips: int = 1
    peer_clips: int = 1
    threads: int = 1
    multiply_adds: float = 0.0  # of the model in one call of ours


@dataclass
class Row:
    """What came out; milliseconds are per clip."""

    case: str
    ours_ms: float
    peer_ms: float
    ratio: float
    least: float
    greatest: float
    ours_mb: float
    peer_mb: float
    share_of_peak: float | None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure modeling_ast against its peers.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="2 of 12 layers, fewer clips")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose names hold it")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (5; quick: 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of the model (all)"
    )
    return parser.parse_args()


def is_cpu(options: argparse.Namespace) -> bool:
    return options.device == "cpu"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    return (0.1 * samples).astype(np.float32)


def mixed(shortest: float, longest: float, count: int) -> list[np.ndarray]:
    """Clips whose lengths are log-uniform, evenly over the range, in mixed order."""
    share = (np.random.default_rng(1).permutation(count) + 0.5) / count
    return [noise(seconds) for seconds in shortest * (longest / shortest) ** share]


def feature_cases(options: argparse.Namespace) -> list[Case]:
    """Extractor against extractor, and bare filterbank against torchaudio's."""
    ours = modeling_ast.ASTFeatureExtractor()
    peer = transformers.ASTFeatureExtractor()
    cases = []
    for seconds, count in ((10, 8), (1, 32)):
        clips = [noise(seconds, seed) for seed in range(count)]
        on_device = [torch.from_numpy(clip).to(options.device) for clip in clips]
        shared = {"sampling_rate": RATE, "return_tensors": "pt"}
        for threads in sorted({1, options.threads}) if is_cpu(options) else (1,):
            name = f"{seconds} s clips, {threads} thread{'s' * (threads > 1)}"
            numbers = {"our_clips": count, "peer_clips": count, "threads": threads}
            given = clips if is_cpu(options) else on_device
            cases.append(
                Case(
                    f"extractor, {name}",
                    partial(ours, given, **shared),
                    partial(peer, clips, **shared),
                    **numbers,
                )
            )
            cases.append(
                Case(
                    f"bare fbank, {name}",
                    lambda given=on_device: [fbank(x, 128, RATE) for x in given],
                    lambda given=on_device: [
                        kaldi.fbank(x[None], window_type="hanning", num_mel_bins=128) for x in given
                    ],
                    **numbers,
                )
            )
    return cases


def models(options: argparse.Namespace, dtype: torch.dtype):
    """Ours and the peer's, with the same weights, at the same place: that alone makes 3 %."""
    layers = 2 if options.quick else 12
    torch.manual_seed(0)
    given = {"num_labels": BASE_LABELS, "num_hidden_layers": layers}
    ours = modeling_ast.ASTForAudioClassification(modeling_ast.ASTConfig(**given))
    peer = transformers.ASTForAudioClassification(transformers.ASTConfig(**given))
    peer.load_state_dict(ours.state_dict(), assign=True)
    return [model.to(options.device, dtype).eval() for model in (ours, peer)]


def model_cases(options: argparse.Namespace) -> Iterator[Case]:
    """The forward alone, and from waveforms to scores."""
    dtypes = [torch.float32] if is_cpu(options) else [torch.float16, torch.bfloat16]
    for dtype in dtypes:
        ours, peer = models(options, dtype)
        yield from forward_cases(options, ours, peer)
    yield from variant_cases(options, ours, peer)
    yield from corpus_cases(options, ours, peer)


def forward_case(
    options: argparse.Namespace, title: str, model, other, batch: int, other_batch: int
) -> Case:
    """Two models on random frames, in batches of their own."""
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
    """Ours beside ours, in batches and in 8-bit integers, and both compiled."""
    yield forward_case(options, "batch 4 (peer: ours, batch 1)", ours, ours, 4, 1)
    if is_cpu(options):
        small = modeling_ast.quantize_int8(ours)
        yield forward_case(options, "batch 1, int8 (peer: ours, float32)", small, ours, 1, 1)
    if not options.quick:
        both = [torch.compile(model) for model in (ours, peer)]
        yield forward_case(options, "batch 1, both compiled", *both, 1, 1)


def corpus_cases(options: argparse.Namespace, ours, peer) -> Iterator[Case]:
    extractor = modeling_ast.ASTFeatureExtractor()
    peer_extractor = transformers.ASTFeatureExtractor()
    tagger = modeling_ast.AudioTagger(ours, extractor, num_workers=0)
    few = (12, 1) if options.quick else (24, 3)
    count, peer_count = few if is_cpu(options) else (2048, 256)
    corpora = {
        "1 s clips": [noise(1.0, seed) for seed in range(count)],
        "10 s clips": [noise(10.0, seed) for seed in range(count // 3)],
        "mixed 0.5-10 s": mixed(0.5, 10, count),
        "mixed 0.5-30 s, all heard": mixed(0.5, 30, count),
    }
    # A clip costs the peer the same whatever its length, so that a part of the clips will do.
    heard = corpora["10 s clips"][:peer_count]
    peers = {"": partial(classify, peer, peer_extractor, heard, 1 if is_cpu(options) else 32)}
    if not is_cpu(options):
        peers[" (peer: pipeline)"] = fastest_pipeline(peer, peer_extractor, heard)
    for peer_name, call in peers.items():
        for name, clips in corpora.items():
            pieces = [(tagger._pieces(torch.from_numpy(clip))) for clip in clips]
            yield Case(
                f"waveforms to scores, {name}{peer_name}",
                partial(tag, tagger, clips),
                call,
                len(clips),
                len(heard),
                options.threads,
                multiply_adds=sum(
                    multiply_adds(ours.config, piece.frames) for parts in pieces for piece in parts
                ),
            )


def fastest_pipeline(model, extractor, clips: list[np.ndarray]) -> Callable[[], object]:
    """transformers' pipeline with the batch size and workers that suit this machine best."""
    classify = transformers.pipeline(
        "audio-classification", model=model, feature_extractor=extractor, device=model.device
    )
    settings = [(batch, workers) for batch in (8, 32, 128) for workers in (0, 8)]
    calls = [
        lambda batch=batch, workers=workers: list(
            classify(clips, batch_size=batch, num_workers=workers, function_to_apply="sigmoid")
        )
        for batch, workers in settings
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
    """The peer at its best: transformers' AST is slower per clip in batches on a CPU."""
    scores = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        inputs = extractor(part, sampling_rate=RATE, return_tensors="pt")
        logits = model(**inputs.to(model.device, model.dtype)).logits
        scores += logits.float().sigmoid().cpu().topk(5).values.tolist()
    return scores


def multiply_adds(config, frames: int) -> float:
    """Of one clip: projections, MLP and attention of the layers, and the patches."""
    patches = config.num_patches(frames)
    tokens, width = patches + 2, config.hidden_size
    weights = 4 * width**2 + 2 * width * config.intermediate_size
    layer = tokens * weights + 2 * tokens**2 * width
    return config.num_hidden_layers * layer + patches * 256 * width


def import_case() -> Case:
    """Fresh processes; each prints what its import takes after that of torch and transformers."""
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


def seconds_of(call: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    # What measures itself, as the import in another process does, returns its seconds.
    return result if isinstance(result, float) else time.perf_counter() - begin


def warm_up(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Megabytes that a first call takes on top of what was there, and its seconds."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(call, device)
        return (torch.cuda.max_memory_allocated() - before) / 1e6, seconds
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan"), seconds_of(call, device)
    # What earlier cases left free in the heap would hide what this one takes.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # Linux: the peak starts anew
    before = resident_kilobytes("VmRSS")
    seconds = seconds_of(call, device)
    return max(0, resident_kilobytes("VmHWM") - before) / 1e3, seconds


def resident_kilobytes(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(case: Case, repetitions: int, device: str, peak_flops: float) -> Row:
    """Warms up both sides, then times them in turns."""
    torch.set_num_threads(case.threads)
    our_memory, our_seconds = warm_up(case.ours, device)
    peer_memory, peer_seconds = warm_up(case.peer, device)
    short = max(our_seconds, peer_seconds) < SHORT_SECONDS
    ours, peer = [], []
    sides = [(case.ours, ours, case.our_clips), (case.peer, peer, case.peer_clips)]
    for _ in range(repetitions * (3 if short else 1)):
        for call, times, clips in sides:
            times.append(seconds_of(call, device) / clips)
        sides.reverse()
    ratios = [theirs / own for own, theirs in zip(ours, peer)]
    per_second = 2 * case.multiply_adds / case.our_clips / statistics.median(ours)
    return Row(
        case.name,
        1e3 * statistics.median(ours),
        1e3 * statistics.median(peer),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        our_memory,
        peer_memory,
        per_second / peak_flops if case.multiply_adds else None,
    )


def matrix_peak(options: argparse.Namespace) -> float:
    """Operations per second of a large matrix product, at its best of several."""
    torch.set_num_threads(options.threads)
    side = 2048 if is_cpu(options) else 8192
    dtype = torch.float32 if is_cpu(options) else torch.bfloat16
    a = torch.randn(side, side, device=options.device, dtype=dtype)
    product = partial(torch.matmul, a, a)
    seconds_of(product, options.device)
    return 2 * side**3 / min(seconds_of(product, options.device) for _ in range(8))


HEADER = (
    "| case | ours, ms per clip | peer | ratio (least-greatest) | ours, MB | peer | of peak |\n"
    "| --- | --: | --: | --: | --: | --: | --: |"
)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    share = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
    return (
        f"| {row.case} | {row.ours_ms:.2f} | {row.peer_ms:.2f} | **{row.ratio:.2f}** "
        f"({row.least:.2f}-{row.greatest:.2f}) | {row.ours_mb:.0f} | {row.peer_mb:.0f} | {share} |"
    )


def long_clips(options: argparse.Namespace) -> dict[int, float]:
    """Seconds of one clip, heard in one piece -> peak megabytes of the forward.

    One layer: memory does not depend on how many there are, and time does.
    """
    config = modeling_ast.ASTConfig(num_labels=BASE_LABELS, num_hidden_layers=1)
    model = modeling_ast.ASTForAudioClassification(config).to(options.device).eval()
    found = {}
    for seconds in LONG_SECONDS[:2] if options.quick else LONG_SECONDS:
        values = torch.randn(1, 100 * seconds, 128, device=options.device)
        found[seconds], _ = warm_up(partial(forward, model, values), options.device)
    return found


def machine(options: argparse.Namespace, peak_flops: float) -> dict[str, object]:
    """Where the numbers come from."""
    device = options.device
    chip = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    found = information.exists() and re.search(r"model name\s*: (.+)", information.read_text())
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else (found or [0, chip])[1],
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
        "matrix_peak_gflops": round(peak_flops / 1e9),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "modeling_ast": modeling_ast.__version__,
        "date": date.today().isoformat(),
    }


def cases(options: argparse.Namespace) -> Iterator[Case]:
    yield from feature_cases(options)
    yield from model_cases(options)
    yield import_case()


def repetitions(options: argparse.Namespace, case: Case) -> int:
    if options.repeat is not None:
        return options.repeat
    # A repetition of the import takes seconds, of which it is a fraction.
    return 1 if options.quick and "import" in case.name else 3 if options.quick else 5


def main() -> None:
    options = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    begin = time.perf_counter()
    peak_flops = matrix_peak(options)
    where = machine(options, peak_flops)
    print("`python " + " ".join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]) + "`:")
    print(", ".join(f"{name} {value}" for name, value in where.items()) + "\n\n" + HEADER)
    content = {**where, "quick": options.quick, "rows": []}
    for case in cases(options):
        if options.only in case.name:
            row = measure(case, repetitions(options, case), options.device, peak_flops)
            print(line(row), flush=True)
            content["rows"].append(asdict(row))
    if options.only in "long clips":
        content["long_clips_mb"] = long_clips(options)
        print("\nPeak memory of the forward of one clip in one piece, one layer, float32: ", end="")
        print(", ".join(f"{s} s {mb:.0f} MB" for s, mb in content["long_clips_mb"].items()) + ".")
    if not options.only:
        name = f"run_{options.device.partition(':')[0]}{'_quick' * options.quick}.json"
        Path(__file__).with_name(name).write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nTook {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
