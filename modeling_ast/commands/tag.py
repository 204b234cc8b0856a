"""`modeling-ast tag MODEL FOLDER --output tags.parquet` tags every audio file of a folder.

The output has a row for each file: file (relative to FOLDER), seconds, labels with scores, error,
model, and the settings that decide the scores: padding, scores, dtype, calibration. If the model
has a calibration.json, the column detected has the labels that reach their thresholds. The output
is .jsonl, to which each result is appended at once, or .parquet, which is written at the end from
such a .jsonl beside it. If the command is interrupted, run it again: it resumes, and tags new
files. A bad file is a row with the reason, and the exit status is then 1; delete the row from the
.jsonl to have the file tried again. Files whose names are not those of audio, hidden files and
dangling links are counted as skipped. Links to folders are followed; each folder is tagged once.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import torch

from ..audio_files import DECODED_NAMES, Skipped, audio_files, by_reason
from ..calibration import NO_CALIBRATION
from ..errors import MissingExtra, need_extra, one_line
from ..tag_files import TagJournal, tag_files, write_parquet
from ..tag_rows import NO_EMBEDDINGS, POOLED, WINDOWS, settings_of
from .model_flags import add_model_flags, check_model_flags, load_tagger
from .output import CommandParser, fail, print_json, print_report
from .ray_flags import RAY, add_ray_flags, check_ray_flags, run_on_ray
from .ray_jobs import tag_job


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and refuses what cannot work, before hours of work."""
    parser = CommandParser(
        "tag",
        usage="modeling-ast tag MODEL FOLDER --output FILE [flags]",
        description="Tag every audio file of a folder with an AST checkpoint.",
        epilog="If it is interrupted, run the same command again: it resumes. A file over the "
        "model's length is cut into equal parts; its scores are the mean over the parts. A bad "
        "file is a row with its reason; the exit status is then 1.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder, which is searched with all its subfolders; with --engine ray also an "
        "address such as s3://bucket/it, a .txt file of paths, .parquet files with audio, .tar "
        "shards, or a pattern of these",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="tags.jsonl; or tags.parquet, which is written at the end from tags.jsonl beside it; "
        "with --engine ray a folder",
    )
    parser.add_argument(
        "--batch-frames",
        type=int,
        metavar="N",
        help="frames of 10 ms in a batch (1024 on a CPU, 32768 on a GPU); fewer take less memory",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode (with a GPU all CPUs but one, else half of them, at most 8)",
    )
    parser.add_argument(
        "--embeddings",
        choices=(POOLED, WINDOWS),
        default=NO_EMBEDDINGS,
        help="add vectors of the encoder's pooled output: pooled, one for each file, the mean over "
        "its parts; windows, one for each part",
    )
    parser.add_argument("--json", action="store_true", help="print the last line as JSON")
    add_ray_flags(parser)
    options = parser.parse_args(arguments)
    check_model_flags(parser, options)
    check_ray_flags(parser, options)
    if options.batch_frames is not None and options.batch_frames < 1:
        parser.error(f"--batch-frames is {options.batch_frames}; give at least 1")
    if options.workers is not None and options.workers < 0:
        parser.error(f"--workers is {options.workers}; give 0 or more")
    if options.engine == RAY:
        if options.workers is not None:
            parser.error("--workers is for --engine local; Ray decodes on all CPUs that are free")
        return options
    options.folder = Path(options.folder)
    if not options.folder.is_dir():
        what = f"no folder at {str(options.folder)!r}; check the path"
        if os.path.isfile(options.folder):
            what = f"{str(options.folder)!r} is a file; give its folder, or take `classify`"
        parser.error(what)
    if options.output.suffix not in (".parquet", ".jsonl"):
        parser.error(
            f"--output is {str(options.output)!r}; its name must end in .parquet or .jsonl"
        )
    if options.output.is_dir():
        parser.error(f"--output is {str(options.output)!r}, which is a folder; give another name")
    if not options.output.parent.is_dir():
        parser.error(f"no folder at {str(options.output.parent)!r} to write the output to; make it")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Tags the folder."""
    options = parse_arguments(arguments)
    if options.engine == RAY:
        return run_on_ray(options, options.folder, partial(tag_job, options))
    files, skipped, unlisted = audio_files(options.folder)
    for error in unlisted:
        sys.stderr.write(f"error: cannot list {error.filename!r}: {error.strerror}\n")
    if not files:
        instead = "".join(f"; {line}" for line in by_reason(skipped))
        return fail(
            f"no audio file in {options.folder}; names must end in one of {DECODED_NAMES}{instead}"
        )
    path = options.output.with_suffix(".jsonl")
    try:
        if options.output.suffix == ".parquet":
            need_extra("pyarrow", "train", "writing .parquet")
        journal = TagJournal(path, options.model)
        # Checked even if nothing is left to do: rows of other settings are not the wanted ones.
        journal.use(**{name: value for name, value in given_settings(options).items() if value})
    except MissingExtra as error:
        return fail(f"{error}; or give an --output that ends in .jsonl")
    except (OSError, ValueError) as error:
        return fail(f"cannot go on with {path}: {one_line(error)}")
    if journal.done:
        num_done = len(journal.done.intersection(files))
        print_report([f"resuming {path}: {num_done} of {len(files)} clips are done"])
    try:
        if not journal.done.issuperset(files):
            status = _tag_missing(options, files, journal)
            if status:
                journal.remove_if_unused()
                return status
        if options.output.suffix == ".parquet":
            write_parquet(journal, options.output)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"stopped after {len(journal.done)} files; run the same command again to resume\n"
        )
        return 1
    except torch.OutOfMemoryError as error:
        return fail(f"{one_line(error)}; run it again with a smaller --batch-frames to resume")
    # Usually a full disk.
    except (OSError, RuntimeError) as error:
        return fail(f"{one_line(error)}; run the same command again to resume")
    _report(options, journal, skipped)
    return 1 if journal.num_bad or unlisted else 0


def _tag_missing(options: argparse.Namespace, files: list[str], journal: TagJournal) -> int:
    """Tags the files that are not in the journal; returns an exit status, 0 for success."""
    try:
        tagger = load_tagger(
            options, batch_frames=options.batch_frames, num_workers=options.workers
        )
    except (OSError, ValueError) as error:
        return fail(error)
    tagger.embeddings = options.embeddings != NO_EMBEDDINGS
    try:
        journal.use(**settings_of(tagger, options.embeddings))
    except ValueError as error:
        return fail(error)
    tag_files(tagger, options.folder, files, journal)
    return 0


def given_settings(options: argparse.Namespace) -> dict[str, str | None]:
    """The settings of the rows that flags determine; None for the others."""
    return {
        "padding": options.padding,
        "scores": None if options.scores == "auto" else options.scores,
        "calibration": None if options.calibration else NO_CALIBRATION,
        "embeddings": options.embeddings,
        "dtype": "int8" if options.int8 else None if options.dtype == "auto" else options.dtype,
    }


def _report(options: argparse.Namespace, journal: TagJournal, skipped: list[Skipped]) -> None:
    output = os.fsencode(options.output).decode(errors="replace")
    hours = journal.seconds / 3600
    if options.json:
        counts = {"files": len(journal.done), "bad": journal.num_bad, "hours": hours}
        left_out = [entry._asdict() for entry in skipped]
        return print_json({"output": output, **counts, "skipped": left_out})
    sys.stdout.write(
        f"{output}: {len(journal.done)} files, {journal.num_bad} of them bad, {hours:.2f} hours of "
        f"audio\n"
    )
    print_report(by_reason(skipped))
    if journal.num_bad:
        sys.stderr.write(f"error: {journal.num_bad} files are bad; their rows have the reason\n")


__all__ = ["main", "parse_arguments"]
