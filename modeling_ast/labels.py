"""Labels: the files that list them, the function that turns logits into scores, and safe texts.

The labels of a checkpoint are text from a stranger. `printable` is the single rule for showing such
text in a terminal, a picture or a model card.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .configuration_ast import ASTConfig
from .text_tables import read_text_table

# AudioSet checkpoints on the Hub do not state that their labels are independent; they are
# recognised by their number of labels.
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

    mid: str  # AudioSet's identifier (/m/09x0r); the name if the file has none
    name: str


def read_label_file(path: str | Path) -> list[Label]:
    """Reads AudioSet's class_labels_indices.csv, or a file like it.

    Args:
        path: A text in UTF-8, with or without a byte order mark, with the columns `index` and
            `display_name`, and optionally `mid`; commas, semicolons or tabs separate them. Without
            a header, as in FSD50K's vocabulary.csv, each line has an index, a name, and optionally
            a MID, which begins with a slash, before or after the name.
    Returns:
        The labels, sorted by index.
    Raises:
        ValueError: It cannot be read, has another header, an index that is not a number, occurs
            twice or is missing, or a label whose name is missing or occurs twice.
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
    """A text on one line without characters that could disturb the terminal or page it is shown in.

    Args:
        text: A label, the name of a file, a message, or any other object; its text is taken.
    Returns:
        The same text, with `HARMFUL` characters replaced by escapes such as \\x1b and \\u202e.
    """
    return HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def distinct_names(id2label: Mapping[int, str]) -> list[str]:
    """The names of a model's labels, in their order, made distinct.

    Returns:
        The names; a name that several labels have is followed by the label's index: "dog [3]".
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
    """The function that turns logits into scores: "sigmoid" or "softmax".

    With sigmoid each label has a score of its own; with softmax the scores of all labels sum to 1.

    Args:
        choice: One of the two, or "auto": sigmoid if the config says that a clip has several
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
    """A file's name as valid Unicode, with a replacement character for each byte that is not."""
    return text and text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def escaped_unicode(label: str) -> str:
    """A label as valid Unicode, as files need it: halves of characters become escapes."""
    return label.encode("utf-8", "backslashreplace").decode()


__all__ = [
    "HARMFUL",
    "NUM_AUDIOSET_LABELS",
    "SCORES",
    "Label",
    "activation",
    "distinct_names",
    "escaped_unicode",
    "printable",
    "read_label_file",
    "valid_unicode",
]
