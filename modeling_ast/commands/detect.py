"""`modeling-ast detect MODEL FILE... --output events.csv` finds when each sound begins and ends.

FILE is an audio file of any length, or a folder, which is searched with all its subfolders. Files
are read block by block, so that a day takes no more memory than a minute. Each finished file is a
row of a .jsonl beside the output: if the command is interrupted, run it again, and it resumes. A
bad file, or a bad part of one, is named on standard error, and the rest is used; the exit status is
then 1.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..audio_files import DECODED_NAMES, Skipped, audio_files, by_reason
from ..calibration import SAME_CALIBRATION, fingerprint_of
from ..errors import MissingExtra, need_extra, one_line
from ..event_files import FORMATS, SUFFIXES, as_row, format_of, from_row
from ..event_plots import PAGED
from ..events import (
    EDGES,
    HOP_SECONDS,
    MIN_GAP,
    MIN_LENGTH,
    THRESHOLD,
    WINDOW_SECONDS,
    Detection,
    EventDetector,
)
from ..journal import Journal
from ..plotting import check_picture
from ..score_curves import COMBINATIONS
from .detect_files import Follower, Outputs, complain, write_results
from .model_flags import add_window_model_flags, check_model_flags, load_tagger
from .output import CommandParser, fail, print_report
from .ray_flags import RAY, add_ray_flags, check_ray_flags, run_on_ray
from .ray_jobs import detect_job

ROW_FIELDS = {"file", "seconds", "events", "bad_stretches", "error", "model"}
# The rules that decide the events of a row besides the model; each is the name of a flag.
RULES = ("window", "hop", "combine", "hysteresis", "median", "min_gap", "min_length", "edges")
# Settings of rows that do not state them: earlier versions placed events by their scores.
EARLIER = {"edges": "scores"}
# Usual names of a label for what sounds between the events.
REST_LABELS = {"other", "silence", "background", "noise", "none", "unknown"}
SETTINGS = {name: f"--{name.replace('_', '-')} {{}}" for name in RULES} | {
    "thresholds": "the same --threshold",
    "padding": "--padding {}",
    "activation": "--activation {}",
    "dtype": "the same --dtype ({})",
    "calibration": SAME_CALIBRATION,
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line and refuses what cannot work, before hours of work."""
    parser = CommandParser(
        "detect",
        usage="modeling-ast detect MODEL FILE... [flags]",
        description="Find out when each sound in audio files begins and ends, with an AST.",
        epilog="If it is interrupted, run the same command again: it resumes. A file or a part of "
        "one that cannot be used is named with its times; the exit status is then 1. Put -- before "
        "names that begin with a hyphen.",
    )
    add_window_model_flags(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", help="audio files, or folders of them")
    _add_output_flags(parser)
    _add_rule_flags(parser)
    parser.add_argument(
        "--batch-frames",
        type=int,
        metavar="N",
        help="frames of 10 ms in a batch (1024 on a CPU, 32768 on a GPU); fewer take less memory",
    )
    add_ray_flags(parser)
    options = parser.parse_intermixed_args(arguments)
    check_model_flags(parser, options)
    check_ray_flags(parser, options)
    if options.batch_frames is not None and options.batch_frames < 1:
        parser.error(f"--batch-frames is {options.batch_frames}; give at least 1")
    _read_thresholds(parser, options)
    if options.engine == RAY:
        if len(options.files) > 1 or options.format or options.scores_to or options.plot:
            parser.error(
                "--engine ray takes one FILE, and neither --format, --write-scores nor --plot"
            )
        return options
    options.recordings, options.skipped, options.unlisted = recordings_of(options.files)
    _check_outputs(parser, options)
    return options


def recordings_of(names: Sequence[str]) -> tuple[list[str], list[Skipped], list[OSError]]:
    """The audio files of the command line and of the folders in it, each once; the skipped files of
    these folders; and the errors of folders that could not be listed."""
    found: dict[str, None] = {}
    skipped: list[Skipped] = []
    unlisted: list[OSError] = []
    for name in names:
        if os.path.isdir(name):
            inside = audio_files(name)
            found |= dict.fromkeys(os.path.join(name, file) for file in inside.files)
            skipped += inside.skipped
            unlisted += inside.errors
        else:
            found[name] = None
    return list(found), skipped, unlisted


def _check_outputs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Determines the format and refuses paths that do not fit it or cannot be written."""
    several = len(options.recordings) > 1
    if options.output is not None and options.format is None:
        try:
            options.format = format_of(options.output)
        except ValueError as error:
            parser.error(str(error).replace("name the format", "give --format"))
    options.output_is_folder = options.format == "audacity" and (several or options.output.is_dir())
    for flag, path, folder in (
        ("--output", options.output, options.output_is_folder),
        ("--write-scores", options.scores_to, several),
        ("--plot", options.plot, several),
    ):
        if path is None:
            continue
        if folder and path.suffix and not path.is_dir():
            parser.error(
                f"{flag} is {str(path)!r}, one file for {len(options.recordings)} recordings; "
                f"name a folder, which gets a file for each"
            )
        if not folder and flag == "--output" and path.is_dir():
            parser.error(f"{flag} is {str(path)!r}, which is a folder; give another name")
        if not path.parent.is_dir():
            parser.error(f"no folder at {str(path.parent)!r} to write {flag} to; make it")
    is_picture = options.plot is not None and not several and options.plot.suffix
    options.plot_is_file = bool(is_picture) and not options.plot.is_dir()
    if options.pages and (options.plot is None or options.plot_is_file):
        parser.error("--pages is for --plot FOLDER; for one recording name a .pdf, --plot a.pdf")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help=f"file for the events; its suffix says the format ({', '.join(SUFFIXES)}); a folder "
        f"for several recordings in Audacity's format. Without it the events are printed",
    )
    parser.add_argument("--format", choices=FORMATS, help="format of --output, for any suffix")
    parser.add_argument(
        "--write-scores",
        "--scores",
        dest="scores_to",
        metavar="TSV",
        type=Path,
        help="write the scores of each step to this table; a folder for several recordings (the "
        "flag --scores sigmoid of other verbs is --activation sigmoid here)",
    )
    parser.add_argument(
        "--plot",
        metavar="PNG",
        type=Path,
        help="draw spectrogram, events and curves: one picture of any length, or a .pdf with a "
        "page for each minute; a folder for several recordings",
    )
    parser.add_argument(
        "--pages", action="store_true", help="with --plot FOLDER: PDFs with a page for each minute"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_rule_flags(parser: argparse.ArgumentParser) -> None:
    for flag, default, meaning in (
        ("--window", None, f"length of a window ({WINDOW_SECONDS:g}, or the model's length)"),
        ("--hop", HOP_SECONDS, f"from one window to the next, a step ({HOP_SECONDS:g})"),
        ("--median", 0.0, "length of a median filter over the scores (0: none)"),
        ("--min-gap", MIN_GAP, f"events of a label with a shorter gap become one ({MIN_GAP:g})"),
        ("--min-length", MIN_LENGTH, f"shorter events are dropped ({MIN_LENGTH:g})"),
    ):
        parser.add_argument(flag, type=float, metavar="SECONDS", default=default, help=meaning)
    parser.add_argument(
        "--combine",
        choices=COMBINATIONS,
        default="mean",
        help="how the scores of the windows over a step are combined (mean)",
    )
    parser.add_argument(
        "--edges",
        choices=EDGES,
        default=EDGES[0],
        help="spectrum (default): events begin and end where the spectrogram rises and falls, "
        "within half a window of where their scores say; scores: where the scores reach the "
        "threshold, at multiples of --hop",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        metavar="[LABEL=]SCORE",
        help=f"score that an event must reach, for all labels or for one; may be repeated "
        f"({THRESHOLD:g}; with a calibrated model, the share of the windows over a step that reach "
        f"the calibrated threshold of the label)",
    )
    parser.add_argument(
        "--hysteresis",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="an event lasts while the score is at least this share of its threshold (1)",
    )


def _read_thresholds(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """--threshold 0.5 --threshold "Siren=0.8" -> `threshold` and `label_thresholds`."""
    given, options.threshold, options.label_thresholds = options.threshold or [], None, {}
    for text in given:
        label, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            parser.error(f"--threshold is {text!r}; give a score such as 0.5, or LABEL=0.5")
        if equals:
            options.label_thresholds[label] = number
        else:
            options.threshold = number


def main(arguments: list[str] | None = None) -> int:
    """Finds the events of each recording."""
    options = parse_arguments(arguments)
    if options.engine == RAY:
        (source,) = options.files
        job = partial(detect_job, options, load_detector, settings_of, SETTINGS)
        return run_on_ray(options, source, job, whole_keys=True)
    for error in options.unlisted:
        sys.stderr.write(f"error: cannot list {error.filename!r}: {error.strerror}\n")
    if not options.recordings:
        instead = "".join(f"; {line}" for line in by_reason(options.skipped))
        return fail(
            f"no audio file in these folders; names must end in one of {DECODED_NAMES}{instead}"
        )
    try:
        if options.plot_is_file:
            check_picture(options.plot)
    except (MissingExtra, ValueError) as error:
        return fail(error)
    try:
        if options.format == "parquet":
            need_extra("pyarrow", "train", "writing .parquet")
        if options.plot is not None:
            need_extra("matplotlib", "train", "--plot")
        journal = None if options.output is None else open_journal(options)
    except MissingExtra as error:
        return fail(error)
    except (OSError, ValueError) as error:
        return fail(f"cannot go on with {journal_path(options)}: {one_line(error)}")
    try:
        detector = load_detector(options)
    except (OSError, ValueError, RuntimeError) as error:
        if journal is not None:
            discard(journal, options)
        return fail(error)
    print_report(hints(detector))
    try:
        if journal is not None:
            journal.use(**settings_of(detector, options))
            if journal.done:
                num_done = len(journal.done.intersection(options.recordings))
                num_all = len(options.recordings)
                print_report(
                    [f"resuming {options.output}: {num_done} of {num_all} recordings are done"]
                )
        print_report(by_reason(options.skipped))
        found = detect_missing(options, detector, journal)
        write_results(options, found, detector)
    except KeyboardInterrupt:
        resume = "" if journal is None else "; run the same command again to resume"
        sys.stderr.write(f"stopped{resume}\n")
        return 1
    except torch.OutOfMemoryError as error:
        return fail(f"{one_line(error)}; run it again with a smaller --batch-frames")
    # Otherwise usually settings that differ from those of the earlier rows.
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = options.output or "the results"
            return fail(
                f"cannot write {where} ({error.strerror}); make space and run the same command "
                f"again{'' if journal is None else ': it resumes'}"
            )
        return fail(error)
    is_bad = any(detection.error or detection.bad_stretches for detection in found)
    return 1 if is_bad or options.unlisted else 0


def journal_path(options: argparse.Namespace) -> Path:
    """The path of the journal, which has the finished recordings of --output."""
    if options.output_is_folder:
        return options.output / "events.jsonl"
    return options.output.with_suffix(".jsonl")


def open_journal(options: argparse.Namespace) -> Journal:
    """The journal of this output, which may belong to an earlier run."""
    options.folder_is_new = options.output_is_folder and not options.output.exists()
    if options.output_is_folder:
        options.output.mkdir(exist_ok=True)
    return Journal(journal_path(options), options.model, ROW_FIELDS, SETTINGS, EARLIER)


def discard(journal: Journal, options: argparse.Namespace) -> None:
    """Removes what `open_journal` has made for a run that was refused."""
    journal.remove_if_unused()
    if options.folder_is_new:
        options.output.rmdir()


def load_detector(options: argparse.Namespace) -> EventDetector:
    """The detector that the flags describe.

    Raises:
        OSError, ValueError, RuntimeError: The model cannot be loaded, or a number is impossible.
    """
    tagger = load_tagger(options, num_workers=0, batch_frames=options.batch_frames)
    rules = {name: getattr(options, name) for name in RULES}
    return EventDetector(
        tagger,
        threshold=options.threshold,
        label_thresholds=options.label_thresholds,
        **rules,
    )


def hints(detector: EventDetector) -> list[str]:
    """Lines on what a user must know of the model's answers; none if its scores are sigmoid."""
    names = {label.lower() for label in detector.labels}
    if detector.tagger.sigmoid or names & REST_LABELS:
        return []
    return [
        "this model gives one label to each clip: it always names one of its labels, in silence "
        "too; a label such as 'other' or 'silence' in its training helps"
    ]


def settings_of(detector: EventDetector, options: argparse.Namespace) -> dict[str, Any]:
    """The settings that decide the events, for the journal."""
    tagger = detector.tagger
    thresholds = dict(zip(detector.labels, detector.thresholds.tolist()))
    is_one = len(set(thresholds.values())) == 1
    return {
        **{name: getattr(detector, name) for name in RULES},
        "thresholds": detector.thresholds.tolist()[0] if is_one else thresholds,
        "padding": tagger.padding,
        "activation": "sigmoid" if tagger.sigmoid else "softmax",
        "calibration": fingerprint_of(tagger.calibration),
        "dtype": tagger.dtype_name,
    }


def detect_missing(
    options: argparse.Namespace, detector: EventDetector, journal: Journal | None
) -> list[Detection]:
    """All recordings, in their order: those in the journal, and the others, processed now."""
    found = {}
    if journal is not None:
        found = {row["file"]: from_row(row) for row in journal.rows()}
    outputs = Outputs(options.recordings, PAGED if options.pages else ".png")
    missing = [
        name for name in options.recordings if name not in found or outputs.lack(options, name)
    ]
    for name in options.recordings:
        if name not in missing:
            complain(found[name])
    # disable=None shows the bar only in a terminal.
    with tqdm(total=len(options.recordings), unit="file", disable=None) as bar:
        bar.update(len(options.recordings) - len(missing))
        follower = Follower(options, detector, outputs, bar)
        for name in missing:
            follower.start(name)
            (detection,) = detector.detect([name], follower.add)
            follower.end(detection)
            found[name] = detection
            if journal is not None:
                journal.add(as_row(detection))
    if missing and not any(detection.events for detection in found.values()):
        print_report(filter(None, [follower.why_none()]))
    return [found[name] for name in options.recordings]


__all__ = ["main", "parse_arguments"]
