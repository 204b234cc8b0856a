"""Times two ways to do the same in turns, and measures the speed of the machine."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
import transformers

import modeling_ast

# Fast calls are repeated more often, up to this factor.
OFTEN = ((0.05, 15), (0.5, 3))


@dataclass
class Case:
    """Two ways to do the same, each with the number of clips of a call."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    our_clips: int = 1
    peer_clips: int = 1
    threads: int = 1
    multiply_adds: float = 0.0  # of the model in one call of ours


@dataclass
class Row:
    """The results of a case; milliseconds are per clip."""

    case: str
    ours_ms: float
    peer_ms: float
    ratio: float
    least: float
    greatest: float
    ours_mb: float
    peer_mb: float
    share_of_peak: float | None


def seconds_of(call: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    # A call that measures itself, such as an import in another process, returns its seconds.
    return result if isinstance(result, float) else time.perf_counter() - begin


def warm_up(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Additional peak megabytes of a first call, and its seconds."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(call, device)
        return (torch.cuda.max_memory_allocated() - before) / 1e6, seconds
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan"), seconds_of(call, device)
    # Free heap memory of earlier cases would hide the memory that this one needs.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # resets the peak (Linux)
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
    longer = max(our_seconds, peer_seconds)
    times_as_often = next((times for seconds, times in OFTEN if longer < seconds), 1)
    ours, peer = [], []
    sides = [(case.ours, ours, case.our_clips), (case.peer, peer, case.peer_clips)]
    for _ in range(repetitions * times_as_often):
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
    """Operations per second of a large matrix product, the best of several tries."""
    torch.set_num_threads(options.threads)
    side = 2048 if options.device == "cpu" else 8192
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    a = torch.randn(side, side, device=options.device, dtype=dtype)
    product = partial(torch.matmul, a, a)
    seconds_of(product, options.device)
    return 2 * side**3 / min(seconds_of(product, options.device) for _ in range(8))


def machine(options: argparse.Namespace, peak_flops: float) -> dict[str, object]:
    """A line on the machine and the versions."""
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
