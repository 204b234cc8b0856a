"""The arguments of a fine-tuning, grouped by kind; `recipe_files.py` reads them from YAML files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_pt_utils import AcceleratorConfig

from ..padding import PADDINGS
from .augmentation import Augmentation
from .cheap_tuning import CheapArguments
from .data_arguments import DataArguments

# File in a run's output directory with the arguments that decide what the run learns.
RUN_FILE = "run.json"
# File with the metrics, which a run writes when it has ended, and `evaluate` as well.
METRICS_FILE = "metrics.json"
FEATURES = ("auto", "workers", "device")
KEPT = ("auto", "last", "best", "average")


@dataclass
class ModelArguments:
    """Which model, and its input."""

    model: str | None = field(default=None, metadata={"help": "AST on the Hub, or a directory"})
    from_scratch: bool = field(
        default=False, metadata={"help": "random weights, in the architecture of the model"}
    )
    patch_size: list[int] | None = field(
        default=None, metadata={"help": "mel bins and frames of a patch, with --from-scratch"}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "longest input, in frames of 10 ms; the positions are fitted to it"},
    )
    min_length: int | None = field(
        default=None,
        metadata={
            "help": "train for short clips too: cut each clip to a random length of at least this "
            "many frames of 10 ms, with and without a mask of the padding"
        },
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={
            "help": "stochastic depth: probability that a clip skips the last layer in training"
        },
    )
    frequency_stride: int | None = field(
        default=None, metadata={"help": "step from patch to patch, in mel bins"}
    )
    time_stride: int | None = field(
        default=None, metadata={"help": "step from patch to patch, in frames"}
    )
    patchout_frequency: int | None = field(
        default=None, metadata={"help": "rows of patches to drop in training (PaSST)"}
    )
    patchout_time: int | None = field(
        default=None, metadata={"help": "columns of patches to drop in training"}
    )
    mean: float | None = field(
        default=None,
        metadata={"help": "mean of the data's log-mel values; see modeling-ast stats"},
    )
    std: float | None = field(default=None, metadata={"help": "standard deviation of these values"})
    features: str = field(
        default="auto",
        metadata={
            "help": "where features are computed: workers: in the processes that decode; device: "
            "on the training device, for a whole batch; auto: on the device if it is a GPU",
            "choices": FEATURES,
        },
    )
    padding: str | None = field(
        default=None,
        metadata={
            "help": "pad clips to max_length, or to the longest clip of their batch; by default "
            "as saved in the model's extractor",
            "choices": PADDINGS,
        },
    )

    def __post_init__(self):
        # argparse does not check the choices for values that come from a recipe.
        for name, choices in (("features", FEATURES), ("padding", (None, *PADDINGS))):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"--{name} is {getattr(self, name)!r}; it must be one of {known}")

    @property
    def source(self) -> str:
        """The value of `model`, which every run needs.

        Raises:
            ValueError: No model is given.
        """
        if self.model is None:
            raise ValueError("--model is missing; give an AST on the Hub, or a directory")
        return self.model


@dataclass
class OptimizerArguments:
    """Learning rates by layer, and the published optimiser and schedule."""

    published_adam: bool = field(
        default=False,
        metadata={
            "help": "use Adam as published: betas (0.95, 0.999), weight decay added to the gradient"
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "learning rate of each layer, as a multiple of the next layer's"},
    )
    head_rate: float = field(
        default=1.0, metadata={"help": "learning rate of the head, as a multiple of the others'"}
    )
    decay_first: int | None = field(
        default=None,
        metadata={"help": "epochs at the full learning rate before --decay-factor first applies"},
    )
    decay_every: int = field(default=1, metadata={"help": "epochs between two decays"})
    decay_factor: float = field(
        default=0.5, metadata={"help": "factor that each decay multiplies the learning rate by"}
    )


@dataclass
class SamplingArguments:
    """Which clips are drawn, and which weights are averaged."""

    balanced_sampling: bool = field(
        default=False, metadata={"help": "draw clips of rare classes more often"}
    )
    mix_whole_set: bool = field(
        default=False,
        metadata={
            "help": "draw mixup partners from the whole training set, as published, instead of "
            "from the batch"
        },
    )
    average_from: int | None = field(
        default=None, metadata={"help": "average the weights from the end of this epoch (from 1)"}
    )
    average_to: int | None = field(
        default=None,
        metadata={"help": "last epoch to average, with --average-from (default: the run's last)"},
    )


@dataclass
class AutoArguments:
    """What the run chooses itself, and which of its weights it keeps."""

    auto: bool = field(
        default=False,
        metadata={
            "help": "choose the numbers that you do not give, by the training clips and the "
            "model, and print each with its reason"
        },
    )
    keep_weights: str = field(
        default="auto",
        metadata={
            "help": "weights that the run ends with: those of the last epoch, those of the best "
            "epoch, or the average that --average-from starts; auto: those of the three that score "
            "best on the validation clips, or the last if there are no such clips",
            "choices": KEPT,
        },
    )

    def __post_init__(self):
        # argparse does not check the choices for values that come from a recipe.
        if self.keep_weights not in KEPT:
            raise ValueError(
                f"--keep-weights is {self.keep_weights!r}; it must be one of {', '.join(KEPT)}"
            )


@dataclass
class LengthArguments:
    """How the scores on shorter clips are measured."""

    length_clips: int = field(
        default=200,
        metadata={
            "help": "number of held-out clips to score under both paddings, whole and cut to "
            "0.25, 0.5, 1 seconds and so on; 0: none"
        },
    )


@dataclass
class ResultArguments:
    """Which results are shown."""

    worst_clips: int = field(
        default=30,
        metadata={
            "help": "number of clips in worst_clips.html, the page that plays the worst mistakes; "
            "0: no page"
        },
    )

    def __post_init__(self):
        if self.worst_clips < 0:
            raise ValueError(f"--worst-clips is {self.worst_clips}; give 0 or more")


@dataclass
class SearchArguments:
    """A search for good hyperparameters instead of one run (extra `search`)."""

    search_trials: int | None = field(
        default=None,
        metadata={
            "help": "train this many times with different hyperparameters, compare the runs on "
            "clips set aside from the training set, and write the best values as a recipe"
        },
    )
    search_space: str | None = field(
        default=None,
        metadata={"help": "YAML file with the search space (default: rates, mixup, rank)"},
    )

    def __post_init__(self):
        if self.search_trials is not None and self.search_trials < 1:
            raise ValueError(f"--search-trials is {self.search_trials}; it must be at least 1")
        if self.search_space is not None and self.search_trials is None:
            raise ValueError("--search-space is for a search; give --search-trials too")


@dataclass
class Arguments:
    """All arguments, grouped by kind.

    `given` holds the names of the arguments that the user has set; `--auto` does not change them.
    """

    model: ModelArguments
    data: DataArguments
    augmentation: Augmentation
    optimizer: OptimizerArguments
    sampling: SamplingArguments
    training: TrainingArguments
    lengths: LengthArguments = field(default_factory=LengthArguments)
    results: ResultArguments = field(default_factory=ResultArguments)
    auto: AutoArguments = field(default_factory=AutoArguments)
    cheap: CheapArguments = field(default_factory=CheapArguments)
    search: SearchArguments = field(default_factory=SearchArguments)
    given: frozenset[str] = frozenset()

    def value(self, name: str) -> Any:
        """The value of an argument of any kind, by its name."""
        return getattr(self._kind_of(name)[1], name)

    def change(self, name: str, value: Any) -> None:
        """Sets an argument of any kind, by its name."""
        place, kind = self._kind_of(name)
        if isinstance(kind, TrainingArguments):
            # `replace` would run its __post_init__ again, which expects values of a command line.
            setattr(kind, name, value)
        else:
            setattr(self, place, replace(kind, **{name: value}))

    def _kind_of(self, name: str) -> tuple[str, Any]:
        for entry in fields(self):
            kind = getattr(self, entry.name)
            if isinstance(kind, KINDS) and name in {own.name for own in fields(kind)}:
                return entry.name, kind
        raise ValueError(f"there is no argument {name!r}; see --help for all")


KINDS = (
    ModelArguments,
    DataArguments,
    Augmentation,
    OptimizerArguments,
    SamplingArguments,
    TrainingArguments,
    LengthArguments,
    ResultArguments,
    AutoArguments,
    CheapArguments,
    SearchArguments,
)


def defaults() -> dict[str, Any]:
    """The defaults of a run that differ from those of the argument classes."""
    return {
        # The defaults of Augmentation suit AudioSet's clips of ten seconds.
        "mixup_rate": 0.0,
        "frequency_mask": 0,
        "time_mask": 0,
        "report_to": "tensorboard" if is_tensorboard_available() else "none",
        "dataloader_num_workers": loading_workers(usable_cores(), torch.cuda.is_available()),
        # Shares of the run, so that the learning curve of a short run has some points, too.
        "logging_steps": 0.05,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
    }


def usable_cores() -> int:
    """Number of cores for this process: those of the machine, shared among its processes."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def loading_workers(cores: int, has_gpu: bool) -> int:
    """Number of worker processes that decode clips during the training.

    Training on a CPU needs the cores itself: on two cores without a GPU, one worker made the demo
    recipe slower.

    Args:
        cores: Number of cores that this process may use.
        has_gpu: Whether the model is trained on a GPU.
    Returns:
        At most 8.
    """
    return min(8, cores - 1 if has_gpu else cores // 4)


def prepare(training: TrainingArguments) -> None:
    """Sets the training arguments that every run on audio clips needs."""
    # Trainer would drop columns that the model's forward does not take; the collator reads them.
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    # With dispatch_batches one process sends the batches of a stream to the others, which works
    # only if they all have the same length; ours may differ.
    assert isinstance(training.accelerator_config, AcceleratorConfig)  # TrainingArguments made it
    training.accelerator_config.dispatch_batches = False


def contradiction(arguments: Arguments) -> str | None:
    """A sentence that names arguments which contradict each other, or None."""
    optimizer, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    if sampling.average_to is not None and sampling.average_from is None:
        return "--average-to is given without --average-from; give the first epoch too"
    if training.max_steps < 1 and (sampling.average_from or 0) > training.num_train_epochs:
        return (
            f"--average-from is {sampling.average_from} but the run has --num-train-epochs "
            f"{training.num_train_epochs:g}; lower the one or raise the other"
        )
    if arguments.model.patch_size and not arguments.model.from_scratch:
        return "--patch-size needs --from-scratch, as trained patches keep their size; give both"
    if arguments.model.from_scratch and (arguments.cheap.freeze or arguments.cheap.lora_rank):
        return "--freeze and --lora-rank need trained weights; leave --from-scratch out"
    if sampling.mix_whole_set and not arguments.augmentation.mixup_rate:
        return "--mix-whole-set needs mixup; give --mixup-rate too"
    auto = arguments.auto
    if auto.keep_weights == "average" and sampling.average_from is None and not auto.auto:
        return "--keep-weights average needs the first epoch to average; give --average-from too"
    if arguments.search.search_trials is not None and arguments.data.folds is not None:
        return "--search-trials and --folds cannot be combined; give one of them"
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(training, name) < 1:
            return f"--{name.replace('_', '-')} is {getattr(training, name)}; give 1 or more"
    if arguments.lengths.length_clips < 0:
        return f"--length-clips is {arguments.lengths.length_clips}; give 0 or more"
    if mistake := contradiction_of_stream(arguments):
        return mistake
    if optimizer.decay_first is not None and 0 < training.warmup_steps < 1:
        return "--warmup-steps is a share of the run; with --decay-first give a number of steps"
    return None


def contradiction_of_stream(arguments: Arguments) -> str | None:
    """The same check for a stream, which is read only once, from its start to its end."""
    if not arguments.data.streaming:
        return None
    if arguments.auto.auto:
        return "--auto must measure all clips before it trains; train without --streaming"
    if arguments.sampling.balanced_sampling:
        return "--balanced-sampling must count all labels first; train without --streaming"
    if arguments.sampling.mix_whole_set:
        return (
            "--mix-whole-set draws clips from the whole set, which a stream does not allow; leave "
            "out --mix-whole-set or --streaming"
        )
    if arguments.data.train_clips is None:
        if arguments.training.max_steps < 1:
            return (
                "with --streaming the length of an epoch is unknown; give --train-clips (clips in "
                "an epoch) or --max-steps"
            )
        if (arguments.optimizer.decay_first, arguments.sampling.average_from) != (None, None):
            return "--decay-first and --average-from count epochs; give --train-clips too"
    return None


__all__ = [
    "KINDS",
    "METRICS_FILE",
    "RUN_FILE",
    "Arguments",
    "AutoArguments",
    "LengthArguments",
    "ModelArguments",
    "OptimizerArguments",
    "ResultArguments",
    "SamplingArguments",
    "contradiction",
    "defaults",
    "loading_workers",
    "prepare",
]
