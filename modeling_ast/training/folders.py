"""A folder that has a folder of audio files for each label -> clips with labels.

`my_sounds/LABEL/*.wav`: each folder is a label, and neither its name nor its files' names have
another meaning. Only folders that are named exactly train, validation or test, and have label
folders in them, are splits. The reader of `datasets` itself would see a split in such words
anywhere in a path, and leave out all other files.

Speech Commands works as released: its validation_list.txt and testing_list.txt name the clips of
those splits, and `_background_noise_` is not a label.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from datasets import Dataset

from ..audio_files import Listing, Skipped, unusable_by_name
from ..text_tables import read_text
from .clips import FOLDER_FEATURES
from .data_report import LocalData

SPLITS = ("train", "validation", "test")
SPLIT_LISTS = {"validation_list.txt": "validation", "testing_list.txt": "test"}
NOISE_FOLDER = "_background_noise_"


def read_folder(folder: Path, listing: Listing) -> LocalData:
    """The clips of a folder; rows have an absolute path, "audio", and a name, "label".

    Args:
        listing: From `audio_files(folder)`.
    Raises:
        ValueError: No file is in the folder of a label, or it is unclear which folders are splits
            and which are labels.
    """
    usable, skipped = usable_files(listing)
    names = splits_of(folder, usable)
    lists = {} if names else read_split_lists(folder)
    clips: dict[str, list[tuple[str, str]]] = {}
    nested = []  # clips in a folder inside the folder of their label
    for name in usable:
        parts = PurePosixPath(name).parts
        split, inside = (parts[0], parts[1:]) if names else (lists.get(name, "train"), parts)
        if inside[0] == NOISE_FOLDER:
            skipped.append(Skipped(name, "background noise of Speech Commands, without a label"))
        elif len(inside) == 1:
            skipped.append(Skipped(name, "not in the folder of a label, but beside these folders"))
        else:
            clips.setdefault(split, []).append((name, inside[0]))
            if len(inside) > 2:
                nested.append((name, inside[0]))
    if not clips:
        raise ValueError(no_labels(folder, listing))
    warnings = []
    if lost := sorted(lists.keys() - set(usable)):
        warnings.append(
            f"{len(lost)} of the {len(lists)} files in the lists {' and '.join(SPLIT_LISTS)} are "
            f"not there, such as {lost[0]!r}"
        )
    if lists:
        skipped = [
            entry._replace(reason="read as the list of a split")
            if entry.file in SPLIT_LISTS
            else entry
            for entry in skipped
        ]
    if nested:
        file, label = nested[0]
        warnings.append(
            f"{len(nested)} files are in folders inside the folder of their label, such as {file}; "
            f"its label is {label!r}, the name of the outermost folder"
        )
    splits = {name: dataset_of(folder, clips[name]) for name in SPLITS if name in clips}
    warnings += labels_without_clips(usable, skipped, bool(names))
    return LocalData(splits, skipped, [], warnings)


def usable_files(listing: Listing) -> tuple[list[str], list[Skipped]]:
    """The files with names of usable audio files, and all others with the reason."""
    usable, skipped = [], list(listing.skipped)
    for name in listing.files:
        if reason := unusable_by_name(name):
            skipped.append(Skipped(name, reason))
        elif not _is_unicode(name):
            skipped.append(Skipped(name, "the name is not valid Unicode; rename it"))
        else:
            usable.append(name)
    return usable, skipped


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def splits_of(folder: Path, files: list[str]) -> list[str]:
    """The folders that are splits; empty if every folder is a label.

    Raises:
        ValueError: There is audio beside the splits, so that not all folders are splits.
    """
    paths = [PurePosixPath(name).parts for name in files]
    splits = [
        name for name in SPLITS if any(parts[0] == name and len(parts) > 2 for parts in paths)
    ]
    others = sorted({parts[0] for parts in paths if len(parts) > 1} - {*splits, NOISE_FOLDER})
    if splits and others:
        raise ValueError(
            f"{folder} has the splits {', '.join(splits)} (folders with label folders in them) and "
            f"beside them audio in {', '.join(map(repr, others[:3]))}; give each split a folder "
            f"for each label and move other audio away, or, if {splits[0]!r} is a label, put its "
            f"files directly into it"
        )
    return splits


def read_split_lists(folder: Path) -> dict[str, str]:
    """File -> split, from the lists of Speech Commands; files in no list are to train on."""
    lists: dict[str, str] = {}
    for name, split in SPLIT_LISTS.items():
        if (folder / name).is_file():
            lines = [line.strip() for line in read_text(folder / name).split("\n")]
            files = [line.replace("\\", "/").removeprefix("./") for line in lines if line]
            lists |= dict.fromkeys(files, split)
    return lists


def dataset_of(folder: Path, clips: list[tuple[str, str]]) -> Dataset:
    """Files, relative to the folder, with their labels -> rows."""
    columns = {
        "audio": [os.path.abspath(folder / name) for name, _ in clips],
        "label": [label for _, label in clips],
    }
    return Dataset.from_dict(columns, features=FOLDER_FEATURES)


def no_labels(folder: Path, listing: Listing) -> str:
    """The error message if no file is in the folder of a label."""
    tables = [
        name for name, _ in listing.skipped if name.lower().endswith((".csv", ".tsv", ".json"))
    ]
    table = (
        f", or give a table of files and labels (such as {tables[0]}) as --data" if tables else ""
    )
    if not listing.files:
        return (
            f"{folder} has no audio file in it ({len(listing.skipped)} other files and folders); "
            f"give a directory with a folder of audio files for each label{table}"
        )
    return (
        f"{folder} has {len(listing.files)} audio files but none that can be used in a folder for "
        f"its label, e.g. {folder / 'LABEL' / PurePosixPath(listing.files[0]).name}; make these "
        f"folders{table}"
    )


def labels_without_clips(files: list[str], skipped: list[Skipped], has_splits: bool) -> list[str]:
    """A warning that names the label folders without a usable file."""
    depth = 2 if has_splits else 1

    def places(names):
        paths = [PurePosixPath(name).parts for name in names]
        return {"/".join(parts[:depth]) for parts in paths if len(parts) > depth}

    left_out = [file for file, _ in skipped if not file.startswith(("__MACOSX", "."))]
    empty = [entry.file for entry in skipped if entry.reason.startswith("empty")]
    lost = places(left_out) - places(files)
    lost |= {file for file in empty if len(PurePosixPath(file).parts) == depth}
    lost = sorted(name for name in lost if PurePosixPath(name).name != NOISE_FOLDER)
    if not lost:
        return []
    names = ", ".join(map(repr, lost[:5]))
    return [f"no file in the folders {names} can be used; the line about skipped files says why"]


__all__ = ["SPLITS", "read_folder"]
