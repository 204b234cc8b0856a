"""The names of a checkpoint's labels: from a file, or from a list on the Hub -> {index: name}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configuration_ast import LARGEST
from ..labels import NUM_AUDIOSET_LABELS, read_label_file
from .checkpoint_files import download, read_json
from .key_maps import ConversionError

LABEL_FILES = "huggingface/label-files"


def read_label_names(path: str | Path) -> dict[int, str]:
    """Names from a label file, see `labels.read_label_file`.

    Raises:
        ConversionError: The file cannot be read, or is not a list of labels.
    """
    try:
        return {index: label.name for index, label in enumerate(read_label_file(path))}
    except ValueError as error:
        raise ConversionError(str(error)) from error


def fetch_label_names(name: str) -> dict[int, str]:
    """Names from a JSON file of the data set huggingface/label-files on the Hub.

    Args:
        name: Name of the file, such as audioset-id2label.json.
    Raises:
        ConversionError: The file cannot be fetched, or is not a list of names.
    """
    path = download(LABEL_FILES, name, repo_type="dataset")
    if path is None:
        raise ConversionError(f"{LABEL_FILES} has no {name}; give a label file (--label-csv FILE)")
    names = {index: str(label) for index, label in read_json(path).items()}
    if set(names) != {str(index) for index in range(len(names))}:
        raise ConversionError(
            f"{path} does not number its labels 0, 1, ...; give a label file (--label-csv FILE)"
        )
    return {index: names[str(index)] for index in range(len(names))}


def describe_labels(labels: int | Mapping[int, str]) -> dict[str, Any]:
    """Fields of ASTConfig for a number of labels, or for their names.

    A clip of AudioSet may have several labels. For other data sets `problem_type` stays open until
    the first training step.

    Raises:
        ConversionError: The number of labels is out of its range.
    """
    most = LARGEST["num_labels"]
    if isinstance(labels, int) and not 1 <= labels <= most:
        raise ConversionError(f"num_labels is {labels}; it must be from 1 to {most}")
    names = {i: f"LABEL_{i}" for i in range(labels)} if isinstance(labels, int) else dict(labels)
    several = len(names) == NUM_AUDIOSET_LABELS
    return {
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": "multi_label_classification" if several else None,
    }


__all__ = ["describe_labels", "fetch_label_names", "read_label_names"]
