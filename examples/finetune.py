"""Fine-tunes an AST on a data set in AudioSet's format, with several labels to a clip.

    python examples/finetune.py --model MODEL --data DATA --output_dir OUT [Trainer's arguments]
    python examples/finetune.py --recipe examples/recipes/demo.yaml --model MODEL [overrides]

MODEL is an AST on the Hub or a directory, for instance what conversion/deit_to_ast.py wrote. DATA
is a data set with the columns of agkphysics/AudioSet (`audio`, `labels`, `human_labels`): a name on
the Hub or a directory. Training minimises the binary cross-entropy; the metric is the mean average
precision (mAP). The output directory has the model, its extractor, metrics.json, the learning curve
and a model card, ready for push_to_hub. Run again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import EvalResult, ModelCardData
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training import (
    ASTTrainer,
    AudioCollator,
    Augmentation,
    BadClips,
    ClipReader,
    LabelEncoder,
    compute_metrics,
    drop_bad_clips,
    undecoded,
)

CLASS_LIST = "class_labels_indices.csv"


@dataclass
class ModelArguments:
    """Which model, and the size of its input."""

    model: str | None = field(default=None, metadata={"help": "AST on the Hub, or a directory"})
    max_length: int | None = field(
        default=None, metadata={"help": "frames of 10 ms; the position grid is refitted"}
    )
    frequency_stride: int | None = field(default=None, metadata={"help": "in mel bins"})
    time_stride: int | None = field(default=None, metadata={"help": "in frames"})


@dataclass
class DataArguments:
    """Which data set, and its columns."""

    data: str | None = field(default=None, metadata={"help": "name on the Hub, or a directory"})
    data_config: str | None = field(default=None, metadata={"help": "e.g. balanced"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str = field(default="test", metadata={"help": "held-out split"})
    label_csv: str | None = field(
        default=None,
        metadata={"help": f"index,mid,display_name; by default DATA's {CLASS_LIST}, or the data"},
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "stop when more clips than this cannot be decoded"}
    )


def parse_arguments() -> tuple[ModelArguments, DataArguments, Augmentation, TrainingArguments]:
    """Reads a recipe, if there is one, and the command line, which wins."""
    parser = HfArgumentParser((ModelArguments, DataArguments, Augmentation, TrainingArguments))
    parser.description = "Fine-tune an AST on a data set in AudioSet's format."
    # Augmentation's own defaults are for AudioSet's clips of ten seconds.
    parser.set_defaults(mixup_rate=0.0, frequency_mask=0, time_mask=0)
    parser.add_argument("--recipe", metavar="YAML", help="file of arguments; see recipes/")
    recipe = parser.parse_known_args()[0].recipe
    if recipe:
        parser.set_defaults(**read_recipe(recipe, parser))
    model, data, augmentation, training, _ = parser.parse_args_into_dataclasses()
    for name, value in (("--model", model.model), ("--data", data.data)):
        if value is None:
            parser.error(f"{name} is missing; give it here or in the recipe")
    if not training.output_dir:
        parser.error("--output_dir is missing; give it here or in the recipe")
    # The collator reads every column of the data set; Trainer would drop what the model lacks.
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    return model, data, augmentation, training


def read_recipe(path: str, parser: HfArgumentParser) -> dict:
    """The arguments in a recipe, each with its type."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from error
    actions = {action.dest: action for action in parser._actions}
    unknown = set(recipe) - set(actions)
    if unknown:
        raise ValueError(f"{path} has unknown arguments {sorted(unknown)}; see --help")
    # YAML reads 1e-3 as text; argparse's own types put that right.
    return {
        name: actions[name].type(value) if callable(actions[name].type) else value
        for name, value in recipe.items()
    }


def load_data(arguments: DataArguments) -> tuple[Dataset, Dataset]:
    """The two splits, audio not decoded."""
    cache = {"cache_dir": cache_of(arguments.data)} if Path(arguments.data).is_dir() else {}
    data = load_dataset(arguments.data, arguments.data_config, **cache)
    if not isinstance(data, DatasetDict):
        raise ValueError(f"{arguments.data} has no splits")
    for split in (arguments.train_split, arguments.eval_split):
        if split not in data:
            raise ValueError(
                f"{arguments.data} has the splits {sorted(data)} but not {split!r}; name them with "
                f"--train_split and --eval_split"
            )
    return undecoded(data[arguments.train_split]), undecoded(data[arguments.eval_split])


def cache_of(folder: str) -> str:
    """A cache for the directory as it is now.

    The one of `datasets` goes by the directory's last name alone: another `data/`, or this one
    written anew, would silently give the old clips.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.blake2b(json.dumps(states).encode(), digest_size=8).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{digest}")


def read_classes(arguments: DataArguments, train: Dataset) -> list[tuple[str, str]]:
    """(MID, name) of each class, in the order of their indices."""
    path = Path(arguments.label_csv or Path(arguments.data) / CLASS_LIST)
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
        return [(row["mid"], row["display_name"]) for row in rows]
    if arguments.label_csv:
        raise ValueError(f"no file at {path}; give the class list as index,mid,display_name")
    columns = train.select_columns(["labels", "human_labels"])
    return sorted({pair for row in columns for pair in zip(row["labels"], row["human_labels"])})


def load_model(arguments: ModelArguments, classes: list[tuple[str, str]]):
    """The model with a head for `classes` (fresh if their number is new), and its extractor."""
    names = [name for _, name in classes]
    grid = ("max_length", "frequency_stride", "time_stride")
    changes = {name: getattr(arguments, name) for name in grid if getattr(arguments, name)}
    try:
        model = AutoModelForAudioClassification.from_pretrained(
            arguments.model,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type="multi_label_classification",
            ignore_mismatched_sizes=True,
            **changes,
        )
        stored = AutoFeatureExtractor.from_pretrained(arguments.model)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model {arguments.model!r}: {reason}") from error
    for name in ("mean", "std", "do_normalize"):
        # A checkpoint of transformers has these in its extractor's file only.
        setattr(model.config, name, getattr(stored, name))
    return model, ASTFeatureExtractor.from_config(model.config, padding=stored.padding)


def build_trainer(
    model, extractor, classes, splits, data: DataArguments, augmentation: Augmentation, training
) -> ASTTrainer:
    """A Trainer that decodes, crops, augments and extracts features in its workers."""
    train, held_out = splits
    label2id = {key: index for index, pair in enumerate(classes) for key in pair}
    encode = LabelEncoder(label2id, multi_label=True, num_labels=len(classes))
    bad_list = Path(training.output_dir) / "bad_clips.txt"
    bad_clips = BadClips(bad_list, len(train) + len(held_out), data.max_bad_share)
    reader = ClipReader(extractor.sampling_rate)
    return ASTTrainer(
        model,
        training,
        data_collator=AudioCollator(
            extractor,
            encode,
            crop="random",
            bad_clips=bad_clips,
            augmentation=augmentation,
            seed=training.seed,
        ),
        eval_collator=AudioCollator(extractor, encode),
        train_dataset=train,
        # In training a bad clip gives way to another; an evaluation must not count one twice.
        eval_dataset=drop_bad_clips(held_out, reader, bad_clips),
        compute_metrics=compute_metrics,
        processing_class=extractor,
    )


def save_results(
    trainer: ASTTrainer, base_model: str, data: str, metrics: dict[str, float]
) -> None:
    """Writes the model, its numbers, its curve and its card."""
    folder = Path(trainer.args.output_dir)
    trainer.save_model()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_curve(trainer.state.log_history, folder / "learning_curve.png")
    card = write_card(folder.name, base_model, data, metrics, trainer)
    (folder / "README.md").write_text(card, encoding="utf-8")


def draw_curve(history: list[dict], path: Path) -> None:
    """Loss of training and mAP of the held-out split, over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    right = left.twinx()
    for axis, key, colour in ((left, "loss", "tab:blue"), (right, "eval_mAP", "tab:orange")):
        points = [(row["epoch"], row[key]) for row in history if key in row]
        axis.plot(*zip(*points), color=colour, marker="." if len(points) < 60 else None)
        axis.set_ylabel(key, color=colour)
    left.set_xlabel("epoch")
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_card(name: str, base_model: str, data: str, metrics: dict, trainer: ASTTrainer) -> str:
    """The model card: metadata that the Hub reads, results, how to use the model."""
    is_local = Path(base_model).exists() or Path(data).exists()
    result = EvalResult(
        task_type="audio-classification",
        dataset_type=Path(data).name if Path(data).exists() else data,
        dataset_name=Path(data).name,
        metric_type="mAP",
        metric_name="mean average precision",
        metric_value=round(metrics["eval_mAP"], 4),
    )
    card = ModelCardData(
        model_name=name,
        base_model=None if Path(base_model).exists() else base_model,
        datasets=None if Path(data).exists() else [data],
        eval_results=[result],
        metrics=["mAP"],
        pipeline_tag="audio-classification",
        library_name="transformers",
        tags=["audio-spectrogram-transformer", "audio-classification", "modeling_ast"],
    )
    arguments, config = trainer.args, trainer.model.config
    numbers = "\n".join(
        f"| {label} | {metrics[key]:.4f} |"
        for key, label in (
            ("eval_mAP", "mAP"),
            ("eval_mAUC", "mean ROC AUC"),
            ("eval_d_prime", "d'"),
            ("eval_loss", "loss"),
        )
    )
    local = "\nThe base model and the data were local directories.\n" if is_local else ""
    return f"""---
{card.to_yaml()}
---

# {name}

An Audio Spectrogram Transformer fine-tuned with `examples/finetune.py` of modeling_ast.

- base model: `{base_model}`
- data: `{data}`, {len(trainer.train_dataset)} clips to train, {len(trainer.eval_dataset)} held out
- classes: {", ".join(config.id2label.values())}
{local}
| held-out metric | value |
| --- | --- |
{numbers}

![learning curve](learning_curve.png)

Trained for {arguments.num_train_epochs:g} epochs at a batch size of
{arguments.train_batch_size}, learning rate {arguments.learning_rate:g},
{arguments.lr_scheduler_type} schedule, seed {arguments.seed}.

```python
import modeling_ast
from transformers import pipeline

classify = pipeline("audio-classification", model="{name}")
classify(modeling_ast.read_audio("clip.wav"))
```
"""


def main() -> None:
    """Trains, evaluates and saves."""
    try:
        model_arguments, data_arguments, augmentation, training = parse_arguments()
        set_seed(training.seed)
        splits = load_data(data_arguments)
        classes = read_classes(data_arguments, splits[0])
        model, extractor = load_model(model_arguments, classes)
        trainer = build_trainer(
            model, extractor, classes, splits, data_arguments, augmentation, training
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(training))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    metrics = trainer.evaluate()
    save_results(trainer, model_arguments.model, data_arguments.data, metrics)
    sys.stdout.write(f"mAP {metrics['eval_mAP']:.4f}; the model is in {training.output_dir}\n")


def last_checkpoint(training: TrainingArguments) -> str | None:
    """The checkpoint that was asked for, or the newest that a killed run left."""
    asked = training.resume_from_checkpoint
    if asked is None and Path(training.output_dir).is_dir():
        return get_last_checkpoint(training.output_dir)
    return asked


if __name__ == "__main__":
    main()
