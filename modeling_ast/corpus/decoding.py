"""The decoding stage: rows with audio in any form -> rows with waveforms, or with reasons.

`workers.decode_clips` decodes, as on one machine. It uses a process of its own, so that a file that
kills its decoder becomes a bad row and does not kill the task again and again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from torch import Tensor

from ..audio import open_clip, stream_audio
from ..labels import valid_unicode
from ..workers import LONG_FILE_BYTES, Clip, decode_clips
from .reading import AUDIO, ERROR, KEY, PATH, is_address

# A row has the waveform (float32), or the reason why there is none, or the path or content of a
# file that is too long for one waveform. `name` is what errors call the clip.
DECODED = pa.schema(
    [
        (KEY, pa.string()),
        ("name", pa.binary()),
        ("waveform", pa.large_binary()),
        ("error", pa.string()),
        ("path", pa.binary()),
        ("content", pa.large_binary()),
    ]
)
# Bytes of the waveforms of a block: few, so that a stage holds little memory, but enough to make
# Ray's cost for each block small.
BLOCK_BYTES = 2**24
# An object store that does not answer is asked again after so many seconds.
PAUSES = (1.0, 5.0)
# With these errors the clip is bad; other errors of a file system stop the job.
GONE = (FileNotFoundError, PermissionError, IsADirectoryError)


class Decoder:
    """Decodes blocks of rows.

    Args:
        sampling_rate, min_samples: As in `workers.decode_clips`.
        key: Column of the keys.
        audio: Column of the audio: bytes, paths, addresses, or {"bytes", "path"}, as `datasets` and
            Ray write it, or samples as {"array", "sampling_rate"}.
    """

    def __init__(self, sampling_rate: int, min_samples: int, key: str = KEY, audio: str = AUDIO):
        self.sampling_rate = sampling_rate
        self.min_samples = min_samples
        self.key = key
        self.audio = audio

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Tables of `DECODED`, with a row for each row given, in any order."""
        keys = [str(key) for key in rows.column(self.key).to_pylist()]
        bad: list[dict[str, Any]] = []
        taken: list[int] = []  # the rows that are decoded

        def readable() -> Iterator[Any]:
            for number, clip in enumerate(clips_of(rows, self.audio)):
                if isinstance(clip, Exception):
                    bad.append(_row(keys[number], keys[number], error=str(clip)))
                else:
                    taken.append(number)
                    yield clip

        block, size = [], 0
        for clip in decode_clips(
            readable(), self.sampling_rate, 1, False, self.min_samples, LONG_FILE_BYTES
        ):
            block.append(_decoded_row(keys[taken[clip.number]], clip))
            size += len(block[-1]["waveform"] or block[-1]["content"] or b"")
            if size >= BLOCK_BYTES:
                yield pa.Table.from_pylist(block, DECODED)
                block, size = [], 0
        yield pa.Table.from_pylist(block + bad, DECODED)


def clips_of(rows: pa.Table, audio: str = AUDIO) -> Iterator[Any]:
    """The clips of some rows, each in a form that `audio.read_clip` takes, or an exception.

    Args:
        rows: With the column `audio`; or as `sources.Source` gives them, with a path or an error.
    """
    nothing = pa.nulls(rows.num_rows)
    columns = [
        rows.column(name) if name in rows.column_names else nothing for name in (audio, PATH, ERROR)
    ]
    for start in range(rows.num_rows):
        clip, path, error = (column[start].as_py() for column in columns)
        if error is not None:
            yield ValueError(error)
        elif clip is None and path is not None:
            yield _fetched(os.fsdecode(path))
        elif isinstance(clip, str):
            yield _fetched(clip)
        elif isinstance(clip, dict) and clip.get("bytes") is None and clip.get("path"):
            yield _fetched(clip["path"])
        else:
            yield clip


def check_survives(clip: Any) -> None:
    """Decodes a recording to its end in a process of its own.

    Args:
        clip: In a form that `audio.read_clip` takes.
    Raises:
        ValueError: That process was killed. If the recording is only bad, nothing is raised.
    """
    source = open_clip(clip)
    if source.file is None:
        return
    with ProcessPoolExecutor(1) as pool:
        try:
            pool.submit(_decode_to_the_end, source.file).result()
        except BrokenProcessPool:
            raise ValueError(
                f"{source.name} killed each process that decoded it: it crashes the decoder; "
                f"convert it first"
            ) from None


def _decode_to_the_end(file: str | Path | bytes) -> None:
    with suppress(OSError, ValueError):
        for _ in stream_audio(file):
            pass


def _fetched(path: str) -> Any:
    """A local path unchanged; for an address, the bytes of its file."""
    if not is_address(path):
        return path
    filesystem, inside = fsspec.core.url_to_fs(path)
    pauses = iter(PAUSES)
    while True:
        try:
            return {"bytes": filesystem.cat_file(inside), "path": path}
        except GONE as error:
            return ValueError(f"no file at {path!r} that can be read ({error})")
        # Network errors: each library behind fsspec raises its own kinds.
        except Exception:
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)


def _decoded_row(key: str, clip: Clip) -> dict[str, Any]:
    if clip.error is not None:
        return _row(key, clip.name, error=valid_unicode(clip.error))
    if clip.is_long:
        assert clip.source is not None  # a long clip comes with its source
        content = clip.source.file
        if isinstance(content, bytes):
            return _row(key, clip.name, content=content)
        assert content is not None  # and it is a file
        return _row(key, clip.name, path=os.fsencode(content))
    assert isinstance(clip.waveform, Tensor)  # from `decode_clips`, which gives no other
    return _row(key, clip.name, waveform=clip.waveform.numpy().tobytes())


def _row(key: str, name: str, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(DECODED.names), KEY: key, "name": os.fsencode(name), **values}


__all__ = ["DECODED", "Decoder", "check_survives", "clips_of"]
