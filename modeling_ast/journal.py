"""The .jsonl of a run over many files: a row for each finished file, so that a killed run resumes.

Each result is appended as soon as it is known. The same call continues where a killed one ended,
and later adds new files. A journal with rows of another model or of other settings is refused.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .weight_files import weights_fingerprint

# Windows has other locks; there, a second run at the same time is not noticed.
if sys.platform != "win32":
    import fcntl


# The field of a row with the fingerprint of the weights.
WEIGHTS = "weights"


class Journal:
    """The .jsonl: a line for each finished file, appended at once, so that a kill loses none.

    Args:
        path: Of the file, which may belong to an earlier run.
        model: Name of the model, which is written into each row; so is the fingerprint of its
            weights, if it is a folder.
        fields: The fields of each row besides its settings; "seconds", "model" and `key` are among
            them.
        settings: The settings that decide a result besides the model, and the flag that sets each,
            such as "--padding {}".
        defaults: Settings of earlier rows that do not state them.
        key: The first field of each line, which names the file that the row belongs to.
    Raises:
        ValueError: Another process is writing the file, it holds something other than rows, or
            rows of another model or of other weights.
        OSError: It cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        fields: Collection[str],
        settings: Mapping[str, str],
        defaults: Mapping[str, str] | None = None,
        key: str = "file",
    ):
        self.path = path
        self.model = model
        self.weights = weights_fingerprint(model)
        self.fields = frozenset(fields)
        self.key = key
        self.flags = settings
        self.defaults = dict(defaults or {})
        # The settings that the existing rows state.
        self.settings: dict[str, Any] = {}
        self.num_bad = 0
        self.seconds = 0.0
        self.done: set[str] = set()
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file; give another --output")
        self._is_new = not path.exists()
        # Unbuffered: what a full disk refused must not be written later, after other lines.
        self.file = path.open("ab", buffering=0)
        self._lock()
        # Kept open, because closing any handle of a file releases the lock on it.
        self.lines = path.open("rb")
        # If a kill cut off the last line, its file is not done, and the line is removed.
        self.file.truncate(self._read())

    def _lock(self) -> None:
        """Refuses a file to which another run is writing; the lock ends with this process."""
        if sys.platform == "win32":
            return
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError("another process is writing it; wait for it, or stop it") from None
            raise

    def _read(self) -> int:
        """Reads the finished files; returns where the last whole line ends."""
        end = 0
        for number, line in enumerate(self.lines, 1):
            if not line.endswith(b"\n") and self._is_torn_row(line):
                break
            row = self._row(line)
            if row is None:
                raise ValueError(
                    f"line {number} of {self.path} is not a row of this command; give another "
                    f"--output"
                )
            if row["model"] != self.model:
                raise ValueError(
                    f"{self.path} has the results of the model {row['model']!r} from an "
                    f"earlier run, and {self.model!r} cannot add to them; give another --output, "
                    f"or move that file away to start again"
                )
            # Rows of earlier versions do not state it.
            if self.weights is not None and row.get(WEIGHTS, self.weights) != self.weights:
                raise ValueError(
                    f"{self.path} has results of {self.model!r} from before its weights were "
                    f"replaced; give another --output, or move that file away to start again"
                )
            said = {name: row[name] for name in self.flags if row.get(name) is not None}
            self.settings = {**self.defaults, **said}
            self.count(row)
            end += len(line)
        return end

    def remove_if_unused(self) -> None:
        """Closes the journal of a run that was refused; removes its file if it is new and empty."""
        self.file.close()
        self.lines.close()
        if self._is_new and not self.done:
            self.path.unlink(missing_ok=True)

    def use(self, **settings: Any) -> None:
        """Sets the settings of the next rows.

        Raises:
            ValueError: The existing rows have another setting, which gives other results.
        """
        for name, value in settings.items():
            before = self.settings.get(name, value)
            if before != value:
                raise ValueError(
                    f"{self.path} has results with {name} {before!r}, not {value!r}; give another "
                    f"--output, or {self.flags[name].format(before)}"
                )
        self.settings |= settings

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes one result; the model and the settings are added to its fields."""
        row = {**row, "model": self.model, **self.settings}
        if self.weights is not None:
            row[WEIGHTS] = self.weights
        # In ASCII: file names need not be valid Unicode.
        line = json.dumps(row).encode() + b"\n"
        # If the file was removed, all further rows would be written into it and lost.
        if not self.path.exists() or not os.path.samestat(
            os.stat(self.path), os.fstat(self.file.fileno())
        ):
            raise FileNotFoundError(
                errno.ENOENT, "it was removed or replaced while it was written", str(self.path)
            )
        if self.file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.count(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The finished rows, in the order in which they were written."""
        with self.path.open("rb") as lines:
            yield from filter(None, map(self._row, lines))

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """The row in a line of the journal, or None if the line is something else."""
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return row if isinstance(row, dict) and row.keys() >= self.fields else None

    def count(self, row: Mapping[str, Any]) -> None:
        """Counts a row."""
        self.done.add(row[self.key])
        self.num_bad += row["error"] is not None
        self.seconds += row["seconds"] or 0.0

    def _is_torn_row(self, line: bytes) -> bool:
        """Whether an unfinished last line is part of a row; anything else must not be removed."""
        begin = f'{{"{self.key}": "'.encode()
        return line[: len(begin)] == begin[: len(line)]


__all__ = ["Journal"]
