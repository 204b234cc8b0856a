"""Which data set, its columns, and what is held out: the arguments that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Names of a column of labels, and of one of audio files in a table, the likeliest first.
LABEL_COLUMNS = ("labels", "label", "category", "target", "positive_labels", "class", "classname")
AUDIO_COLUMNS = (
    *("audio", "file", "filename", "file_name", "fname", "path", "filepath", "file_path"),
    *("audio_path", "audio_file", "wav", "YTID", "slice_file_name"),
)
LOSSES = ("auto", "bce", "cross_entropy")
# A --fold-column of this name: the data's own folds are not used.
DRAWN = "none"


@dataclass
class DataArguments:
    """Which data set, its columns, and what is held out."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "name on the Hub, directory, or CSV, JSON or parquet file",
            "aliases": ["--dataset"],
        },
    )
    data_config: str | None = field(default=None, metadata={"help": "e.g. balanced"})
    audio_root: str | None = field(
        default=None,
        metadata={"help": "folder that a table's files are in; by default the table's own"},
    )
    train_split: str = field(default="train", metadata={"help": "split to train on; or a+b"})
    eval_split: str = field(
        default="test", metadata={"help": "held-out split; validation if there is no test"}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "split that decides which epoch is best and when to stop"}
    )
    eval_share: float | None = field(
        default=None,
        metadata={"help": "if there is no held-out split: hold this share of each label out"},
    )
    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "without a split named validation: share of the training clips of each label "
            "that is set aside to choose the weights"
        },
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "column, or pattern with a group for the path of a file, that names its "
            "speaker, kit or place: none of these is both trained on and held out"
        },
    )
    folds: int | None = field(
        default=None,
        metadata={"help": "deal the training split into so many folds, each held out once"},
    )
    eval_fold: int | None = field(
        default=None, metadata={"help": "hold this fold of the training split out, not a split"}
    )
    fold_column: str = field(
        default="fold",
        metadata={"help": f"column with the number of a fold; {DRAWN}: --folds draws them"},
    )
    audio_column: str = field(
        default="audio",
        metadata={
            "help": "column of audio or of paths; in a table by default the first of "
            + ", ".join(AUDIO_COLUMNS)
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": f"by default the first of {', '.join(LABEL_COLUMNS)}"}
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "separates several names in one cell, e.g. ';'"}
    )
    label_csv: str | None = field(
        default=None,
        metadata={
            "help": "index,mid,display_name; by default class_labels_indices.csv or "
            "vocabulary.csv beside the data, or the data"
        },
    )
    loss: str = field(
        default="auto",
        metadata={
            "help": "bce or cross_entropy; auto: cross_entropy where a clip has exactly one label",
            "choices": LOSSES,
        },
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "stop when more clips than this cannot be decoded"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the clips to train on as they come, without a copy"}
    )
    train_clips: int | None = field(
        default=None, metadata={"help": "clips in an epoch of a stream, whose length is unknown"}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "clips of a stream that each next one is drawn from"}
    )

    def __post_init__(self):
        # A recipe's values do not pass argparse's check of the choices.
        if self.loss not in LOSSES:
            raise ValueError(f"--loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")

    @property
    def folder(self) -> Path | None:
        """The directory of the data; None where it has no place here."""
        if self.data is None:
            return None
        path = Path(self.data)
        return path.parent if path.is_file() else path if path.is_dir() else None

    @property
    def root(self) -> Path | None:
        """The directory that relative paths start from; None where the data has no place here."""
        return self.folder if self.audio_root is None else Path(self.audio_root)


__all__ = ["AUDIO_COLUMNS", "DRAWN", "LABEL_COLUMNS", "LOSSES", "DataArguments"]
