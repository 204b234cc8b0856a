"""The files of `modeling-ast detect`: the path of each, and when it is written."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..errors import naming, one_line
from ..event_files import ScoreWriter, as_row, write_csv, write_events
from ..event_plots import ScoreColumns, columns_for, draw_events
from ..events import Detection, EventDetector, ScoreBlock
from ..labels import printable
from .output import print_json


class Outputs:
    """Where the files that belong to one recording go."""

    def __init__(self, recordings: Sequence[str], picture_suffix: str = ".png"):
        self.picture_suffix = picture_suffix
        self.is_single = len(recordings) == 1
        parents = [os.path.dirname(os.path.abspath(name)) for name in recordings]
        self.root = os.path.commonpath(parents) if parents else os.curdir

    def path(self, target: Path, name: str, suffix: str) -> Path:
        """The target itself for a single recording; else a file in it, named like the recording."""
        if self.is_single and not target.is_dir() and target.suffix:
            return target
        path = target / (os.path.relpath(os.path.abspath(name), self.root) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def lack(self, options: argparse.Namespace, name: str) -> bool:
        """Whether the scores or the picture of a recording are wanted and missing."""
        wanted = ((options.scores_to, ".tsv"), (options.plot, self.picture_suffix))
        return any(
            target is not None and not self.path(target, name, suffix).exists()
            for target, suffix in wanted
        )


def speed(seconds: float, begin: float) -> float:
    """Hours of audio for each minute since `begin`, a time of `time.monotonic`.

    Args:
        seconds: Of audio that were processed since then.
    """
    return seconds / 60 / max(time.monotonic() - begin, 1e-9)


class Follower:
    """Writes and draws the scores of a recording while it is processed."""

    def __init__(
        self, options: argparse.Namespace, detector: EventDetector, outputs: Outputs, bar: tqdm
    ):
        self.options = options
        self.detector = detector
        self.outputs = outputs
        self.bar = bar
        self.begin, self.seconds = time.monotonic(), 0.0
        self.highest = np.full(len(detector.labels), -np.inf)  # (C,): the highest score of each
        self.columns: ScoreColumns | None = None
        self.writer: ScoreWriter | None = None

    def start(self, name: str) -> None:
        """A recording begins."""
        if self.options.plot is not None:
            path = self.outputs.path(self.options.plot, name, self.outputs.picture_suffix)
            self.columns = columns_for(path, self.detector)
        if self.options.scores_to is not None:
            path = self.outputs.path(self.options.scores_to, name, ".tsv")
            self.writer = ScoreWriter(path, self.detector.labels, self.detector.hop)

    def add(self, name: str, block: ScoreBlock) -> None:
        """The next steps are scored."""
        if len(block.scores):
            self.highest = np.fmax(self.highest, np.fmax.reduce(block.scores))  # (C,)
        if self.columns is not None:
            self.columns.add(block)
        if self.writer is not None:
            self.writer.add(block)
        self.seconds += len(block.scores) * self.detector.hop
        minutes, hours_a_minute = self.seconds / 60, speed(self.seconds, self.begin)
        self.bar.set_postfix_str(f"{minutes:.1f} min, {hours_a_minute:.2f} audio-h/min")

    def end(self, detection: Detection) -> None:
        """A recording is finished."""
        if self.writer is not None:
            self.writer.close()
        if self.columns is not None and detection.error is None:
            path = self.outputs.path(self.options.plot, detection.name, self.outputs.picture_suffix)
            draw_events(detection, self.columns, self.detector.tagger.extractor, path)
        complain(detection)
        self.bar.update()

    def why_none(self) -> str:
        """Why no event was found, in one sentence; empty if no step was scored in this run."""
        nearest = int(np.argmax(self.highest - self.detector.thresholds))
        if not np.isfinite(self.highest[nearest]):
            return ""
        # Then the rules on lengths have left the events out.
        if self.highest[nearest] >= self.detector.thresholds[nearest]:
            return (
                f"no event: {printable(self.detector.labels[nearest])} reaches its threshold, but "
                f"not for long enough (--min-length, --median)"
            )
        return (
            f"no event: the score that comes nearest to its threshold is "
            f"{self.highest[nearest]:.2f} of {printable(self.detector.labels[nearest])}, and the "
            f"threshold is {self.detector.thresholds[nearest]:.2f} (--threshold)"
        )


def complain(detection: Detection) -> None:
    """Prints a line for each part of a recording that cannot be used."""
    reasons = [] if detection.error is None else [detection.error]
    reasons += [stretch.sentence() for stretch in detection.bad_stretches]
    for reason in reasons:
        tqdm.write(f"error: {one_line(naming(detection.name, reason))}", file=sys.stderr)


def write_results(
    options: argparse.Namespace, found: Sequence[Detection], detector: EventDetector
) -> None:
    """Writes the events to --output and prints a line, or prints the events."""
    if options.output is None:
        if options.json:
            print_json({"recordings": [as_row(detection) for detection in found]})
        else:
            write_csv(found, sys.stdout)
        return
    if options.output_is_folder:
        outputs = Outputs(options.recordings)
        for detection in found:
            if detection.error is None:
                path = outputs.path(options.output, detection.name, ".txt")
                write_events([detection], path, options.format)
    else:
        highest_hz = detector.tagger.extractor.sampling_rate / 2
        write_events(found, options.output, options.format, highest_hz)
    seconds = sum(detection.seconds or 0.0 for detection in found)
    num_events = sum(len(detection.events) for detection in found)
    counts = {
        "files": len(found),
        "bad": sum(detection.error is not None for detection in found),
        "bad_stretches": sum(len(detection.bad_stretches) for detection in found),
        "hours": seconds / 3600,
        "events": num_events,
    }
    output = os.fsencode(options.output).decode(errors="replace")
    if options.json:
        print_json({"output": output, **counts})
        return
    sys.stdout.write(
        f"{output}: {counted(num_events, 'event')} in {duration(seconds)} of audio; "
        f"{counted(len(found), 'file')}, {counts['bad']} of them bad\n"
    )


def counted(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """A length of audio in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.2f} seconds"
    if seconds < 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.2f} hours"


__all__ = ["Follower", "Outputs", "complain", "duration", "speed", "write_results"]
