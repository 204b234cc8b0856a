"""Speed and memory of a training step, side by side with transformers' AST.

    python -m tests.benchmarks.training [--device cuda] [--quick] [--batch-size N]

A step is forward, binary cross-entropy of 527 classes, backward and Adam, for the base size and
clips of 1024 frames. The sides are transformers' AST, ours, ours without half of its tokens
(`patchout_time` 51 of the 101 columns: 602 of 1214 tokens are left), and ours compiled. They take
turns in this process, on the same inputs; a ratio is the median of the ratios of the turns, with
the smallest and the largest. On a CPU: float32, batch 2; --quick has 2 of the 12 layers and nothing
compiled. On a GPU: bfloat16 autocast, batch 12 as in recipes/audioset_full.yaml, then for each side
the largest batch that fits. Different batch sizes fragment the memory: set
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment. The table goes to standard
output, the numbers to training_<device>.json beside this file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor

import modeling_ast
from tests.benchmarks.cases import BASE_LABELS, multiply_adds
from tests.benchmarks.measuring import machine, matrix_peak, seconds_of, warm_up

FRAMES, MEL_BINS = 1024, 128
DROPPED_COLUMNS = 51
SIDES = ("peer", "ours", "patchout", "compiled")
# The search for the largest batch ends when its relative error is at most this.
BATCH_PRECISION = 1 / 16
# Memory that the largest batch leaves free, for the inputs and because of fragmentation.
RESERVED_BYTES = 8 * 2**30


@dataclass
class Side:
    """One way to train; our ways share a model and its Adam, and differ in the patchout."""

    name: str
    model: Callable
    config: transformers.PreTrainedConfig
    optimizer: torch.optim.Optimizer
    patchout_time: int = 0

    @property
    def tokens(self) -> int:
        """The number of tokens of a clip of `FRAMES` frames in training."""
        rows, columns = modeling_ast.ASTConfig().patch_grid(FRAMES)
        return rows * (columns - self.patchout_time) + 2

    @property
    def multiply_adds(self) -> float:
        """Multiply-adds of a clip's forward and backward pass; the latter has twice as many."""
        config = modeling_ast.ASTConfig(num_hidden_layers=self.config.num_hidden_layers)
        # The number of frames for the columns that patchout leaves.
        return 3 * multiply_adds(config, FRAMES - self.patchout_time * config.time_stride)


@dataclass
class Row:
    """The result of a side; ratios are of clips per second: median, smallest, largest."""

    side: str
    tokens: int
    batch: int
    clips_per_second: float
    ms_per_step: float
    to_peer: tuple[float, float, float] | None
    to_ours: tuple[float, float, float] | None
    peak_mb: float  # on top of weights and Adam's state
    share_of_peak: float


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a training step against transformers'.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="2 of 12 layers, not compiled on cpu")
    parser.add_argument("--batch-size", type=int, metavar="N", help="2 on a CPU, 12 on a GPU")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns of each side (3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of the model (all)"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="some of them; all by default")
    return parser.parse_args()


def build_sides(options: argparse.Namespace) -> list[Side]:
    """The chosen sides; the peer and ours have the same weights."""
    torch.manual_seed(0)
    given = {
        "num_labels": BASE_LABELS,
        "num_hidden_layers": 2 if options.quick else 12,
        "problem_type": "multi_label_classification",
    }
    ours = modeling_ast.ASTForAudioClassification(modeling_ast.ASTConfig(**given))
    peer = transformers.ASTForAudioClassification(transformers.ASTConfig(**given))
    peer.load_state_dict(ours.state_dict())
    trained = []
    for model in (peer, ours):
        model.to(options.device).train()
        trained.append((model.config, started_adam(model)))
    sides = {
        "peer": Side("peer", peer, *trained[0]),
        "ours": Side("ours", ours, *trained[1]),
        "patchout": Side("patchout", ours, *trained[1], patchout_time=DROPPED_COLUMNS),
        "compiled": Side("compiled", torch.compile(ours), *trained[1]),
    }
    uncompiled = options.quick and options.device == "cpu"
    names = options.sides or [name for name in SIDES if name != "compiled" or not uncompiled]
    return [sides[name] for name in names]


def started_adam(model: torch.nn.Module) -> torch.optim.Adam:
    """The recipes' Adam with its state, which should not count in the memory of a side."""
    adam = torch.optim.Adam(model.parameters(), 1e-5, (0.95, 0.999), weight_decay=5e-7)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    adam.zero_grad()
    return adam


def clips(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Inputs (B, T, F) and labels (B, C), two or three labels per clip."""
    generator = torch.Generator().manual_seed(0)
    values = 0.5 * torch.randn(batch, FRAMES, MEL_BINS, generator=generator)
    labels = (torch.rand(batch, BASE_LABELS, generator=generator) < 0.005).float()
    return values.to(device), labels.to(device)


def step(side: Side, values: Tensor, labels: Tensor) -> None:
    """One training step: forward, loss, backward, Adam."""
    side.config.patchout_time = side.patchout_time
    device = values.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        loss = side.model(values, labels=labels).loss
    loss.backward()
    side.optimizer.step()
    side.optimizer.zero_grad()


def largest_batch(side: Side, start: int, device: str) -> int:
    """The largest batch that fits, found by doubling and then by bisection."""
    reserved = torch.empty(RESERVED_BYTES, dtype=torch.uint8, device=device)
    fits, fails = 0, None
    batch = start
    while fails is None or fails - fits > max(1, fits * BATCH_PRECISION):
        if is_possible(side, batch, device):
            fits = batch
        else:
            fails = batch
        batch = 2 * fits if fails is None else (fits + fails) // 2
    del reserved
    torch.cuda.empty_cache()
    return fits


def is_possible(side: Side, batch: int, device: str) -> bool:
    """Whether a step fits into the device's memory."""
    try:
        step(side, *clips(batch, device))
        fits = True
    except torch.cuda.OutOfMemoryError:
        fits = False
    # Outside of `except`, because the exception keeps the tensors of the failed step.
    side.optimizer.zero_grad()
    torch.cuda.empty_cache()
    return fits


def measure(
    sides: list[Side], batches: list[int], options: argparse.Namespace, peak_flops: float
) -> list[Row]:
    """Warms each side up, then times them in turns, each with its own batch size."""
    torch.set_num_threads(options.threads)
    calls = [
        partial(step, side, *clips(batch, options.device)) for side, batch in zip(sides, batches)
    ]
    memory = [peak_megabytes(call, options.device) for call in calls]
    seconds = [[] for _ in sides]  # per clip
    turns = list(zip(calls, batches, seconds))
    for _ in range(options.repeat):
        for call, batch, times in turns:
            times.append(seconds_of(call, options.device) / batch)
        turns.reverse()
    by_name = {side.name: times for side, times in zip(sides, seconds)}
    return [
        Row(
            side.name,
            side.tokens,
            batch,
            1 / statistics.median(times),
            1e3 * batch * statistics.median(times),
            ratio(by_name.get("peer"), times),
            ratio(by_name.get("ours"), times),
            megabytes,
            2 * side.multiply_adds / statistics.median(times) / peak_flops,
        )
        for side, batch, times, megabytes in zip(sides, batches, seconds, memory)
    ]


def peak_megabytes(call: Callable[[], object], device: str) -> float:
    """Additional peak megabytes of a first step."""
    if device == "cpu" and sys.platform == "linux":
        # glibc keeps freed memory, so that the step would seem to need none.
        ctypes.CDLL(None).malloc_trim(0)
    return warm_up(call, device)[0]


def ratio(others: list[float] | None, own: list[float]) -> tuple[float, float, float] | None:
    """Ratios of the speeds of two sides in each turn: median, smallest, largest."""
    if others is None:
        return None
    ratios = [theirs / mine for theirs, mine in zip(others, own)]
    return statistics.median(ratios), min(ratios), max(ratios)


HEADER = (
    "| side | tokens | batch | clips/s | ms per step | times peer | times ours | MB | of peak |\n"
    "| --- | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    ratios = (
        "" if found is None else "**{:.2f}** ({:.2f}-{:.2f})".format(*found)
        for found in (row.to_peer, row.to_ours)
    )
    return (
        f"| {row.side} | {row.tokens} | {row.batch} | {row.clips_per_second:.2f} | "
        f"{row.ms_per_step:.0f} | {' | '.join(ratios)} | {row.peak_mb:.0f} | "
        f"{row.share_of_peak:.0%} |"
    )


def save(rows: list[Row], where: dict[str, object], options: argparse.Namespace) -> None:
    target = Path(__file__).with_name(f"training_{options.device.partition(':')[0]}.json")
    content = {**where, "quick": options.quick, "rows": [asdict(row) for row in rows]}
    target.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    options = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    on_cpu = options.device == "cpu"
    peak_flops = matrix_peak(options)
    where = machine(options, peak_flops)
    print(", ".join(f"{name} {value}" for name, value in where.items()) + "\n\n" + HEADER)
    sides = build_sides(options)
    batch = options.batch_size or (2 if on_cpu else 12)
    rows = measure(sides, [batch] * len(sides), options, peak_flops)
    print("\n".join(map(line, rows)), flush=True)
    save(rows, where, options)
    if not on_cpu:
        largest = [largest_batch(side, batch, options.device) for side in sides]
        more = measure(sides, largest, options, peak_flops)
        print("\n".join(map(line, more)))
        save(rows + more, where, options)


if __name__ == "__main__":
    main()
