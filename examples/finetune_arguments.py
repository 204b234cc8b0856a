"""What can be set for finetune.py, in a recipe and on the command line, which wins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from data_sources import DataArguments
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available

from modeling_ast.training import Augmentation

RECIPES = Path(__file__).with_name("recipes")
FEATURES = ("auto", "workers", "device")


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
    features: str = field(
        default="auto",
        metadata={
            "help": "where features are computed: in the workers that decode, or batch-wise "
            "on the training device; auto: there if it is a GPU",
            "choices": FEATURES,
        },
    )


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
    parser.set_defaults(report_to="tensorboard" if is_tensorboard_available() else "none")
    parser.add_argument(
        "--recipe", metavar="YAML", help="file of arguments, or the name of one in recipes/"
    )
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
    prepare(training)
    return arguments


def prepare(training: TrainingArguments) -> None:
    """What holds for every run of audio clips."""
    # The collator reads every column of the data set; Trainer would drop what the model lacks.
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    # Batches of a stream need not have one length, which the process that handed them out to the
    # others would want.
    training.accelerator_config.dispatch_batches = False


def contradiction(arguments: Arguments) -> str | None:
    """What no run could do, in one sentence."""
    optimizer, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    if not optimizer.published_adam and (optimizer.layer_decay, optimizer.head_rate) != (1, 1):
        return "--layer_decay and --head_rate are for --published_adam; give that too"
    if sampling.average_to is not None and sampling.average_from is None:
        return "--average_to is given without --average_from; give the first epoch too"
    if training.max_steps < 1 and (sampling.average_from or 0) > training.num_train_epochs:
        return (
            f"--average_from is {sampling.average_from} but the run has --num_train_epochs "
            f"{training.num_train_epochs:g}; lower the one or raise the other"
        )
    if arguments.model.patch_size and not arguments.model.from_scratch:
        return "--patch_size is for --from_scratch; trained patches keep their size"
    if sampling.mix_whole_set and not arguments.augmentation.mixup_rate:
        return "--mix_whole_set is for a mixup; give --mixup_rate too"
    if mistake := contradiction_of_stream(arguments):
        return mistake
    if optimizer.decay_first is not None and 0 < training.warmup_steps < 1:
        return "--warmup_steps is a share of the run; with --decay_first give a number of steps"
    return None


def contradiction_of_stream(arguments: Arguments) -> str | None:
    """What a stream, which is read once from its start to its end, cannot do."""
    if not arguments.data.streaming:
        return None
    if arguments.sampling.balanced_sampling:
        return "--balanced_sampling counts all labels first; train without --streaming"
    if arguments.sampling.mix_whole_set:
        return "--mix_whole_set draws clips from anywhere; mix within the batch, or do not stream"
    if arguments.data.train_clips is None:
        if arguments.training.max_steps < 1:
            return "--streaming knows no end; give --train_clips (clips of an epoch) or --max_steps"
        if (arguments.optimizer.decay_first, arguments.sampling.average_from) != (None, None):
            return "--decay_first and --average_from count epochs; give --train_clips too"
    return None


def read_recipe(path: str, parser: HfArgumentParser) -> dict:
    """The arguments in a recipe, each with its type."""
    if not Path(path).exists() and (RECIPES / f"{Path(path).stem}.yaml").exists():
        path = str(RECIPES / f"{Path(path).stem}.yaml")
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
        if callable(actions[name].type) and not isinstance(value, list | dict)
        else value
        for name, value in recipe.items()
    }
