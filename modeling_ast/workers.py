"""Many clips -> checked waveforms, in order, decoded in worker processes beside the model.

A worker that dies, of too little memory or of a file that crashes the decoder, is replaced, and
nothing is lost: the clips it may have held are decoded again, one at a time, and the one that kills
its worker then too gets that as its error.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import ClipSource, decode_clip, open_clip
from .errors import one_line

# Clips that a worker has in hand, ahead of the model: at least, and at most if they are small. The
# bytes are those of the files as stored, all together; MP3 becomes eight times as much.
LEAST_AHEAD, MOST_AHEAD, BYTES_AHEAD = 2, 64, 2**24
ORPHAN_SECONDS = 2.0


@dataclass
class Clip:
    """A clip on its way: with its source before it is decoded, then with a waveform or an error."""

    number: int
    name: str  # the path, or "clip 3" (counted from 0)
    source: ClipSource | None = None
    # (S,), float32, checked, at the wanted rate; between processes an array, because tensors
    # would go through files.
    waveform: Tensor | np.ndarray | None = None
    error: str | None = None


def decode_clips(
    clips: Iterable[Any],
    sampling_rate: int,
    num_workers: int,
    pin_memory: bool = False,
    min_samples: int | None = None,
) -> Iterator[Clip]:
    """Reads clips; a bad one comes with its error in its place.

    Args:
        clips: Each in a form that `audio.read_clip` takes. Read a few clips ahead, no further.
        sampling_rate: Wanted, in Hz.
        num_workers: Processes; 0 decodes in this one, and so does a daemonic process, which may
            have no others. Samples at the wanted rate always stay here: to be sent there and back
            costs more than to be checked.
        pin_memory: Put waveforms where a GPU fetches them; those of workers are not.
        min_samples: As in `audio.read_clip`.

    Raises:
        RuntimeError: The processes cannot begin.
    """
    if num_workers == 0 or multiprocessing.current_process().daemon:
        for clip in _named_clips(clips):
            yield _decode(clip, sampling_rate, min_samples, pin_memory)
        return
    workers = _Workers(sampling_rate, num_workers, pin_memory, min_samples)
    waiting, num_bytes = deque(), 0
    try:
        for clip in _named_clips(clips):
            size = _stored_bytes(clip.source)
            waiting.append((size, *workers.start(clip)))
            num_bytes += size
            while waiting and (
                waiting[0][2] is None
                or len(waiting) > MOST_AHEAD * num_workers
                or (len(waiting) > LEAST_AHEAD * num_workers and num_bytes > BYTES_AHEAD)
            ):
                size, clip, future = waiting.popleft()
                num_bytes -= size
                yield workers.finish(clip, future)
        for _, clip, future in waiting:
            yield workers.finish(clip, future)
    finally:
        workers.stop()


def _stored_bytes(source: ClipSource | None) -> int:
    content = None if source is None else source.content
    if isinstance(content, np.ndarray | Tensor):
        return content.nbytes
    if isinstance(content, bytes):
        return len(content)
    if source is not None and source.is_file:
        try:
            return os.stat(content).st_size
        except (OSError, ValueError):  # the worker will say it
            return 0
    return 0


class _Workers:
    """Processes that decode, and others in their place when one dies."""

    def __init__(self, sampling_rate: int, count: int, pin_memory: bool, min_samples: int | None):
        self.sampling_rate = sampling_rate
        self.count = count
        self.pin_memory = pin_memory
        self.min_samples = min_samples
        # Neither has a process before it gets its first clip.
        self.pool = self._new_pool(count)
        self.spare = self._new_pool(1)
        self.have_begun = False

    def _new_pool(self, count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, initializer=_begin_worker, initargs=(os.getpid(),))

    def _begin(self) -> None:
        """Tells workers that cannot begin from clips that kill them."""
        try:
            self.pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise RuntimeError(
                "the processes that decode ended at once; a script must tag its clips under "
                'if __name__ == "__main__": where processes are spawned; or give num_workers=0'
            ) from None
        self.have_begun = True

    def start(self, clip: Clip) -> tuple[Clip, Future | None]:
        """Hands a clip to a worker, unless there is nothing to decode."""
        if clip.error is not None or self._is_decoded(clip.source):
            return _decode(clip, self.sampling_rate, self.min_samples, self.pin_memory), None
        if isinstance(clip.source.content, Tensor):
            # Tensors would go to the other process through files; numpy has no bfloat16.
            tensor = clip.source.content.detach().cpu()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            clip.source = replace(clip.source, content=tensor.numpy())
        if not self.have_begun:
            self._begin()
        try:
            return clip, self.pool.submit(
                _decode_to_array, clip, self.sampling_rate, self.min_samples
            )
        except BrokenProcessPool:
            self.pool = self._new_pool(self.count)
            return clip, self.pool.submit(
                _decode_to_array, clip, self.sampling_rate, self.min_samples
            )

    def _is_decoded(self, source: ClipSource) -> bool:
        return not source.is_file and source.sampling_rate in (None, self.sampling_rate)

    def finish(self, clip: Clip, future: Future | None) -> Clip:
        """Waits for a clip."""
        if future is None:
            return clip
        try:
            clip = future.result()
        except BrokenProcessPool:
            # A death breaks all that the pool had in hand and does not say whose it was: each of
            # them is decoded again, with nothing beside it.
            clip = self._decode_alone(clip)
        # It could not be sent there.
        except Exception as error:
            clip.source, clip.error = None, one_line(error)
        if clip.waveform is not None:
            clip.waveform = torch.from_numpy(clip.waveform)
        return clip

    def _decode_alone(self, clip: Clip) -> Clip:
        # Twice: the process may have died before, while it had nothing to do.
        for _ in range(2):
            try:
                return self.spare.submit(
                    _decode_to_array, clip, self.sampling_rate, self.min_samples
                ).result()
            except BrokenProcessPool:
                self.spare = self._new_pool(1)
        clip.source = None
        clip.error = (
            f"{clip.name} killed each process that decoded it: too large for the memory, or of a "
            f"kind that crashes the decoder; cut or convert it first"
        )
        return clip

    def stop(self) -> None:
        for pool in (self.pool, self.spare):
            pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of the parent's OpenMP do not outlive a fork: a worker that waits for them hangs.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process after its parent, which may have been killed and said nothing."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _decode_to_array(clip: Clip, sampling_rate: int, min_samples: int | None) -> Clip:
    """In a worker."""
    clip = _decode(clip, sampling_rate, min_samples)
    clip.waveform = None if clip.waveform is None else clip.waveform.numpy()
    return clip


def _decode(
    clip: Clip, sampling_rate: int, min_samples: int | None, pin_memory: bool = False
) -> Clip:
    """Fills in the waveform, in memory of its own, or the error."""
    if clip.error is None:
        try:
            clip.waveform = _waveform(clip.source, sampling_rate, min_samples, pin_memory)
        # Whatever a file does to a decoder: it must not stop the others.
        except Exception as error:
            clip.error = one_line(error)
    clip.source = None
    return clip


def _waveform(
    source: ClipSource, sampling_rate: int, min_samples: int | None, pin_memory: bool
) -> Tensor:
    if isinstance(source.content, Tensor):
        # So that it is resampled as an array is.
        source = replace(source, content=source.content.detach().cpu())
    waveform = decode_clip(source, sampling_rate, min_samples, copy=not pin_memory)
    # Not Tensor.pin_memory, which copies nothing that its owner has pinned already.
    return torch.empty_like(waveform, pin_memory=True).copy_(waveform) if pin_memory else waveform


def _named_clips(clips: Iterable[Any]) -> Iterator[Clip]:
    """Each clip with its name, in a form that can be sent to a worker."""
    for number, given in enumerate(undecoded(clips)):
        clip = Clip(number, f"clip {number}")
        try:
            clip.source = open_clip(given, clip.name)
            clip.name = clip.source.name
        # torchcodec's decoder reads its file here.
        except Exception as error:
            clip.error = one_line(error)
        yield clip


def undecoded(clips: Iterable[Any]) -> Iterable[Any]:
    """A data set with its audio as stored: `datasets` itself would decode it here, with ffmpeg.

    Anything else is returned as it is.
    """
    columns = getattr(clips, "features", None)
    if not columns or not hasattr(clips, "cast_column"):
        return clips
    from datasets import Audio

    for name, feature in columns.items():
        if isinstance(feature, Audio):
            clips = clips.cast_column(name, Audio(decode=False))
    return clips


__all__ = ["Clip", "decode_clips", "undecoded"]
