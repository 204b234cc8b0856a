"""Quality and speed of detection: scenes, needles (one short sound in a long file), long files.

    python -m tests.benchmarks.events MODEL [--scenes 200] [--only scenes needles long]

MODEL is one of the embedded sounds, such as that of examples/quickstart.py. Prints Markdown.
`--psds` adds PSDS1 and PSDS2, for which sed_scores_eval must be installed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from modeling_ast.events import EventDetector, ScoreBlock
from tests.benchmarks.detection_metrics import (
    event_counts,
    onset_errors,
    segment_counts,
    total,
)
from tests.benchmarks.scenes import RATE, SCENE_SECONDS, Scene, make_scene, needle, rumble

PARTS = ("scenes", "needles", "long")
PSDS_SCENES = 40
NEEDLE_SECONDS = (10.0, 60.0, 600.0, 3600.0)
MINUTES = (1, 10, 60)
KINDS = [(suffix, channels) for suffix in ("wav", "flac", "mp3") for channels in (1, 2)]


class Way(NamedTuple):
    """A way to find events: the detector's arguments."""

    name: str
    rules: dict[str, Any]


PLAIN = {"min_gap": 0.0, "min_length": 0.0, "edges": "scores"}
NAIVE = {"window": 2.0, "hop": 2.0, "threshold": 0.5, **PLAIN}
WAYS = (
    Way("naive: 2 s, no overlap, 0.5", NAIVE),
    Way("**defaults**: 1 s every 0.1 s, mean, 0.6, gaps and lengths of 0.3 s", {}),
    Way("edges by scores", {"edges": "scores"}),
    Way("edges by scores, 0.7", {"edges": "scores", "threshold": 0.7}),
    Way("defaults without gaps and lengths", {"min_gap": 0.0, "min_length": 0.0}),
    Way("threshold 0.5", {"threshold": 0.5}),
    Way("threshold 0.7", {"threshold": 0.7}),
    Way("median of 0.5 s", {"median": 0.5}),
    Way("hysteresis 0.8", {"hysteresis": 0.8}),
    Way("hop 0.2 s", {"hop": 0.2}),
    Way("maximum instead of mean, 0.9", {"combine": "max", "threshold": 0.9}),
    Way("window 0.5 s", {"window": 0.5, "threshold": 0.5}),
    Way("window 1.5 s, 0.7", {"window": 1.5, "threshold": 0.7}),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge event detection on made-up scenes.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--scenes", type=int, default=200, metavar="N", help="of each kind (200)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ways", type=int, metavar="N", help="only the first N of the ways")
    parser.add_argument("--needles", type=int, default=10, metavar="N", help="of each kind (10)")
    parser.add_argument("--minutes", type=int, nargs="+", default=MINUTES, metavar="N")
    parser.add_argument("--psds", action="store_true", help="also PSDS, by sed_scores_eval")
    parser.add_argument("--one-file", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


class Scored(NamedTuple):
    """The scores of all scenes, and the time to compute them."""

    blocks: list[list[ScoreBlock]]
    seconds: float  # per scene


def score(detector: EventDetector, scenes: Sequence[Scene]) -> Scored:
    begin = time.perf_counter()
    blocks = [list(detector.scores(scene.waveform)) for scene in scenes]
    return Scored(blocks, (time.perf_counter() - begin) / len(scenes))


def judge(
    detector: EventDetector, scored: Scored, scenes: Sequence[Scene]
) -> tuple[float, float, float]:
    """F1 of segments and of events, and the median error of onsets in seconds."""
    pairs = [
        (detector.events_of(blocks, SCENE_SECONDS), scene.events)
        for blocks, scene in zip(scored.blocks, scenes)
    ]
    segments = total([segment_counts(*pair, SCENE_SECONDS) for pair in pairs])
    events = total([event_counts(*pair) for pair in pairs])
    errors = [error for pair in pairs for error in onset_errors(*pair)]
    return segments.f1, events.f1, float(np.median(errors))


def psds(detector: EventDetector, scored: Scored, scenes: Sequence[Scene]) -> tuple[float, float]:
    """PSDS1 and PSDS2, with the parameters of DCASE's task 4."""
    from sed_scores_eval import intersection_based
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    scores, truth, lengths = {}, {}, {}
    for number, scene in enumerate(scenes):
        values = np.concatenate([block.scores for block in scored.blocks[number]])
        times = np.round(np.arange(len(values) + 1) * detector.hop, 6)
        times[-1] = SCENE_SECONDS
        name = f"{number:03d}"
        scores[name] = create_score_dataframe(values, times, detector.labels)
        truth[name] = [(event.onset, event.offset, event.label) for event in scene.events]
        lengths[name] = SCENE_SECONDS
    first = {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_ct": 0.0}
    second = {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5}
    shared = {"alpha_st": 1.0, "unit_of_time": "hour", "max_efpr": 100.0}
    first, second = (
        intersection_based.psds(scores, truth, lengths, **shared, **own)[0]
        for own in (first | {"cttc_threshold": None}, second)
    )
    return first, second


def judge_scenes(model: str, num_scenes: int, with_psds: bool, ways: Sequence[Way] = WAYS) -> None:
    """Prints a table for each kind of scenes, with a row for each way."""
    tagger = EventDetector.from_pretrained(model).tagger
    heads = ["windows and rules", "segment F1", "event F1", "onset error, s", "s a scene"]
    heads += ["PSDS1", "PSDS2"] if with_psds else []
    for overlapping in (False, True):
        scenes = [make_scene(seed, overlapping) for seed in range(num_scenes)]
        kind = "sounds that may overlap" if overlapping else "one sound after the other"
        print(f"\n{num_scenes} scenes of 60 s, {kind}:\n\n| {' | '.join(heads)} |")
        print("| --- |" + " --: |" * (len(heads) - 1))
        scored: dict[tuple, Scored] = {}
        for way in ways:
            detector = EventDetector(tagger, **way.rules)
            windows = (detector.window, detector.hop, detector.combine)
            if windows not in scored:
                scored[windows] = score(detector, scenes)
            values = [*judge(detector, scored[windows], scenes), scored[windows].seconds]
            # PSDS uses all thresholds, so the rules after the thresholds do not change it.
            if with_psds and way in WAYS[:2]:
                values += psds(detector, scored[windows], scenes[:PSDS_SCENES])
            print(f"| {way.name} |" + "".join(f" {value:.3f} |" for value in values), flush=True)


def judge_needles(model: str, num_needles: int) -> None:
    """Searches a sound of one second at ten places in recordings of 10 s to an hour."""
    detector = EventDetector.from_pretrained(model)
    print(
        "\n| recording | found at its place | largest error of onset, s | from what can be heard "
        "| other events |\n| --- | --: | --: | --: | --: |"
    )
    depths = np.linspace(0.02, 0.98, num_needles)
    for seconds in NEEDLE_SECONDS:
        for noisy in (False, True):
            errors, heard_errors, others = [], [], 0
            for number, depth in enumerate(depths):
                onset = round(depth * (seconds - 1.0), 3)
                scene, heard = needle(number, seconds, onset, noisy)
                found = detector(scene.waveform)
                hits = onset_errors(found, scene.events)
                errors += hits
                heard_errors += onset_errors(found, [scene.events[0]._replace(onset=heard)])
                others += len(found) - len(hits)
            kind = "noise" if noisy else "silence"
            largest, heard = (max(some, default=np.nan) for some in (errors, heard_errors))
            print(
                f"| {seconds:.0f} s of {kind} | {len(errors)} of {num_needles} "
                f"| {largest:.3f} | {heard:.3f} | {others} |",
                flush=True,
            )


def judge_long(model: str, lengths: Sequence[int]) -> None:
    """Measures time and peak memory for long recordings, each in a new process."""
    print("\n| file | minutes | CPU s | CPU s a minute | peak MB |")
    print("| --- | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, channels in KINDS:
            for minutes in lengths:
                path = Path(folder) / f"{minutes}_{channels}.{suffix}"
                write_long(path, minutes, channels)
                seconds, peak_mb = run_alone(model, path)
                kind = f"{suffix}, {'mono' if channels == 1 else 'stereo'}"
                print(
                    f"| {kind} | {minutes} | {seconds:.1f} | {seconds / minutes:.2f} "
                    f"| {peak_mb:.0f} |",
                    flush=True,
                )
                path.unlink()


def write_long(path: Path, minutes: int, channels: int, rate: int = 44_100) -> None:
    """Writes a soft rumble of any length, minute by minute."""
    minute = np.interp(
        np.arange(60 * rate) / rate, np.arange(60 * RATE) / RATE, floor_of_a_minute()
    )
    samples = np.repeat(minute[:, None], channels, axis=1)
    with soundfile.SoundFile(path, "w", rate, channels) as file:
        for _ in range(minutes):
            file.write(samples)


def floor_of_a_minute() -> np.ndarray:
    return rumble(np.random.default_rng(0), 60 * RATE)


def run_alone(model: str, path: Path) -> tuple[float, float]:
    """CPU seconds and peak MB of a new process that finds the events of one file."""
    command = [sys.executable, "-m", __spec__.name, model, "--one-file", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak_mb = map(float, run.stdout.split())
    return seconds, peak_mb


def one_file(model: str, path: str) -> None:
    """Runs in that process: CPU seconds after a first short clip, and the peak memory."""
    detector = EventDetector.from_pretrained(model)
    detector(np.zeros(RATE))
    begin = time.process_time()
    detector(path)
    seconds = time.process_time() - begin
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    arguments = parse_arguments()
    if arguments.one_file:
        one_file(arguments.model, arguments.one_file)
        return
    if "scenes" in arguments.only:
        ways = WAYS[: arguments.ways]
        judge_scenes(arguments.model, arguments.scenes, arguments.psds, ways)
    if "needles" in arguments.only:
        judge_needles(arguments.model, arguments.needles)
    if "long" in arguments.only:
        judge_long(arguments.model, arguments.minutes)


if __name__ == "__main__":
    main()
