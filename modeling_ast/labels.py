"""Labels: the files that list them, which function turns logits into scores, and harmless texts.

The labels of a checkpoint are a stranger's text. `printable` is the one rule of what of it reaches
a terminal, a picture or a model card.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .configuration_ast import ASTConfig
from .text_tables import read_text_table

# Hub checkpoints of AudioSet do not say that their labels are independent; their number does.
NUM_AUDIOSET_LABELS = 527
SCORES = ("auto", "sigmoid", "softmax")
# Characters that move the cursor, or reverse or hide text: control characters, direction
# marks, separators of lines, invisible ones, halves of characters, tags.
HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


class Label(NamedTuple):
    """A class of a data set."""

    mid: str  # AudioSet's identifier (/m/09x0r); the name again where the file has none
    name: str


def read_label_file(path: str | Path) -> list[Label]:
    """Reads AudioSet's class_labels_indices.csv, or a file like it.

    Args:
        path: A text in UTF-8, with or without a byte order mark, that has the columns `index` and
            `display_name`, and may have `mid`; commas, semicolons or tabs stand between them.
            Without a header, as in FSD50K's vocabulary.csv, each line has an index, a name and
            maybe a MID, which begins with a slash, on either side of the name.
    Returns:
        The labels, sorted by index.
    Raises:
        ValueError: It cannot be read, has another header, an index that is no number, is there
            twice or is left out, or a label without a name or with that of another.
    """
    try:
        table = read_text_table(path, header_of=_label_header)
    except (OSError, ValueError) as error:
        remedy = "" if isinstance(error, ValueError) else "; give the path of a CSV file"
        raise ValueError(f"cannot read the label file {path} ({error}){remedy}") from error
    if not {"index", "display_name"} <= set(table.header):
        raise ValueError(
            f"{path} has the header {table.delimiter.join(table.header) or '(none)'} but must have "
            f"index,mid,display_name (mid may be missing); add that line"
        )
    labels: dict[int, Label] = {}
    for cells in table.rows:
        row = dict(zip(table.header, cells))
        index, name = row["index"], row["display_name"]
        if not (index.isascii() and index.isdecimal()) or not name:
            raise ValueError(
                f"{path} has the index {index!r} with the name {name!r} but each line needs a "
                f"number and a name"
            )
        if int(index) in labels:
            raise ValueError(f"{path} has the index {index} twice; number the labels 0, 1, ...")
        labels[int(index)] = Label(row.get("mid") or name, name)
    _check_labels(path, labels)
    return [labels[index] for index in range(len(labels))]


def _label_header(first: list[str]) -> list[str] | None:
    """The header of a label file whose first row begins with a number."""
    if not first[0].isdecimal() or len(first) not in (2, 3):
        return None
    mid_first = len(first) == 3 and first[1].startswith("/")
    return (
        ["index", "mid", "display_name"]
        if mid_first
        else ["index", "display_name", "mid"][: len(first)]
    )


def _check_labels(path: str | Path, labels: dict[int, Label]) -> None:
    """Refuses labels with a gap, or two with one name."""
    missing = next((index for index in range(len(labels)) if index not in labels), None)
    if missing == 0 and sorted(labels) == list(range(1, len(labels) + 1)):
        raise ValueError(
            f"{path} counts its {len(labels)} labels from 1; number them from 0, as models do"
        )
    if missing is not None or not labels:
        raise ValueError(
            f"{path} has {len(labels)} labels but no index {missing or 0}; number them 0, 1, ... "
            f"without a gap"
        )
    for kind in ("name", "mid"):
        counts = Counter(getattr(label, kind) for label in labels.values())
        text, count = counts.most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"{path} has the {kind} {text!r} {count} times; give each label its own"
            )


def printable(text: object) -> str:
    """A text on one line that does nothing to what it is shown in.

    Args:
        text: A label, the name of a file, a message: anything with a text.
    Returns:
        The same, with escapes such as \\x1b and \\u202e in the place of `HARMFUL` characters.
    """
    return HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def distinct_names(id2label: Mapping[int, str]) -> list[str]:
    """The names of a model's labels in their order, where two labels may have one name.

    Returns:
        The names; those that are there several times have their index behind them: "dog [3]".
    """
    names = [id2label[index] for index in range(len(id2label))]
    taken = Counter(names)
    distinct = []
    for index, name in enumerate(names):
        new = name
        while taken[name] > 1 and new in taken:
            new = f"{new} [{index}]"
        taken[new] += new != name
        distinct.append(new)
    return distinct


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


def valid_unicode(text: str | None) -> str | None:
    """A text with a replacement character for each odd byte of a file's name."""
    return text and text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


__all__ = [
    "HARMFUL",
    "NUM_AUDIOSET_LABELS",
    "SCORES",
    "Label",
    "activation",
    "distinct_names",
    "printable",
    "read_label_file",
    "valid_unicode",
]
