"""The arguments of the data: which data set, its columns, and which part is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Usual names of label columns, and of columns of audio files in tables, the likeliest first.
LABEL_COLUMNS = ("labels", "label", "category", "target", "positive_labels", "class", "classname")
AUDIO_COLUMNS = (
    *("audio", "file", "filename", "file_name", "fname", "path", "filepath", "file_path"),
    *("audio_path", "audio_file", "wav", "YTID", "slice_file_name"),
)
LOSSES = ("auto", "bce", "cross_entropy")
# Value of --fold-column that means: do not use the folds of the data set.
DRAWN = "none"


@dataclass
class DataArguments:
    """Which data set, its columns, and which part is held out."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "name on the Hub, directory, or CSV, JSON or parquet file",
            "aliases": ["--dataset"],
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "configuration on the Hub, e.g. balanced"}
    )
    audio_root: str | None = field(
        default=None,
        metadata={"help": "folder with the audio files of a table; by default the table's own"},
    )
    train_split: str = field(default="train", metadata={"help": "split to train on, or a+b"})
    eval_split: str = field(
        default="test", metadata={"help": "held-out split; validation if there is no test"}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "split that decides which epoch is best and when to stop"}
    )
    eval_share: float | None = field(
        default=None,
        metadata={"help": "without a held-out split: share of the clips of each label to hold out"},
    )
    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "without a split named validation: share of the training clips of each label "
            "to set aside for choosing the weights"
        },
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "column, or pattern with a group for the path of a file, that gives the "
            "speaker, instrument or place of a clip; all clips of one group stay in one part"
        },
    )
    folds: int | None = field(
        default=None,
        metadata={"help": "divide the training split into this many folds and hold each out once"},
    )
    eval_fold: int | None = field(
        default=None,
        metadata={"help": "training fold to hold out, instead of a split"},
    )
    fold_column: str = field(
        default="fold",
        metadata={"help": f"column with the fold of each clip; {DRAWN}: --folds draws the folds"},
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
        default=None, metadata={"help": "separator of names in a cell, e.g. ';'"}
    )
    label_csv: str | None = field(
        default=None,
        metadata={
            "help": "class list with the columns index,mid,display_name; by default "
            "class_labels_indices.csv or vocabulary.csv beside the data, else the labels in it"
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
        default=False,
        metadata={"help": "read the training clips without storing them"},
    )
    train_clips: int | None = field(
        default=None,
        metadata={"help": "number of clips in an epoch of a stream, whose length is unknown"},
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={"help": "number of clips of a stream from which the next one is drawn"},
    )

    def __post_init__(self):
        # argparse does not check the choices for values that come from a recipe.
        if self.loss not in LOSSES:
            raise ValueError(f"--loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")

    @property
    def folder(self) -> Path | None:
        """The directory of the data; None if the data is not on this machine."""
        if self.data is None:
            return None
        path = Path(self.data)
        return path.parent if path.is_file() else path if path.is_dir() else None

    @property
    def root(self) -> Path | None:
        """The directory that relative paths start from; None if the data is not on this machine."""
        return self.folder if self.audio_root is None else Path(self.audio_root)


__all__ = ["AUDIO_COLUMNS", "DRAWN", "LABEL_COLUMNS", "LOSSES", "DataArguments"]
