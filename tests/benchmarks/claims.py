"""The paper's claims, measured on the embedded data with a small model and several seeds.

    python -m tests.benchmarks.claims [CLAIM ...] [--folder claims] [--seeds 3]

CLAIM is augmentation, averaging, ensembles, stride or patches; by default all. Each claim prints a
table in Markdown, row by row. The model has 0.8 M parameters and starts from random weights. It
is trained on 400 scenes of one second for 16 epochs and evaluated on 400 others by the mean average
precision (mAP). Results are kept in the folder, so that an interrupted study resumes, and claims
share their runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from examples.embedded_data import write_data_set
from modeling_ast import ASTForAudioClassification
from tests.benchmarks.experiments import Experiments, spread, write_small_ast

CLIPS = {"num_train": 400, "num_test": 400, "seconds": 1.0, "progress": False}
QUICK_CLIPS = {"num_train": 32, "num_test": 28}
FRAMES, STRIDE = 98, 16
BASE = {
    "from_scratch": True,
    "num_train_epochs": 16,
    "average_from": 12,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 50,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": '{"min_lr_rate": 0.5}',
    "warmup_steps": 50,
    "weight_decay": 0.1,
}
# Masks of half the paper's share of the mel bins and of the frames.
MASKS = {"frequency_mask": 12, "time_mask": 10}
MIXUP = {"mixup_rate": 0.5}
NOISE = {"max_noise": 0.1, "max_roll": 10}
SETTINGS: dict[str, dict[str, object]] = {
    "all": {**MASKS, **MIXUP, **NOISE},
    "no_masks": {**MIXUP, **NOISE},
    "no_mixup": {**MASKS, **NOISE},
    "no_noise": {**MASKS, **MIXUP},
    "stride_10": {**MASKS, **MIXUP, **NOISE, "frequency_stride": 10, "time_stride": 10},
    "patches_32": {
        **MASKS,
        **MIXUP,
        **NOISE,
        "patch_size": 32,
        "frequency_stride": 32,
        "time_stride": 32,
    },
    "none": {},
}
SHOWN = {
    "all": "masks, mixup and noise",
    "no_masks": "without masks",
    "no_mixup": "without mixup",
    "no_noise": "without noise",
    "none": "without all three",
}
NAMES = {**SHOWN, "stride_10": "16 x 16 every 10", "patches_32": "32 x 32 every 32"}
# The members of an ensemble of settings, which differ mainly in their patches, as in the paper.
ENSEMBLE = ("all", "no_masks", "stride_10", "patches_32")


class Study:
    """The runs of all claims.

    Args:
        folder: See `Experiments`.
        seeds: Number of seeds, from 0 on.
        quick: Whether to only test the code, with few clips.
    """

    def __init__(self, folder: str | Path, seeds: int, quick: bool = False):
        self.experiments, self.seeds = Experiments(folder, quick), range(seeds)
        clips = {**CLIPS, **(QUICK_CLIPS if quick else {})}
        self.data = self.experiments.make("embedded", partial(write_data_set, **clips))
        self.start = self.experiments.make(
            "small",
            partial(
                write_small_ast, max_length=FRAMES, frequency_stride=STRIDE, time_stride=STRIDE
            ),
        )

    def scores(self, setting: str, key: str = "average_mAP") -> list[float]:
        """A score for each seed; runs that are not done yet are run."""
        found = []
        for seed in self.seeds:
            flags = {**BASE, **SETTINGS[setting], "seed": seed}
            flags |= {"model": self.start, "data": self.data}
            found.append(self.experiments.finetune(f"{setting}_{seed}", flags)["metrics"][key])
        return found

    def ensemble(self, name: str, members: Sequence[str]) -> float:
        """The mAP of the mean of the members' scores."""
        return self.experiments.evaluate(name, members, self.data)

    def cpu_ms(self, setting: str) -> tuple[int, float]:
        """Number of tokens, and milliseconds of CPU for the forward of one clip, one thread."""

        def run() -> dict[str, float]:
            folder = self.experiments.model(f"{setting}_0")
            model = ASTForAudioClassification.from_pretrained(folder).eval()
            values = torch.zeros(16, FRAMES, model.config.num_mel_bins)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            times = []
            with torch.inference_mode():
                for _ in range(15):
                    begin = time.process_time()
                    model(values)
                    times.append(1000 * (time.process_time() - begin) / len(values))
            torch.set_num_threads(threads)
            rows, columns = model.config.patch_grid(FRAMES)
            return {"tokens": rows * columns + 2, "ms": statistics.median(times[3:])}

        found = self.experiments.once(f"ms_{setting}", run)
        return found["tokens"], found["ms"]


def augmentation(study: Study) -> Iterator[str]:
    """All augmentations together, and each of masks, mixup and noise left out once."""
    yield from ("| augmentation | mAP | seeds |", "| --- | --: | --- |")
    for name, shown in SHOWN.items():
        yield f"| {shown} | {spread(study.scores(name))} |"


def averaging(study: Study) -> Iterator[str]:
    """The weights of the last epoch against the mean of the last five epochs' weights."""
    yield from ("| augmentation | weights | mAP | seeds |", "| --- | --- | --: | --- |")
    for name, shown in SHOWN.items():
        yield f"| {shown} | last epoch | {spread(study.scores(name, 'eval_mAP'))} |"
        yield f"| | mean of the last five epochs | {spread(study.scores(name))} |"


def ensembles(study: Study) -> Iterator[str]:
    """One model, several seeds of one setting, several settings of one seed, and all of these."""
    yield from ("| models | mAP | seeds |", "| --- | --: | --- |")
    for name in ENSEMBLE:
        yield f"| one, {NAMES[name]} | {spread(study.scores(name, 'eval_mAP'))} |"
        members = [f"{name}_{seed}" for seed in study.seeds]
        score = study.ensemble(f"seeds_{name}", members)
        yield f"| {len(members)} seeds of it | {spread([score])} |"
    settings = [
        study.ensemble(f"settings_{seed}", [f"{name}_{seed}" for name in ENSEMBLE])
        for seed in study.seeds
    ]
    yield f"| {len(ENSEMBLE)} settings of one seed | {spread(settings)} |"
    everything = [f"{name}_{seed}" for name in ENSEMBLE for seed in study.seeds]
    yield f"| all {len(everything)} | {spread([study.ensemble('everything', everything)])} |"


def grid(study: Study, settings: dict[str, str]) -> Iterator[str]:
    """The mAP and the cost of settings with different patches."""
    yield "| patches | tokens | CPU ms a clip | mAP | seeds |"
    yield "| --- | --: | --: | --: | --- |"
    for name, shown in settings.items():
        scores = study.scores(name)
        tokens, milliseconds = study.cpu_ms(name)
        yield f"| {shown} | {tokens} | {milliseconds:.2f} | {spread(scores)} |"


CLAIMS: dict[str, Callable[[Study], Iterator[str]]] = {
    "augmentation": augmentation,
    "averaging": averaging,
    "stride": partial(grid, settings={"all": "16 x 16 every 16", "stride_10": "16 x 16 every 10"}),
    "patches": partial(
        grid, settings={"all": "16 x 16 every 16", "patches_32": "32 x 32 every 32"}
    ),
    "ensembles": ensembles,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the paper's claims on embedded data.")
    parser.add_argument("claims", metavar="CLAIM", nargs="*", help=", ".join(CLAIMS))
    parser.add_argument("--folder", default="claims", help="of data, models and results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N - 1 (3)")
    parser.add_argument("--quick", action="store_true", help="two steps a run: tries the code out")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.claims) - CLAIMS.keys()):
        parser.error(f"unknown claims {', '.join(unknown)}; give some of {', '.join(CLAIMS)}")
    study = Study(arguments.folder, arguments.seeds, arguments.quick)
    for name in arguments.claims or CLAIMS:
        print(f"\n{name}\n")
        for line in CLAIMS[name](study):
            print(line, flush=True)


if __name__ == "__main__":
    main()
