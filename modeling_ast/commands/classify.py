"""`modeling-ast classify MODEL FILE...` names the sounds in audio files.

FILE is WAV, FLAC, OGG, Opus or MP3 of any rate and any number of channels. A bad file is named on
one line of standard error, the others are classified; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys

from tqdm.auto import tqdm

from ..errors import MissingExtra, naming, one_line
from ..labels import printable
from ..plotting import check_picture, draw_tags
from ..tagging import ClipTags
from .model_flags import add_model_flags, check_model_flags, load_tagger
from .output import CommandParser, fail, print_json

BAR_WIDTH = 20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = CommandParser(
        "classify",
        usage="modeling-ast classify MODEL FILE... [flags]",
        description="Name the sounds in audio files with an AST checkpoint.",
        epilog="A file over the model's length (10.24 s for AudioSet) is cut into equal parts; its "
        "scores are the mean over the parts. If the model has a calibration.json, a star marks the "
        "labels that reach their thresholds. Put -- before names that begin with a hyphen.",
    )
    add_model_flags(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", help="WAV, FLAC, OGG, Opus or MP3")
    parser.add_argument(
        "--json",
        action="store_true",
        help='print a list of {"file", "seconds", "labels"}, or {"file", "error"} for a bad file',
    )
    parser.add_argument("--plot", metavar="PNG", help="draw spectrograms and labels to this file")
    # Flags may stand between the files.
    options = parser.parse_intermixed_args(arguments)
    check_model_flags(parser, options)
    if options.plot:
        try:
            check_picture(options.plot)
        except (OSError, ValueError, MissingExtra) as error:
            parser.error(one_line(error))
    return options


def table(results: list[ClipTags]) -> str:
    """Labels and scores as text."""
    lines = []
    for result in results:
        lines.append(f"{printable(result.name)} ({result.seconds:.2f} s)")
        for label, score in result.labels.items():
            bar = "█" * round(BAR_WIDTH * score)
            # With a calibrated model, a star marks the labels that reach their thresholds.
            mark = "  *" if label in (result.detected or []) else ""
            lines.append(f"  {score:6.3f}  {bar:<{BAR_WIDTH}}  {printable(label)}{mark}")
    return "\n".join(lines)


def row(result: ClipTags) -> dict:
    """Labels and scores of a clip for JSON."""
    if result.seconds is None:
        return {"file": result.name, "error": result.error}
    labels = [{"label": label, "score": score} for label, score in result.labels.items()]
    row = {"file": result.name, "seconds": round(result.seconds, 3), "labels": labels}
    return row if result.detected is None else {**row, "detected": result.detected}


def main(arguments: list[str] | None = None) -> int:
    """Classifies each file."""
    options = parse_arguments(arguments)
    try:
        # A few files are decoded here, because other processes would take longer to start.
        tagger = load_tagger(options, num_workers=0)
    except (OSError, ValueError, MissingExtra) as error:
        return fail(error)
    results = []
    silent = True if len(options.files) < 2 else None  # None shows the bar only in a terminal
    bar = tqdm(tagger(options.files), total=len(options.files), unit="file", disable=silent)
    for result in bar:
        results.append(result)
        if result.error is not None:
            message = printable(naming(result.name, result.error))
            tqdm.write(f"error: {message}", file=sys.stderr)
    good = [result for result in results if result.error is None]
    if options.json:
        print_json([row(result) for result in results])
    elif good:
        sys.stdout.write(table(good) + "\n")
    if good and options.plot:
        try:
            draw_tags(good, tagger.extractor, options.plot)
        except (OSError, ValueError, MissingExtra) as error:
            return fail(f"cannot draw {options.plot}: {one_line(error)}")
    return 0 if len(good) == len(results) else 1


__all__ = ["main", "parse_arguments"]
