"""Labels: the files that list them, and which function turns logits into scores."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from .configuration_ast import ASTConfig

# Hub checkpoints of AudioSet do not say that their labels are independent; their number does.
NUM_AUDIOSET_LABELS = 527
SCORES = ("auto", "sigmoid", "softmax")
DELIMITERS = ",;\t"


class Label(NamedTuple):
    """A class of a data set."""

    mid: str  # AudioSet's identifier (/m/09x0r); the name again where the file has none
    name: str


def read_label_file(path: str | Path) -> list[Label]:
    """Reads AudioSet's class_labels_indices.csv, or a file like it.

    Args:
        path: A text in UTF-8, with or without a byte order mark, that has the columns `index` and
            `display_name`, and may have `mid`; commas, semicolons or tabs stand between them.
    Returns:
        The labels, sorted by index.
    Raises:
        ValueError: It cannot be read, has another header, an index that is no number, is there
            twice or is left out, or a label without a name.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read the label file {path} ({error}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(
            f"cannot read the label file {path} ({error}); give the path of a CSV file"
        ) from error
    first = lines[0] if lines else ""
    delimiter = max(DELIMITERS, key=first.count)
    # On the joined lines: a quoted name may hold a line break.
    reader = csv.DictReader((f"{line}\n" for line in lines), delimiter=delimiter)
    reader.fieldnames = header = [name.strip() for name in reader.fieldnames or []]
    if not {"index", "display_name"} <= set(header):
        raise ValueError(
            f"{path} has the header {delimiter.join(header) or '(none)'} but must have "
            f"index,mid,display_name (mid may be missing); add that line"
        )
    labels: dict[int, Label] = {}
    for row in reader:
        index, name = ((row[key] or "").strip() for key in ("index", "display_name"))
        if not (index.isascii() and index.isdecimal()) or not name:
            raise ValueError(
                f"{path} has the index {index!r} with the name {name!r} but each line needs a "
                f"number and a name"
            )
        if int(index) in labels:
            raise ValueError(f"{path} has the index {index} twice; number the labels 0, 1, ...")
        labels[int(index)] = Label((row.get("mid") or "").strip() or name, name)
    missing = next((index for index in range(len(labels)) if index not in labels), None)
    if missing is not None or not labels:
        raise ValueError(
            f"{path} has {len(labels)} labels but no index {missing or 0}; number them 0, 1, ... "
            f"without a gap"
        )
    return [labels[index] for index in range(len(labels))]


def label_names(config: ASTConfig) -> list[str]:
    """The names of a model's labels, in the order of its scores."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [names[index] for index in sorted(names)]


def activation(choice: str, config: ASTConfig) -> str:
    """What makes scores of logits: "sigmoid" (each label for itself) or "softmax" (one for all).

    Args:
        choice: One of the two, or "auto": sigmoid where the config says that a clip has several
            labels, and for AudioSet's 527 classes, whose configs on the Hub do not say it.
    Raises:
        ValueError: `choice` is none of the three.
    """
    if choice not in SCORES:
        raise ValueError(f"scores is {choice!r}; it must be one of {', '.join(SCORES)}")
    if choice != "auto":
        return choice
    several = config.problem_type == "multi_label_classification"
    unstated = config.problem_type is None and config.num_labels == NUM_AUDIOSET_LABELS
    return "sigmoid" if several or unstated else "softmax"


__all__ = ["NUM_AUDIOSET_LABELS", "SCORES", "Label", "activation", "label_names", "read_label_file"]
