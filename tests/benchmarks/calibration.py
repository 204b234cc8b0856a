"""The gain of a calibration on clips that it was not fitted to, with three seeds.

    python -m tests.benchmarks.calibration MODEL [--clips 400] [--scenes 40]

MODEL is one of the embedded sounds, such as that of examples/quickstart.py. For each seed there are
new clips: half for fitting, half for evaluation. --scenes also evaluates detect with each
calibration. Prints Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np

from examples.embedded_data import SECONDS, SOUNDS, make_scene
from modeling_ast.calibration import Calibration
from modeling_ast.events import THRESHOLD, EventDetector
from modeling_ast.tagging import AudioTagger
from modeling_ast.training.calibrating import CalibrationArguments, fit_calibration, threshold
from modeling_ast.training.metrics import threshold_metrics
from tests.benchmarks import scenes
from tests.benchmarks.events import judge, score

# Not 1 to 5, because averaging thresholds over draws was chosen with these.
SEEDS = (11, 12, 13)
# Not the seeds that are used to evaluate the defaults of detect.
FIRST_SCENE = 1000


def scored_clips(tagger: AudioTagger, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets (count, C) of new clips."""
    rate = tagger.extractor.sampling_rate
    waveforms, targets = [], np.zeros((count, len(SOUNDS)))
    columns = [tagger.model.config.label2id[sound.name] for sound in SOUNDS]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        waveform, placed = make_scene(rng, number % len(SOUNDS), SECONDS, rate)
        waveforms.append(waveform.astype(np.float32))
        targets[number, [columns[sound.index] for sound in placed]] = 1
    return np.stack([result.scores for result in tagger(waveforms)]), targets


def judge_detection(model: str, fits: dict[str, Calibration], num_scenes: int) -> None:
    """Segment and event F1 of scenes with each calibration, in three ways."""
    # A new tagger, because the tagger of the clips pads each window to the model's length.
    tagger = EventDetector.from_pretrained(model, calibration=False).tagger
    print("\n| calibration | thresholds of windows | overlapping | segment F1 | event F1 |")
    print("| --- | --- | --- | --: | --: |")
    rows: list[tuple[str, str, Calibration | None]] = [("none", f"{THRESHOLD:g}", None)]
    for name, calibration in fits.items():
        rows += [(name, way, calibration) for way in ("relative", f"{THRESHOLD:g}", "of clips")]
    for overlapping in (False, True):
        some = [
            scenes.make_scene(FIRST_SCENE + number, overlapping) for number in range(num_scenes)
        ]
        for name, way, calibration in rows:
            tagger.calibration = calibration
            own = (
                dict(zip(tagger.names, calibration.thresholds.tolist()))
                if calibration is not None and way == "of clips"
                else None
            )
            given = None if way == "relative" else THRESHOLD
            detector = EventDetector(tagger, threshold=given, label_thresholds=own)
            segment_f1, event_f1, _ = judge(detector, score(detector, some), some)
            print(
                f"| {name} | {way} | {overlapping} | {segment_f1:.3f} | {event_f1:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge calibrations on new clips.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--clips", type=int, default=400, help="to fit to, and to judge (400)")
    parser.add_argument("--scenes", type=int, default=0, help="of each kind, for detect (0)")
    arguments = parser.parse_args()
    tagger = AudioTagger.from_pretrained(arguments.model, calibration=False, num_workers=0)
    labels = [tagger.model.config.id2label[i] for i in range(tagger.model.config.num_labels)]
    print("| seed | way | macro F1 | ECE |\n| --: | --- | --: | --: |")
    fits: dict[str, Calibration] = {}
    for seed in SEEDS:
        scores, targets = scored_clips(tagger, seed, 2 * arguments.clips)
        fitted, judged = slice(0, arguments.clips), slice(arguments.clips, None)
        ways = {
            "0.5 for all": (scores[judged], np.full(len(labels), 0.5)),
            "one best threshold for all": (
                scores[judged],
                np.full(len(labels), threshold(scores[fitted], targets[fitted])),
            ),
        }
        for method in ("temperature", "platt"):
            options = CalibrationArguments(method)
            calibration = fit_calibration(
                scores[fitted], targets[fitted], labels, options, "sigmoid", tagger.padding
            ).calibration
            fits[f"{method}, seed {seed}"] = calibration
            if method == "temperature":
                pairs = zip(calibration.apply(scores[fitted]).T, targets[fitted].T)
                ways["temperature, without averaging over draws"] = (
                    calibration.apply(scores[judged]),
                    np.array([threshold(*pair) for pair in pairs]),
                )
            name = f"{method}, a threshold for each label"
            ways[name] = (calibration.apply(scores[judged]), calibration.thresholds)
        for name, (values, thresholds) in ways.items():
            metrics = threshold_metrics(values, targets[judged], thresholds)
            print(f"| {seed} | {name} | {metrics['F1']:.4f} | {metrics['ECE']:.4f} |", flush=True)
    if arguments.scenes:
        judge_detection(arguments.model, fits, arguments.scenes)


if __name__ == "__main__":
    main()
