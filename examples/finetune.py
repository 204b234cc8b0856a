"""Fine-tunes an AST on any data set, with one or several labels to a clip.

    python examples/finetune.py --model MODEL --data DATA --output_dir OUT [Trainer's arguments]
    python examples/finetune.py --recipe examples/recipes/demo.yaml --model MODEL [overrides]

MODEL is an AST on the Hub or a directory, for instance what conversion/deit_to_ast.py wrote; DATA
is what data_sources.py describes. Clips with several labels are learned with the binary
cross-entropy and judged by the mean average precision (mAP), clips with exactly one with the
cross-entropy and the accuracy. The published optimiser, schedule, sampling and averaging of epochs
are off unless asked for, see --help and recipes/. The output directory has the model, its extractor
and what run_folder.py describes, ready for push_to_hub; `average/` has the model of the averaged
weights. Run again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from data_sources import DataArguments, is_exclusive, label_column, load_data, read_classes
from datasets import Dataset
from run_folder import Judge, save_results
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
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
    AverageWeightsCallback,
    BadClips,
    BalancedSampler,
    ClipReader,
    EpochDecay,
    LabelEncoder,
    balanced_weights,
    drop_bad_clips,
    published_adam,
)

# Of ModelArguments, those that from_pretrained takes as they are.
CONFIG_FIELDS = (
    "max_length",
    "frequency_stride",
    "time_stride",
    "patchout_frequency",
    "patchout_time",
)


@dataclass
class ModelArguments:
    """Which model, and its input."""

    model: str | None = field(default=None, metadata={"help": "AST on the Hub, or a directory"})
    from_scratch: bool = field(
        default=False, metadata={"help": "random weights, in the architecture of the model"}
    )
    patch_size: list[int] | None = field(
        default=None, metadata={"help": "mel bins and frames of a patch, with --from_scratch"}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "frames of 10 ms; the position grid is refitted"}
    )
    frequency_stride: int | None = field(default=None, metadata={"help": "in mel bins"})
    time_stride: int | None = field(default=None, metadata={"help": "in frames"})
    patchout_frequency: int | None = field(
        default=None, metadata={"help": "rows of patches dropped while training, as in PaSST"}
    )
    patchout_time: int | None = field(default=None, metadata={"help": "columns of them"})
    mean: float | None = field(
        default=None, metadata={"help": "of the data's log-mel values; see normalization_stats.py"}
    )
    std: float | None = field(default=None, metadata={"help": "their standard deviation"})


@dataclass
class OptimizerArguments:
    """The published optimiser and schedule; without them, those of TrainingArguments."""

    published_adam: bool = field(
        default=False, metadata={"help": "Adam, betas (0.95, 0.999), the decay in the gradient"}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "rate of a layer: this times that of the next layer"}
    )
    head_rate: float = field(default=1.0, metadata={"help": "rate of the head: this times others'"})
    decay_first: int | None = field(
        default=None, metadata={"help": "epochs at the full rate, then it falls; see EpochDecay"}
    )
    decay_every: int = field(default=1, metadata={"help": "epochs from one fall to the next"})
    decay_factor: float = field(default=0.5, metadata={"help": "what each fall multiplies by"})


@dataclass
class SamplingArguments:
    """Which clips are drawn, and which weights are averaged."""

    balanced_sampling: bool = field(
        default=False, metadata={"help": "draw clips of rare classes more often"}
    )
    mix_whole_set: bool = field(
        default=False,
        metadata={"help": "mixup with any clip of the set, as published, not of the batch"},
    )
    average_from: int | None = field(
        default=None, metadata={"help": "average the weights from the end of this epoch (from 1)"}
    )
    average_to: int | None = field(default=None, metadata={"help": "to this one; the last"})


@dataclass
class Arguments:
    """All that can be set, by its kind."""

    model: ModelArguments
    data: DataArguments
    augmentation: Augmentation
    optimizer: OptimizerArguments
    sampling: SamplingArguments
    training: TrainingArguments


KINDS = (
    ModelArguments,
    DataArguments,
    Augmentation,
    OptimizerArguments,
    SamplingArguments,
    TrainingArguments,
)


def parse_arguments() -> Arguments:
    """Reads a recipe, if there is one, and the command line, which wins."""
    parser = HfArgumentParser(KINDS)
    parser.description = "Fine-tune an AST on any data set."
    # Augmentation's own defaults are for AudioSet's clips of ten seconds.
    parser.set_defaults(mixup_rate=0.0, frequency_mask=0, time_mask=0)
    parser.add_argument("--recipe", metavar="YAML", help="file of arguments; see recipes/")
    recipe = parser.parse_known_args()[0].recipe
    if recipe:
        parser.set_defaults(**read_recipe(recipe, parser))
    *kinds, _ = parser.parse_args_into_dataclasses()
    arguments = Arguments(*kinds)
    training = arguments.training
    for name, value in (("--model", arguments.model.model), ("--data", arguments.data.data)):
        if value is None:
            parser.error(f"{name} is missing; give it here or in the recipe")
    if not training.output_dir:
        parser.error("--output_dir is missing; give it here or in the recipe")
    if mistake := contradiction(arguments):
        parser.error(mistake)
    # The collator reads every column of the data set; Trainer would drop what the model lacks.
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    return arguments


def contradiction(arguments: Arguments) -> str | None:
    """What no run could do, in one sentence."""
    optimizer, sampling = arguments.optimizer, arguments.sampling
    if not optimizer.published_adam and (optimizer.layer_decay, optimizer.head_rate) != (1, 1):
        return "--layer_decay and --head_rate are for --published_adam; give that too"
    if sampling.average_to is not None and sampling.average_from is None:
        return "--average_to is given without --average_from; give the first epoch too"
    if arguments.model.patch_size and not arguments.model.from_scratch:
        return "--patch_size is for --from_scratch; trained patches keep their size"
    if sampling.mix_whole_set and not arguments.augmentation.mixup_rate:
        return "--mix_whole_set is for a mixup; give --mixup_rate too"
    if optimizer.decay_first is not None and 0 < arguments.training.warmup_steps < 1:
        return "--warmup_steps is a share of the run; with --decay_first give a number of steps"
    return None


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
        name: actions[name].type(value)
        if callable(actions[name].type) and not isinstance(value, list)
        else value
        for name, value in recipe.items()
    }


def load_model(arguments: ModelArguments, classes: list[tuple[str, str]], exclusive: bool = False):
    """The model with a head for `classes` (fresh if their number is new), and its extractor.

    Args:
        exclusive: Whether it learns with the cross-entropy of one label for a clip.
    """
    names = [name for _, name in classes]
    given = {name: getattr(arguments, name) for name in CONFIG_FIELDS}
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": f"{'single' if exclusive else 'multi'}_label_classification",
    }
    if arguments.from_scratch:
        if arguments.patch_size:
            size = arguments.patch_size
            changes["patch_size"] = size[0] if len(size) == 1 else tuple(size)
        config = AutoConfig.from_pretrained(arguments.model, **changes)
        model = AutoModelForAudioClassification.from_config(config)
    else:
        model = AutoModelForAudioClassification.from_pretrained(
            arguments.model, ignore_mismatched_sizes=True, **changes
        )
    stored = AutoFeatureExtractor.from_pretrained(arguments.model)
    for name in ("mean", "std", "do_normalize"):
        # A checkpoint of transformers has these in its extractor's file only.
        setattr(model.config, name, getattr(stored, name))
    for name in ("mean", "std"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    return model, ASTFeatureExtractor.from_config(model.config, padding=stored.padding)


def build_trainer(
    model,
    extractor: ASTFeatureExtractor,
    classes: list[tuple[str, str]],
    splits: tuple[Dataset, Dataset],
    arguments: Arguments,
    compute_metrics: Judge,
) -> ASTTrainer:
    """A Trainer that decodes, crops, augments and extracts features in its workers."""
    (train, held_out), data, training = splits, arguments.data, arguments.training
    reader = ClipReader(extractor.sampling_rate, data.audio_column, root=data.root)
    bad_list = Path(training.output_dir) / "bad_clips.txt"
    bad_clips = BadClips(bad_list, len(train) + len(held_out), data.max_bad_share)
    collate = partial(
        AudioCollator,
        extractor,
        label_encoder(classes, model.config.problem_type),
        label_column=label_column(data, train),
        reader=reader,
    )
    return ASTTrainer(
        model,
        training,
        data_collator=collate(
            crop="random",
            bad_clips=bad_clips,
            augmentation=arguments.augmentation,
            partners=train if arguments.sampling.mix_whole_set else None,
            seed=training.seed,
        ),
        eval_collator=collate(),
        train_dataset=train,
        # In training a bad clip gives way to another; an evaluation must not count one twice.
        eval_dataset=drop_bad_clips(held_out, reader, bad_clips),
        compute_metrics=compute_metrics,
        processing_class=extractor,
        **published_parts(arguments, train),
    )


def label_encoder(classes: list[tuple[str, str]], problem_type: str) -> LabelEncoder:
    """MIDs, names or indices -> what the loss takes."""
    label2id = {key: index for index, pair in enumerate(classes) for key in pair}
    multi_label = problem_type == "multi_label_classification"
    return LabelEncoder(label2id, multi_label, num_labels=len(classes))


def published_parts(arguments: Arguments, train: Dataset) -> dict:
    """ASTTrainer's keywords for what was asked for of the paper's optimiser, sampler, averaging."""
    chosen, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    parts = {}
    if chosen.published_adam:
        parts["make_optimizer"] = partial(
            published_adam,
            learning_rate=training.learning_rate,
            layer_decay=chosen.layer_decay,
            head_rate=chosen.head_rate,
            weight_decay=training.weight_decay,
        )
    if chosen.decay_first is not None:
        parts["epoch_decay"] = EpochDecay(
            chosen.decay_first, chosen.decay_every, chosen.decay_factor, int(training.warmup_steps)
        )
    if sampling.balanced_sampling:
        name = label_column(arguments.data, train)
        weights = balanced_weights(train.select_columns(name)[:][name])
        parts["train_sampler"] = BalancedSampler(weights, seed=training.seed)
    if sampling.average_from is not None:
        callback = AverageWeightsCallback(sampling.average_from, sampling.average_to)
        parts["callbacks"] = [callback]
    return parts


def evaluate_average(trainer: ASTTrainer) -> dict[str, float]:
    """The metrics of the averaged weights, as `average_*`; the trainer's model then has them."""
    trainer.accelerator.wait_for_everyone()
    file = Path(trainer.args.output_dir) / "average" / "model.safetensors"
    trainer.model.load_state_dict(load_file(file))
    return trainer.evaluate(metric_key_prefix="average")


def last_checkpoint(training: TrainingArguments) -> str | None:
    """The checkpoint that was asked for, or the newest that a killed run left."""
    asked = training.resume_from_checkpoint
    if asked is None and Path(training.output_dir).is_dir():
        return get_last_checkpoint(training.output_dir)
    return asked


def train(arguments: Arguments) -> tuple[ASTTrainer, Judge]:
    """Trains the model that the arguments describe."""
    set_seed(arguments.training.seed)
    splits = load_data(arguments.data)
    classes = read_classes(arguments.data, *splits)
    exclusive = is_exclusive(arguments.data, splits[0])
    with_softmax = arguments.data.loss == "cross_entropy"
    if with_softmax and not exclusive:
        raise ValueError("--loss cross_entropy needs exactly one label to a clip; use bce")
    with_softmax |= arguments.data.loss == "auto" and exclusive
    try:
        model, extractor = load_model(arguments.model, classes, with_softmax)
    except OSError as error:
        # Not every message of the Hub's client says which name it looked for.
        raise OSError(f"cannot load the model {arguments.model.model!r}: {error}") from error
    judge = Judge([name for _, name in classes], exclusive)
    trainer = build_trainer(model, extractor, classes, splits, arguments, judge)
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments.training))
    return trainer, judge


def main() -> None:
    """Trains, evaluates and saves."""
    try:
        arguments = parse_arguments()
        trainer, judge = train(arguments)
        metrics = trainer.evaluate()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    table = judge.table
    trainer.save_model()
    if arguments.sampling.average_from is not None:
        metrics |= evaluate_average(trainer)
    if trainer.is_world_process_zero():
        sources = (arguments.model.model, arguments.data.data)
        save_results(trainer, judge, table, sources, metrics)
        score = f"{judge.metric} {metrics[f'eval_{judge.metric}']:.4f}"
        sys.stdout.write(f"{score}; the model is in {trainer.args.output_dir}\n")


if __name__ == "__main__":
    main()
