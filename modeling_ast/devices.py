"""Devices: torch's threads after a fork, and copies to a GPU that the host does not wait for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# The process in which torch may have started threads.
_PROCESS = os.getpid()


@contextmanager
def living_threads() -> Iterator[None]:
    """Lets torch compute with one thread in a forked process, and as before elsewhere.

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
    """`x` on `device`; copied to a GPU from pinned memory, while the host continues."""
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
    # Otherwise the next batch's copies could get its memory while `now` still has to read it.
    padded.record_stream(now)
    return padded


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


__all__ = ["living_threads", "sent", "sent_together"]
