"""Many clips -> checked waveforms, in order, decoded in worker processes beside the model.

A worker can die, because of too little memory or a file that crashes the decoder. It is replaced
and nothing is lost: the clips that it may have held are decoded again, one at a time, and a clip
that kills its worker again is returned with an error.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio import MOST_BYTES, ClipSource, TooLargeError, decode_clip, open_clip
from .errors import one_line

# How far workers read ahead of the model. Each worker may have LEAST_AHEAD clips in any case, and
# MOST_AHEAD while the samples of all clips together take less than BYTES_AHEAD. The samples of a
# file that is not decoded yet are guessed to take GUESSED_GROWTH times its size, as with MP3. A
# FLAC of silence takes more, which is known only after decoding: therefore only MOST_UNDECODED
# clips for each worker may be undecoded.
LEAST_AHEAD, MOST_AHEAD, BYTES_AHEAD = 2, 64, 2**27
GUESSED_GROWTH, MOST_UNDECODED = 8, 3
# A file whose samples take more than this, 8.7 minutes at 16 kHz, is decoded part by part in the
# model's process, so that memory does not grow with its length.
LONG_FILE_BYTES = 2**25
# On Linux a worker passes samples to its parent in a file in memory. Through the pipe between them,
# each clip of 10 s would cost the parent 0.7 ms.
SHARED_MEMORY = Path("/dev/shm")
ORPHAN_SECONDS = 2.0


@dataclass(frozen=True)
class SharedSamples:
    """Samples in a file in memory, between processes."""

    path: str
    nbytes: int

    @classmethod
    def of(cls, samples: np.ndarray, folder: str) -> SharedSamples | np.ndarray:
        """Writes samples to such a file; returns the samples themselves if there is no room."""
        try:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                samples.tofile(file)
        except OSError:  # an unfinished file is removed with the folder
            return samples
        return cls(file.name, samples.nbytes)

    def taken(self) -> np.ndarray:
        """The samples. This works once, because the file is removed."""
        samples = np.fromfile(self.path, np.float32)
        os.unlink(self.path)
        return samples


@dataclass
class Clip:
    """A clip: it has its source before it is decoded, then a waveform or an error."""

    number: int
    name: str  # the path, or "clip 3" (counted from 0)
    source: ClipSource | None = None
    # (S,), float32, checked, at the wanted rate; a tensor, except between processes.
    waveform: Tensor | np.ndarray | SharedSamples | None = None
    error: str | None = None
    # Whether it is a file that is too long for one waveform; it then keeps its source.
    is_long: bool = False


def decode_clips(
    clips: Iterable[Any],
    sampling_rate: int,
    num_workers: int,
    pin_memory: bool = False,
    min_samples: int | None = None,
    max_bytes: int | None = None,
) -> Iterator[Clip]:
    """Reads clips; a bad one comes with its error in its place.

    Args:
        clips: Each in a form that `audio.read_clip` takes. Only a few clips are read ahead.
        sampling_rate: Wanted, in Hz.
        num_workers: Processes; 0 decodes in this process, and so does a daemonic process, which
            cannot have others. Samples at the wanted rate are always handled in this process,
            because sending them costs more than checking them.
        pin_memory: Whether waveforms are put into pinned memory, for a GPU. Those that come from
            workers are not.
        min_samples: As in `audio.read_clip`.
        max_bytes: A file whose waveform would take more is returned with its source, for
            `stream_audio`. By default a file that takes more than `audio.MOST_BYTES` is returned
            with an error.

    Raises:
        RuntimeError: The processes cannot start.
    """
    wanted = _Wanted(sampling_rate, min_samples, max_bytes, pin_memory)
    if num_workers == 0 or multiprocessing.current_process().daemon:
        for clip in _named_clips(clips):
            yield _decode(clip, wanted)
        return
    workers = _Workers(wanted, num_workers)
    ahead = _Ahead(num_workers)
    try:
        for clip in _named_clips(clips):
            num_bytes = GUESSED_GROWTH * _stored_bytes(clip.source)
            ahead.add(_Waiting(*workers.start(clip), num_bytes))
            while ahead.must_give():
                yield workers.finish(*ahead.take())
        while ahead.waiting:
            yield workers.finish(*ahead.take())
    finally:
        workers.stop()


@dataclass(frozen=True)
class _Wanted:
    """What a clip is to become; see `decode_clips`."""

    sampling_rate: int
    min_samples: int | None
    max_bytes: int | None
    pin_memory: bool = False


@dataclass
class _Waiting:
    """A clip that was read ahead."""

    clip: Clip
    future: Future | None  # None if it needed no worker
    num_bytes: int  # of its samples: a guess until it is decoded


class _Ahead:
    """The clips that were read ahead, oldest first, and whether more may be."""

    def __init__(self, num_workers: int):
        self.num_workers = num_workers
        self.waiting: deque[_Waiting] = deque()
        self.undecoded: dict[Future, _Waiting] = {}
        self.num_bytes = 0

    def add(self, entry: _Waiting) -> None:
        self.waiting.append(entry)
        self.num_bytes += entry.num_bytes
        if entry.future is not None:
            self.undecoded[entry.future] = entry

    def take(self) -> tuple[Clip, Future | None]:
        """Removes and returns the oldest clip."""
        entry = self.waiting.popleft()
        self.num_bytes -= entry.num_bytes
        if entry.future is not None:
            self.undecoded.pop(entry.future, None)
        return entry.clip, entry.future

    def must_give(self) -> bool:
        """Whether the oldest clip must be returned before another one is read.

        Waits while too many clips are undecoded.
        """
        while self.waiting:
            self._weigh_decoded()
            first, count = self.waiting[0].future, len(self.waiting)
            is_large = count > LEAST_AHEAD * self.num_workers and self.num_bytes > BYTES_AHEAD
            if first is None or is_large or count > MOST_AHEAD * self.num_workers:
                return True
            if len(self.undecoded) < MOST_UNDECODED * self.num_workers:
                return False
            if first.done():
                return True
            wait(self.undecoded, return_when=FIRST_COMPLETED)
        return False

    def _weigh_decoded(self) -> None:
        """Replaces the guessed number of bytes of each clip that is decoded by now."""
        for future in [future for future in self.undecoded if future.done()]:
            entry = self.undecoded.pop(future)
            if future.exception() is None and future.result().waveform is not None:
                self.num_bytes -= entry.num_bytes
                entry.num_bytes = future.result().waveform.nbytes
                self.num_bytes += entry.num_bytes


def _stored_bytes(source: ClipSource | None) -> int:
    content = None if source is None else source.content
    if isinstance(content, np.ndarray | Tensor):
        return content.nbytes
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, str | Path):
        try:
            return os.stat(content).st_size
        except (OSError, ValueError):  # the worker will report it
            return 0
    return 0


class _Workers:
    """Processes that decode; a process that dies is replaced."""

    def __init__(self, wanted: _Wanted, count: int):
        self.wanted = wanted
        self.count = count
        self.shared = _SharedFolder() if os.access(SHARED_MEMORY, os.W_OK) else None
        self.folder = self.shared.path if self.shared else None
        # A pool starts its processes when it gets its first clip.
        self.pool = self._new_pool(count)
        self.spare = self._new_pool(1)
        self.have_begun = False

    def _new_pool(self, count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            count, initializer=_begin_worker, initargs=(os.getpid(), self.folder)
        )

    def _begin(self) -> None:
        """Finds out whether workers can start at all, before a clip could kill one."""
        try:
            self.pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise RuntimeError(
                "the processes that decode ended as soon as they started; put the code of a script "
                'under if __name__ == "__main__":, which spawned processes need, or give '
                "num_workers=0"
            ) from None
        self.have_begun = True

    def start(self, clip: Clip) -> tuple[Clip, Future | None]:
        """Hands a clip to a worker, unless there is nothing to decode."""
        if clip.error is not None or clip.source is None or self._is_decoded(clip.source):
            return _decode(clip, self.wanted), None
        if isinstance(clip.source.content, Tensor):
            # As an array, because tensors would be sent through files; numpy has no bfloat16.
            tensor = clip.source.content.detach().cpu()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            clip.source = replace(clip.source, content=tensor.numpy())
        if not self.have_begun:
            self._begin()
        try:
            return clip, self._submit(self.pool, clip)
        except BrokenProcessPool:
            self.pool = self._new_pool(self.count)
            return clip, self._submit(self.pool, clip)

    def _submit(self, pool: ProcessPoolExecutor, clip: Clip) -> Future:
        # A worker's samples come from another process, in memory that is not pinned.
        wanted = replace(self.wanted, pin_memory=False)
        return pool.submit(_decode_in_worker, clip, wanted, self.folder)

    def _is_decoded(self, source: ClipSource) -> bool:
        return not source.is_file and source.sampling_rate in (None, self.wanted.sampling_rate)

    def finish(self, clip: Clip, future: Future | None) -> Clip:
        """Waits for a clip."""
        if future is None:
            return clip
        source = clip.source
        try:
            clip = future.result()
        except BrokenProcessPool:
            # If a worker dies, all clips of its pool fail, and it is not known which of them was
            # the cause: each of them is decoded again, alone.
            clip = self._decode_alone(clip)
        # The clip could not be sent to a worker.
        except Exception as error:
            clip.source, clip.error = None, one_line(error)
        clip.source = source if clip.is_long else None
        if isinstance(clip.waveform, SharedSamples):
            clip.waveform = clip.waveform.taken()
        if clip.waveform is not None:
            clip.waveform = torch.from_numpy(clip.waveform)
        return clip

    def _decode_alone(self, clip: Clip) -> Clip:
        # Two attempts, because the process may have died while it was idle.
        for _ in range(2):
            try:
                return self._submit(self.spare, clip).result()
            except BrokenProcessPool:
                self.spare = self._new_pool(1)
        clip.source = None
        clip.error = (
            f"{clip.name} killed each process that decoded it: it is too large for the memory, or "
            f"it crashes the decoder; cut or convert it first"
        )
        return clip

    def stop(self) -> None:
        for pool in (self.pool, self.spare):
            pool.shutdown(cancel_futures=True)
        if self.shared is not None:
            self.shared.remove()


class _SharedFolder:
    """A folder in memory, locked while a process of this run lives.

    If all processes of a run are killed, its folder stays; the next run removes it.
    """

    PREFIX = "modeling-ast-"

    def __init__(self):
        self._remove_abandoned()
        while True:
            self.path = tempfile.mkdtemp(prefix=self.PREFIX, dir=SHARED_MEMORY)
            # Another run may remove it before it is locked, because it then seems unused.
            try:
                self.lock = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            if self._is_mine(self.lock) and os.path.isdir(self.path):
                return
            os.close(self.lock)

    @staticmethod
    def _is_mine(lock: int) -> bool:
        """Locks an opened folder; False if another process has locked it."""
        import fcntl  # not on Windows, which has no /dev/shm

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _remove_abandoned(self) -> None:
        for folder in SHARED_MEMORY.glob(f"{self.PREFIX}*"):
            try:
                lock = os.open(folder, os.O_RDONLY)
            except OSError:  # another user's, or gone by now
                continue
            if self._is_mine(lock):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _begin_worker(parent: int, folder: str | None) -> None:
    # Ctrl-C goes to all processes of a terminal; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The threads of the parent's OpenMP do not survive a fork; a worker that waits for them hangs.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()


def _end_with(parent: int, folder: str | None) -> None:
    """Ends this process when its parent has ended, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _decode_in_worker(clip: Clip, wanted: _Wanted, folder: str | None) -> Clip:
    clip = _decode(clip, wanted)
    clip.source = None  # its parent has it
    if isinstance(clip.waveform, Tensor):
        clip.waveform = clip.waveform.numpy()  # a tensor would go through another file
        if folder is not None:
            clip.waveform = SharedSamples.of(clip.waveform, folder)
    return clip


def _decode(clip: Clip, wanted: _Wanted) -> Clip:
    """Fills in the waveform, in memory of its own, or the error, or that the file is long."""
    if clip.error is None:
        assert clip.source is not None  # a clip that could not be opened has an error
        try:
            clip.waveform = _waveform(clip.source, wanted)
        # Any error of a decoder: a bad file must not stop the others.
        except Exception as error:
            too_large = isinstance(error, TooLargeError) and clip.source.is_file
            clip.is_long = too_large and wanted.max_bytes is not None
            clip.error = None if clip.is_long else one_line(error)
    if not clip.is_long:
        clip.source = None
    return clip


def _waveform(source: ClipSource, wanted: _Wanted) -> Tensor:
    if isinstance(source.content, Tensor):
        # On the CPU and without a gradient, it is resampled in the same way as an array.
        source = replace(source, content=source.content.detach().cpu())
    max_bytes = MOST_BYTES
    if source.is_file and wanted.max_bytes is not None:
        max_bytes = wanted.max_bytes
    pin_memory = wanted.pin_memory
    waveform = decode_clip(
        source, wanted.sampling_rate, wanted.min_samples, not pin_memory, max_bytes
    )
    # Tensor.pin_memory is not used: it does not copy memory that its owner has pinned already.
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
    """A data set whose audio stays encoded; `datasets` would decode it here, with ffmpeg.

    Anything else is returned unchanged.
    """
    columns = getattr(clips, "features", None)
    if not columns or not hasattr(clips, "cast_column"):
        return clips
    from datasets import Audio

    for name, feature in columns.items():
        if isinstance(feature, Audio):
            clips = clips.cast_column(name, Audio(decode=False))
    return clips


__all__ = ["LONG_FILE_BYTES", "Clip", "decode_clips", "undecoded"]
