"""`modeling-ast stats`: mean and standard deviation of a data set's log-mel values.

    modeling-ast stats MODEL --data DATA [--train-split train] [--num-workers 4]

It prints the flags --mean and --std for `modeling-ast finetune`. The work is in
`training/normalization.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..pretrained import load_config, load_extractor
from ..training.bad_clip_search import listing_all_bad_clips
from ..training.classes import check_labels, label_column, read_classes
from ..training.clips import BadClips, ClipReader
from ..training.data_arguments import DataArguments
from ..training.data_report import DataReport
from ..training.data_sources import Loaded, load
from ..training.evaluation import ReadingArguments
from ..training.normalization import Moments, normalization_stats
from .dataclass_parser import DataclassParser
from .output import fail, print_json, print_report

DESCRIPTION = """
Mean and standard deviation of the log-mel values of the clips to train on. MODEL is the AST that
will be fine-tuned: rate, mel bins and length of the clips are its own. DATA is a data set on the
Hub, a directory with one folder of audio files per label, or a CSV, JSON lines or parquet file.
Clips that cannot be decoded are left out and listed in the file --bad-clips.
"""


@dataclass
class StatsArguments(ReadingArguments):
    """How the data is read and measured."""

    max_length: int | None = field(
        default=None,
        metadata={"help": "frames of 10 ms of each clip that count; by default the model's"},
    )
    json: bool = field(default=False, metadata={"help": "print JSON instead of text"})


def main(arguments: list[str]) -> int:
    """Runs the verb.

    Args:
        arguments: Those behind it.
    Returns:
        The exit status.
    """
    try:
        model, stats, data = parse_arguments(arguments)
        moments, report = measure(model, stats, data)
        report.save_missing(stats.missing_clips)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print_report(report.lines(listed_in=stats.missing_clips))
    if stats.json:
        print_json({"mean": moments.mean, "std": moments.std, "values": moments.count})
    else:
        sys.stdout.write(f"--mean {moments.mean:.7f} --std {moments.std:.7f}\n")
    return 0


def parse_arguments(arguments: Sequence[str]) -> tuple[str, StatsArguments, DataArguments]:
    """Reads the model's name and the flags.

    Raises:
        ValueError: A value is impossible.
    """
    parser = DataclassParser(
        "stats",
        (StatsArguments, DataArguments),
        usage="modeling-ast stats MODEL --data DATA [flags]",
        description=DESCRIPTION,
    )
    parser.add_argument("model", metavar="MODEL", help="name on the Hub, or a directory")
    stats, data, rest = parser.read(arguments)
    if data.data is None:
        parser.error("--data is missing; give a name on the Hub, a directory or a file")
    if data.streaming:
        parser.error("--streaming is for modeling-ast finetune; leave it out")
    if stats.max_length is not None and stats.max_length < 1:
        parser.error(f"--max-length is {stats.max_length}; give at least 1")
    return rest.model, stats, data


def measure(model: str, stats: StatsArguments, data: DataArguments) -> tuple[Moments, DataReport]:
    """The moments of the clips to train on, and what became of each file."""
    load_config(model)
    extractor = load_extractor(model)
    if stats.max_length is not None:
        extractor.max_length = stats.max_length
    loaded = load(data, held_out=False)
    clips = loaded.train
    assert clips is not None  # they were asked for
    check_classes(loaded, data)
    reader = ClipReader.for_extractor(extractor, audio_column=data.audio_column, root=data.root)
    bad_clips = BadClips.of_new_run(stats.bad_clips, len(clips), data.max_bad_share)
    workers = stats.num_workers
    with listing_all_bad_clips(data, stats.bad_clips, model, held_out=False):
        moments = normalization_stats(clips, extractor, reader, bad_clips, num_workers=workers)
    loaded.skip_bad_clips(bad_clips.read(), reader, data)
    return moments, loaded.report


def check_classes(loaded: Loaded, data: DataArguments) -> None:
    """Refuses labels that a fine-tuning would refuse, if the data has labels.

    Raises:
        ValueError: A fine-tuning would refuse them.
    """
    clips = loaded.train
    assert clips is not None  # they were asked for
    try:
        label_column(data, clips)
    except ValueError:
        if data.label_column is not None:
            raise
        return
    check_labels(loaded.report, read_classes(data, clips), loaded.train_name, None)


__all__ = ["StatsArguments", "main", "parse_arguments"]
