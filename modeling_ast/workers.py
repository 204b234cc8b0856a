"""Clips in any form a user may have them -> checked waveforms, in order, from worker processes.

A worker that dies, of too little memory or of a file that crashes the decoder, is replaced, and
nothing is lost: the clips it may have held are decoded again, one at a time, and the one that kills
its worker then too gets that as its error.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import read_audio, resample
from .feature_extraction_ast import ASTFeatureExtractor

# Clips that a worker has in hand, ahead of the model: at least, and at most if they are small. The
# bytes are those of the files as stored, all together; MP3 becomes eight times as much.
LEAST_AHEAD, MOST_AHEAD, BYTES_AHEAD = 2, 64, 2**24
ORPHAN_SECONDS = 2.0


@dataclass
class Clip:
    """A clip on its way: with its source before it is decoded, then with a waveform or an error."""

    number: int
    name: str  # the path, or "clip 3" (counted from 0)
    source: Any = None  # path, content, array, or (array, rate): what a worker can be sent
    # (S,), float32, checked, at the extractor's rate; between processes an array, because tensors
    # would go through files.
    waveform: Tensor | np.ndarray | None = None
    error: str | None = None


def decode_clips(
    clips: Iterable[Any],
    extractor: ASTFeatureExtractor,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Clip]:
    """Decodes, resamples and checks clips; a bad one comes with its error in its place.

    Args:
        clips: As in `AudioTagger.__call__`. Read a few clips ahead, no further.
        extractor: Of the model; says the rate and what a clip must be.
        num_workers: Processes; 0 decodes in this one. Arrays at the wanted rate always stay here:
            to be sent there and back costs more than to be checked.
        pin_memory: Put waveforms where a GPU fetches them; those of workers are not.

    Raises:
        RuntimeError: The processes cannot begin.
    """
    if num_workers == 0:
        for clip in _named_clips(clips):
            yield _decode(clip, extractor, pin_memory)
        return
    workers, waiting, num_bytes = _Workers(extractor, num_workers, pin_memory), deque(), 0
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


def _stored_bytes(source: Any) -> int:
    if isinstance(source, tuple):
        source, _ = source
    if isinstance(source, np.ndarray):
        return source.nbytes
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, str | Path):
        try:
            return os.stat(source).st_size
        except (OSError, ValueError):  # the worker will say it
            return 0
    return 0


class _Workers:
    """Processes that decode, and others in their place when one dies."""

    def __init__(self, extractor: ASTFeatureExtractor, count: int, pin_memory: bool):
        self.extractor = extractor
        self.count = count
        self.pin_memory = pin_memory
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
        if clip.error is not None or isinstance(clip.source, np.ndarray):
            return _decode(clip, self.extractor, self.pin_memory), None
        if not self.have_begun:
            self._begin()
        try:
            return clip, self.pool.submit(_decode_to_array, clip, self.extractor)
        except BrokenProcessPool:
            self.pool = self._new_pool(self.count)
            return clip, self.pool.submit(_decode_to_array, clip, self.extractor)

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
        if clip.waveform is not None:
            clip.waveform = torch.from_numpy(clip.waveform)
        return clip

    def _decode_alone(self, clip: Clip) -> Clip:
        # Twice: the process may have died before, while it had nothing to do.
        for _ in range(2):
            try:
                return self.spare.submit(_decode_to_array, clip, self.extractor).result()
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


def _decode_to_array(clip: Clip, extractor: ASTFeatureExtractor) -> Clip:
    """In a worker."""
    clip = _decode(clip, extractor)
    clip.waveform = None if clip.waveform is None else clip.waveform.numpy()
    return clip


def _decode(clip: Clip, extractor: ASTFeatureExtractor, pin_memory: bool = False) -> Clip:
    """Fills in the waveform, in memory of its own, or the error."""
    if clip.error is None:
        try:
            clip.waveform = _waveform(clip, extractor, pin_memory)
        # Whatever a file does to a decoder: it must not stop the others.
        except Exception as error:
            clip.error = str(error) or type(error).__name__
    clip.source = None
    return clip


def _waveform(clip: Clip, extractor: ASTFeatureExtractor, pin_memory: bool) -> Tensor:
    samples, wanted = clip.source, extractor.sampling_rate
    if isinstance(samples, str | Path | bytes):
        samples = read_audio(samples, wanted)
    elif isinstance(samples, tuple):
        samples, rate = samples
        samples = extractor._waveform(samples, clip.number).numpy()
        samples = resample(samples, rate, wanted)
    waveform = extractor._waveform(samples, clip.number, copy=not pin_memory)
    # Not Tensor.pin_memory, which copies nothing that its owner has pinned already.
    return torch.empty_like(waveform, pin_memory=True).copy_(waveform) if pin_memory else waveform


def _named_clips(clips: Iterable[Any]) -> Iterator[Clip]:
    """Each clip with its name, in a form that can be sent to a worker."""
    for number, given in enumerate(_undecoded(clips)):
        clip = Clip(number, f"clip {number}")
        try:
            clip.name, clip.source = _source(given, clip.name)
        except (TypeError, ValueError) as error:
            clip.error = str(error)
        yield clip


def _source(clip: Any, name: str) -> tuple[str, Any]:
    """(name, path, content, array or (array, rate)) of whatever a user may call a clip."""
    if isinstance(clip, Mapping) and clip.get("audio") is not None:
        clip = clip["audio"]
    if isinstance(clip, str | Path):
        return str(clip), clip
    if isinstance(clip, bytes | bytearray | memoryview):
        return name, bytes(clip)
    if isinstance(clip, np.ndarray | Tensor | list | tuple):
        return name, _array(clip, name)
    if not isinstance(clip, Mapping):
        raise TypeError(
            f"{name} is a {type(clip).__name__}; give a path, bytes, an array, or a row with the "
            f'column "audio"'
        )
    name = str(clip.get("path") or name)
    if clip.get("array") is not None:
        array, rate = _array(clip["array"], name), clip.get("sampling_rate")
        return name, array if rate is None else (array, rate)
    source = clip.get("bytes") or clip.get("path")
    if source is None:
        raise ValueError(f"{name} has the keys {sorted(clip)} but neither audio, bytes nor a path")
    return name, source


def _array(samples: Any, name: str) -> np.ndarray:
    if isinstance(samples, Tensor):
        return samples.detach().cpu().numpy()
    array = np.asarray(samples)
    # It could not be sent to a worker, which would then be waited for in vain.
    if array.dtype == object:
        raise TypeError(f"{name} is a {type(samples).__name__} that holds no numbers")
    return array


def _undecoded(clips: Iterable[Any]) -> Iterable[Any]:
    """A data set with its audio as stored: `datasets` itself would decode it here, with ffmpeg."""
    columns = getattr(clips, "features", None)
    if not columns or not hasattr(clips, "cast_column"):
        return clips
    from datasets import Audio

    for name, feature in columns.items():
        if isinstance(feature, Audio):
            clips = clips.cast_column(name, Audio(decode=False))
    return clips


__all__ = ["Clip", "decode_clips"]
