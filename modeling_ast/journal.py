"""The .jsonl of a run over many files: a row for each finished file, so that a killed run resumes.

Each result is appended as it comes; the same call continues where a killed one was, and later takes
the files that are new. Rows of another model or other settings are not mixed with new ones.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

# Windows has other locks; there, a second run at the same time is not noticed.
if sys.platform != "win32":
    import fcntl


class Journal:
    """The .jsonl: a line for each finished file, appended at once, so that a kill loses none.

    Args:
        path: Of the file, which may be that of an earlier run.
        model: Name of the model, which is written into each row.
        fields: What each row has beside its settings, "seconds", "model" and `key` among it.
        settings: What else decides a result, and the flag that sets it, such as "--padding {}".
        defaults: Settings of earlier rows that do not say them.
        key: The field that names what a row stands for, which each line begins with.
    Raises:
        ValueError: Another process is writing the file, it holds something else, or rows of
            another model.
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
        self.fields = frozenset(fields)
        self.key = key
        self.flags = settings
        self.defaults = dict(defaults or {})
        # What else decides the result of a row, as the rows that are there say it.
        self.settings: dict[str, Any] = {}
        self.num_bad = 0
        self.seconds = 0.0
        self.done: set[str] = set()
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file; give another --output")
        # Unbuffered: what a full disk did not take must not be written later, behind other lines.
        self.file = path.open("ab", buffering=0)
        self._lock()
        # Kept open: to close any handle of a file gives up the lock on it.
        self.lines = path.open("rb")
        # A kill in the middle of a line: that file is not done.
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
        """Takes the finished files over; returns where the last whole line ends."""
        end = 0
        for number, line in enumerate(self.lines, 1):
            if not line.endswith(b"\n") and self._is_torn_row(line):
                break
            row = self._row(line)
            if row is None:
                raise ValueError(f"line {number} of {self.path} is no row of this command")
            if row["model"] != self.model:
                raise ValueError(
                    f"{self.path} has the results of the model {row['model']!r} from an "
                    f"earlier run, and {self.model!r} cannot add to them; give another --output, "
                    f"or move what is there away to begin anew"
                )
            said = {name: row[name] for name in self.flags if row.get(name) is not None}
            self.settings = {**self.defaults, **said}
            self.count(row)
            end += len(line)
        return end

    def use(self, **settings: Any) -> None:
        """Says with which settings the next rows are made.

        Raises:
            ValueError: The rows that are there have another one, which gives other results.
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
        """Writes one result: its fields; the model and the settings are added."""
        row = {**row, "model": self.model, **self.settings}
        # In ASCII: file names need not be valid Unicode.
        line = json.dumps(row).encode() + b"\n"
        # A file that was removed would take all further rows, which would then be lost.
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
        """A line of the journal, or None if it is something else."""
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return row if isinstance(row, dict) and row.keys() >= self.fields else None

    def count(self, row: Mapping[str, Any]) -> None:
        """Takes a row into the numbers of the run."""
        self.done.add(row[self.key])
        self.num_bad += row["error"] is not None
        self.seconds += row["seconds"] or 0.0

    def _is_torn_row(self, line: bytes) -> bool:
        """Whether a last line may be cut off: what is not ours must not be."""
        begin = f'{{"{self.key}": "'.encode()
        return line[: len(begin)] == begin[: len(line)]


__all__ = ["Journal"]
