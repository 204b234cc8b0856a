"""The report on each file of a data set: used in a split, or skipped with a reason.

`found` is the sum of `used` over the splits and of the entries of `skipped`, so that no file
disappears silently. An entry is a file of a folder, or a row of a table or of a data set on the
Hub. Folders that are left out, such as empty ones, are listed separately.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..audio_files import Skipped, by_reason
from ..errors import one_line
from ..strict_json import to_json

REPORT_FILE = "data_report.json"
MISSING_FILE = "missing_clips.csv"
# Number of labels that a printed line names.
NAMED_LABELS = 20


class Missing(NamedTuple):
    """A row of a table whose file is not there."""

    file: str
    labels: list[str]


class LocalData(NamedTuple):
    """The content of a folder or a table, before a part of it is held out."""

    splits: dict[str, Dataset]  # not empty
    skipped: list[Skipped]
    missing: list[Missing]  # each is among `skipped` too
    warnings: list[str]


@dataclass
class DataReport:
    """The report on each file; see the module."""

    data: str
    # Clips of each split; None for a stream, which is not counted.
    used: dict[str, int | None] = field(default_factory=dict)
    # Label -> split -> clips with that label.
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    # Those of `skipped` that turned out to be bad when they were decoded.
    bad: list[Skipped] = field(default_factory=list)
    folders: list[Skipped] = field(default_factory=list)  # folders left out, such as empty ones
    missing: list[Missing] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Label as it is in the data -> name of its class, where they differ.
    class_names: Mapping[str, str] = field(default_factory=dict)
    # Split -> number of groups (`--group-by`); empty if clips are in no groups.
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def found(self) -> int | None:
        """Number of files or rows; None where one split is a stream."""
        counts = [count for count in self.used.values() if count is not None]
        return sum(counts) + len(self.skipped) if len(counts) == len(self.used) else None

    def count(self, split: str, labels: Sequence[Sequence[str]] | None, num_clips: int) -> None:
        """Counts the clips of a split.

        Args:
            labels: The labels of each of the clips; None if they are not known.
        """
        self.used[split] = num_clips
        counts = Counter(label for names in labels or () for label in names)
        for label in sorted(counts):
            self.labels.setdefault(label, {})[split] = counts[label]

    def rename(self, name_of: Mapping[str, str]) -> None:
        """Replaces labels that were counted by MID or index by the names of their classes."""
        self.class_names = name_of
        merged: dict[str, dict[str, int]] = {}
        for label, counts in self.labels.items():
            kept = merged.setdefault(name_of.get(label, label), {})
            for split, count in counts.items():
                kept[split] = kept.get(split, 0) + count
        self.labels = merged
        self.missing = [
            Missing(file, [name_of.get(label, label) for label in labels])
            for file, labels in self.missing
        ]

    def skip(self, split: str, file: str, labels: Sequence[str], reason: str) -> None:
        """Moves a bad clip of a split to the skipped ones."""
        entry = Skipped(file, one_line(reason))
        self.skipped.append(entry)
        self.bad.append(entry)
        count = self.used[split]
        self.used[split] = None if count is None else count - 1
        for label in labels:
            counts = self.labels.get(self.class_names.get(label, label), {})
            if split in counts:
                counts[split] -= 1

    def skip_bad(
        self,
        split: str,
        names: Iterable[str],
        labels: Iterable[Sequence[str]],
        bad: Mapping[str, str],
    ) -> None:
        """Calls `skip` for those clips of a split, given by name and labels, that are in `bad`."""
        for name, own_labels in zip(names, labels):
            if (listed := one_line(name)) in bad:
                self.skip(split, self.short(listed), own_labels, bad[listed])

    def short(self, name: str) -> str:
        """The name of a file without the folder of the data, as other lists of files show it."""
        return name.removeprefix(os.path.join(os.path.abspath(self.data), ""))

    @property
    def missing_by_label(self) -> dict[str, int]:
        """Label -> clips of it whose file is missing, the most frequent first."""
        counts = Counter(label for row in self.missing for label in row.labels)
        return dict(counts.most_common())

    def as_dict(self) -> dict[str, Any]:
        """The content of `data_report.json`."""
        return {
            "data": self.data,
            "found": self.found,
            "used": self.used,
            "labels": self.labels,
            "groups": self.groups,
            "skipped": [entry._asdict() for entry in self.skipped],
            "folders": [entry._asdict() for entry in self.folders],
            "missing": self.missing_by_label,
            "warnings": self.warnings,
        }

    def lines(self, listed_in: str = MISSING_FILE) -> list[str]:
        """The report as a few lines of text.

        Args:
            listed_in: The file that `save_missing` writes.
        """
        splits = ", ".join(
            f"{name} {'a stream' if count is None else count}" for name, count in self.used.items()
        )
        found = "" if self.found is None else f"{self.found} found: "
        lines = [f"data {self.data}: {found}{splits}, skipped {len(self.skipped)}"]
        if self.labels:
            shown = [
                f"{label} ({', '.join(f'{split} {n}' for split, n in counts.items())})"
                for label, counts in list(self.labels.items())[:NAMED_LABELS]
            ]
            rest = len(self.labels) - len(shown)
            more = [f"and {rest} more"] if rest else []
            lines.append(f"{len(self.labels)} labels: {'; '.join(shown + more)}")
        if self.groups:
            lines.append(f"groups: {', '.join(f'{name} {n}' for name, n in self.groups.items())}")
        lines += by_reason(self.skipped)
        lines += by_reason(self.folders)
        if self.missing:
            counts = list(self.missing_by_label.items())[:NAMED_LABELS]
            lines.append(f"missing by label: {'; '.join(f'{label} {n}' for label, n in counts)}")
            lines.append(f"missing clips are listed in {listed_in}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return [one_line(line) for line in lines]

    def leave_out(self, entries: Iterable[Skipped]) -> None:
        """Adds entries that are not used: files to `skipped`, folders to `folders`."""
        for entry in entries:
            (self.folders if entry.is_folder else self.skipped).append(entry)

    def save(self, folder: str | Path) -> None:
        """Writes data_report.json and, if files are missing, missing_clips.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_FILE).write_text(to_json(self.as_dict()) + "\n", encoding="utf-8")
        self.save_missing(folder / MISSING_FILE)

    def save_missing(self, file: str | Path) -> None:
        """Writes a CSV file of the rows whose file is missing, if there are any."""
        if self.missing:
            with Path(file).open("w", newline="", encoding="utf-8") as opened:
                writer = csv.writer(opened)
                writer.writerow(Missing._fields)
                writer.writerows((row.file, ";".join(row.labels)) for row in self.missing)


__all__ = [
    "MISSING_FILE",
    "REPORT_FILE",
    "DataReport",
    "LocalData",
    "Missing",
]
