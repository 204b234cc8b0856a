"""Fine-tuning on recorded sounds, tested on drum kits and speakers that are not trained on.

    python examples/quickstart.py
    python -m tests.benchmarks.real_claims [STUDY ...] [--start quickstart/model] [--folder claims]

STUDY is recipe, exchanged (recipe with the kits of training and test exchanged), drums, letters,
syllables, few_drums or few_syllables; by default all. --seeds 5 runs each five times. Each study
prints a table in Markdown, row by row. The sounds come from Debian packages, see
tests/real_sounds.py. Drum hits start from the quickstart's model, the others from the same network
after ten words of espeak-ng, a synthesiser, see tests/spoken_words.py. Three seeds test every
speaker once: each has its own third of them. Results are kept in the folder: if a study is
interrupted, run the same command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import transformers

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from tests import real_sounds, spoken_words
from tests.benchmarks import example_way
from tests.benchmarks.experiments import Experiments, spread, write_small_ast

SEEDS = 3
FRAMES = 200
# Chosen once, not tuned.
BY_HAND = {
    "max_length": FRAMES,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 50,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "weight_decay": 0.1,
    "frequency_mask": 8,
    "time_mask": 20,
    "max_roll": 10,
    "max_gain_db": 6,
}
DRUMS = {**BY_HAND, "num_train_epochs": 20, "average_from": 11}
FEW = {**BY_HAND, "max_steps": 100, "warmup_steps": 10, "per_device_train_batch_size": 8}
RECIPE = {"recipe": "small_data"}
SCRATCH = {"from_scratch": True}
WORDS = {
    "from_scratch": True,
    "mean": -7.0349,
    "std": 3.9475,
    "max_gain_db": 6,
    "frequency_mask": 8,
    "time_mask": 12,
    "max_noise": 0.1,
    "max_roll": 10,
    "num_train_epochs": 12,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 150,
    "weight_decay": 0.05,
}
# Learning rates for transformers' example.
EXAMPLE_RATES = {
    "example_rate": (example_way.LEARNING_RATE, "its learning rate"),
    "our_rate": (1e-3, "ours"),
}
WAYS = {"full": {}, "LoRA": {"lora_rank": 8}, "frozen": {"freeze": "all"}}
EXAMPLES = (1, 5, 10)


class Study:
    """The runs of all tables.

    Args:
        folder: See `Experiments`.
        start: A model that the quickstart made.
        quick: Whether to only test the code: few words, one seed, two steps per run.
        seeds: Number of runs of each kind.
    """

    def __init__(
        self, folder: str | Path, start: str | Path, quick: bool = False, seeds: int = SEEDS
    ):
        self.experiments, self.start = Experiments(folder, quick), Path(start)
        self.seeds = range(1 if quick else seeds)

    def data(self, kind: str, seed: int = 0, examples: int | None = None) -> Path:
        """A data set of real sounds; each seed has its own speakers, or its own few examples."""
        fold = {"drums": 0, "exchanged": 1}.get(kind, seed % real_sounds.FOLDS)
        kind = "drums" if kind == "exchanged" else kind
        name = f"{kind}_{fold}" + (f"_{examples}_{seed}" if examples else "")
        write = partial(real_sounds.write_data_set, kind, fold=fold, examples=examples, seed=seed)
        return self.experiments.make(name, write)

    def quickstart(self) -> Path:
        """The model that the quickstart made.

        Raises:
            OSError: It is not there.
        """
        if not (self.start / "config.json").is_file():
            raise OSError(f"{self.start} has no model; run python examples/quickstart.py first")
        return self.start

    def words(self) -> Path:
        """A model trained on words of espeak-ng, with positions fitted to clips of two seconds."""
        voices = {"takes": 1, "train_voices": "m1", "test_voices": "f1"}
        write = partial(
            spoken_words.write_data_set,
            progress=False,
            **(voices if self.experiments.quick else {"takes": 2}),
        )
        data = self.experiments.make("words", write)
        small = self.experiments.make(
            "small_words",
            partial(write_small_ast, max_length=98, frequency_stride=16, time_stride=16),
        )
        self.experiments.finetune("words", {**WORDS, "model": small, "data": data})

        def refit(folder: Path) -> None:
            source = self.experiments.model("words")
            model = ASTForAudioClassification.from_pretrained(source, max_length=FRAMES)
            model.save_pretrained(folder)
            stored = ASTFeatureExtractor.from_pretrained(source)
            ASTFeatureExtractor.from_config(
                model.config, mean=stored.mean, std=stored.std
            ).save_pretrained(folder)

        return self.experiments.make("words_200", refit)

    def scores(
        self, name: str, flags: dict[str, object], data: Callable[[int], Path], key: str
    ) -> list[float]:
        """The score of each seed."""
        return [
            self.experiments.finetune(
                f"{name}_{seed}", {**flags, "data": data(seed), "seed": seed}
            )["metrics"][key]
            for seed in self.seeds
        ]

    def example(
        self,
        kind: str,
        ours: str,
        name: str,
        learning_rate: float,
        start: Path,
        from_scratch: bool = False,
    ) -> list[float]:
        """The score of transformers' own way, with our batch size and at least as many steps.

        Args:
            ours: The name of our runs on `kind`, which the batch size and the steps come from.
            from_scratch: Whether only the sizes of `start` are used, with random weights.
        """

        def run(seed: int) -> dict[str, float]:
            folder = self.experiments.model(f"{ours}_{seed}")
            trained = torch.load(folder / "training_args.bin", weights_only=False)
            metrics = self.experiments.once(f"{ours}_{seed}", dict)["metrics"]
            data = self.data(kind, seed)
            batch = trained.per_device_train_batch_size
            clips = len(list((data / "train").glob("*/*")))
            steps = max(1, round(metrics["epoch"] * -(-clips // batch)))
            output = self.experiments.model(f"{name}_{seed}")
            score = example_way.finetune(
                start,
                data,
                output,
                steps=steps,
                batch_size=batch,
                learning_rate=learning_rate,
                seed=seed,
                from_scratch=from_scratch,
            )
            return {"accuracy": score, "steps": steps, "batch_size": batch}

        return [
            self.experiments.once(f"{name}_{seed}", partial(run, seed))["accuracy"]
            for seed in self.seeds
        ]


HEAD = ("| start | numbers | accuracy | seeds |", "| --- | --- | --: | --- |")


def drums(study: Study) -> Iterator[str]:
    """Pretraining against random weights, with equally many steps."""
    model = study.quickstart()
    yield from HEAD
    for start, more in (("quickstart", {}), ("scratch", SCRATCH)):
        flags = {**DRUMS, **more, "model": model}
        for key, shown in (("eval", "last epoch"), ("average", "mean of the last ten epochs")):
            data = partial(study.data, "drums")
            scores = study.scores(f"drums_{start}", flags, data, f"{key}_accuracy")
            yield f"| {start} | {shown} | {spread(scores)} |"


def against_example(study: Study, kind: str) -> Iterator[str]:
    """The recipe for small data against transformers' example, both from the same start: a
    checkpoint, then random weights of the same size."""
    start = study.quickstart() if kind in ("drums", "exchanged") else study.words()
    name = "recipe" if kind == "drums" else kind  # "drums" are runs of the study of this name
    data = partial(study.data, kind)
    yield from ("| start | way | accuracy | seeds |", "| --- | --- | --: | --- |")
    for weights, ours, more in (("checkpoint", name, {}), ("random", f"{name}_scratch", SCRATCH)):
        flags = {**RECIPE, **more, "model": start}
        scores = study.scores(ours, flags, data, "eval_accuracy")
        yield f"| {weights} | the recipe small_data | {spread(scores)} |"
        for key, (rate, shown) in EXAMPLE_RATES.items():
            scores = study.example(kind, ours, f"{ours}_{key}", rate, start, bool(more))
            way = f"transformers' example, {shown} ({rate:g})"
            yield f"| {weights} | {way} | {spread(scores)} |"


def few(study: Study, kind: str) -> Iterator[str]:
    """1, 5 and 10 examples of each class: all weights, LoRA, or only the head."""
    start = study.quickstart() if kind == "drums" else study.words()
    yield from ("| examples | trained | accuracy | seeds |", "| --: | --- | --: | --- |")
    for examples in EXAMPLES:
        for way, more in WAYS.items():
            data = partial(study.data, kind, examples=examples)
            flags = {**FEW, **more, "model": start}
            scores = study.scores(f"few_{kind}_{examples}_{way}", flags, data, "eval_accuracy")
            yield f"| {examples} | {way} | {spread(scores)} |"


STUDIES: dict[str, Callable[[Study], Iterator[str]]] = {
    "recipe": partial(against_example, kind="drums"),
    "exchanged": partial(against_example, kind="exchanged"),
    "drums": drums,
    "letters": partial(against_example, kind="letters"),
    "syllables": partial(against_example, kind="syllables"),
    "few_drums": partial(few, kind="drums"),
    "few_syllables": partial(few, kind="syllables"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure fine-tuning on recorded sounds.")
    parser.add_argument("studies", metavar="STUDY", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--start", default="quickstart/model", help="the quickstart's model")
    parser.add_argument("--folder", default="claims", help="of data, models and results")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="runs of each kind")
    parser.add_argument("--quick", action="store_true", help="two steps a run: tries the code out")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.studies) - STUDIES.keys()):
        parser.error(f"unknown studies {', '.join(unknown)}; give some of {', '.join(STUDIES)}")
    transformers.utils.logging.set_verbosity_error()
    study = Study(arguments.folder, arguments.start, arguments.quick, arguments.seeds)
    for name in arguments.studies or STUDIES:
        print(f"\n{name}\n")
        for line in STUDIES[name](study):
            print(line, flush=True)


if __name__ == "__main__":
    main()
