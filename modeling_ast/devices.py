"""Devices: torch's threads after a fork, asynchronous copies to a GPU, a CPU's fastest dtype."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# bfloat16 is chosen only if it is this many times as fast: it changes the scores, and a smaller
# gain is within the noise of the measurement.
CLEARLY_FASTER = 1.2
# The measured layer: (tokens of a block, inputs, outputs), the widest layer of the base size. Both
# dtypes are timed in turn, this many times, and the shortest time counts.
MEASURED_SHAPE, MEASURED_RUNS = (640, 768, 3072), 5
# The process in which torch may have started threads.
_PROCESS = os.getpid()


@contextmanager
def living_threads() -> Iterator[None]:
    """Makes torch use one thread in a forked process; elsewhere it changes nothing.

    OpenMP's threads do not survive a fork, and a process that waits for them hangs.
    """
    if os.getpid() == _PROCESS:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. A copy to a GPU uses pinned memory, and the host does not wait for it."""
    is_pinned = x.is_cpu and device.type == "cuda" and not torch.compiler.is_compiling()
    x = x.pin_memory() if is_pinned else x
    return x.to(device, non_blocking=is_pinned)


def sent_together(waveforms: list[Tensor], device: torch.device) -> Tensor:
    """Waveforms (S,) as one batch (B, S) on `device`, zeros at the end.

    CPU clips are copied on a side stream, overlapping queued kernels.
    """
    if device.type != "cuda" or not all(waveform.is_cpu for waveform in waveforms):
        return pad_sequence([sent(waveform, device) for waveform in waveforms], batch_first=True)
    now, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        padded = torch.zeros(len(waveforms), max(map(len, waveforms)), device=device)  # (B, S)
        for index, waveform in enumerate(waveforms):
            padded[index, : len(waveform)].copy_(waveform.pin_memory(), non_blocking=True)
    now.wait_stream(copies)
    # Otherwise the copies of the next batch could reuse this memory before `now` has read it.
    padded.record_stream(now)
    return padded


@cache
@torch.inference_mode()
def bfloat16_speedup() -> float:
    """Measures how many times as fast as float32 a linear layer is with bfloat16 on this CPU.

    The measurement takes a few tenths of a second, once for each process.
    """
    tokens, width, outputs = MEASURED_SHAPE
    calls = {
        dtype: partial(
            F.linear,
            torch.ones(tokens, width, dtype=dtype),
            torch.ones(outputs, width, dtype=dtype),
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    least = dict.fromkeys(calls, float("inf"))
    for run in range(MEASURED_RUNS + 1):
        for dtype, call in calls.items():
            start = perf_counter()
            call()
            if run:  # the first run prepares the kernels and does not count
                least[dtype] = min(least[dtype], perf_counter() - start)
    return least[torch.float32] / least[torch.bfloat16]


def fast_cpu_dtype() -> torch.dtype:
    """bfloat16 where this CPU computes clearly faster with it, else float32; never float16."""
    return torch.bfloat16 if bfloat16_speedup() >= CLEARLY_FASTER else torch.float32


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


__all__ = ["bfloat16_speedup", "fast_cpu_dtype", "living_threads", "sent", "sent_together"]
