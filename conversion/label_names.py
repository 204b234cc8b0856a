"""Class names: a class_labels_indices.csv, or a list on the Hub -> {index: name}."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from checkpoint_files import download, read_json
from key_maps import ConversionError

NUM_AUDIOSET_LABELS = 527
LABEL_FILES = "huggingface/label-files"


def read_label_csv(path: Path, num_labels: int | None = None) -> dict[int, str]:
    """Reads AudioSet's class_labels_indices.csv or a file like it.

    Args:
        path: With the header index,mid,display_name; `mid` may be missing.
        num_labels: How many there must be; None for any number.
    Raises:
        ConversionError: Another header, an index that is no number, twice there or left out, a
            name missing, or another count.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConversionError(f"cannot read the label file {path} ({error})") from error
    if not {"index", "display_name"} <= set(header):
        raise ConversionError(
            f"{path} has the header {','.join(header) or '(none)'} but must have "
            f"index,mid,display_name; add that line"
        )
    names: dict[int, str] = {}
    for row in rows:
        index, name = (row["index"] or "").strip(), (row["display_name"] or "").strip()
        if not index.isdecimal() or not name:
            raise ConversionError(
                f"{path} has the index {index!r} with the name {name!r} but each line needs a "
                f"number and a name"
            )
        if int(index) in names:
            raise ConversionError(
                f"{path} has the index {index} twice; number the labels 0, 1, ..."
            )
        names[int(index)] = name
    _check_indices(path, names, num_labels)
    return dict(sorted(names.items()))


def fetch_label_names(name: str) -> dict[int, str]:
    """Names from `name`, a JSON file of the data set huggingface/label-files on the Hub.

    Raises:
        ConversionError: It is out of reach, or no list of names.
    """
    path = download(LABEL_FILES, name, repo_type="dataset")
    if path is None:
        raise ConversionError(f"{LABEL_FILES} has no {name}; give --label-csv")
    names = {index: str(label) for index, label in read_json(path).items()}
    if set(names) != {str(index) for index in range(len(names))}:
        raise ConversionError(f"{path} does not number its labels 0, 1, ...; give --label-csv")
    return {index: names[str(index)] for index in range(len(names))}


def _check_indices(path: Path, names: dict[int, str], num_labels: int | None) -> None:
    missing = sorted(set(range(len(names))) - names.keys())
    if missing or not names:
        raise ConversionError(
            f"{path} has {len(names)} labels but no index {missing[0] if missing else 0}; number "
            f"them 0, 1, ... without a gap"
        )
    if num_labels is not None and len(names) != num_labels:
        raise ConversionError(
            f"{path} has {len(names)} labels but the checkpoint's head has {num_labels}; give the "
            f"label file it was trained with"
        )


def describe_labels(labels: int | dict[int, str]) -> dict[str, Any]:
    """Fields of ASTConfig for a number of labels, or for their names.

    A clip of AudioSet has several labels at once; for others the first training step decides.

    Raises:
        ConversionError: There are none.
    """
    if isinstance(labels, int) and labels < 1:
        raise ConversionError(f"num_labels is {labels}; it must be 1 or more")
    names = {i: f"LABEL_{i}" for i in range(labels)} if isinstance(labels, int) else labels
    several = len(names) == NUM_AUDIOSET_LABELS
    return {
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": "multi_label_classification" if several else None,
    }
