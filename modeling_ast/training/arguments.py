"""What can be set for a fine-tuning, by its kind; `recipe_files.py` reads many of these at once."""

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

# In the output directory of a run: the arguments that decide what it learns.
RUN_FILE = "run.json"
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
        default=None, metadata={"help": "frames of 10 ms; the position grid is refitted"}
    )
    min_length: int | None = field(
        default=None,
        metadata={
            "help": "frames of 10 ms; also train on parts of clips, of random lengths from this "
            "on, with and without a mask of the padding, for a model that knows short clips"
        },
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "stochastic depth: how often a clip skips the last layer while training"},
    )
    frequency_stride: int | None = field(default=None, metadata={"help": "in mel bins"})
    time_stride: int | None = field(default=None, metadata={"help": "in frames"})
    patchout_frequency: int | None = field(
        default=None, metadata={"help": "rows of patches dropped while training, as in PaSST"}
    )
    patchout_time: int | None = field(
        default=None, metadata={"help": "columns of patches dropped while training"}
    )
    mean: float | None = field(
        default=None,
        metadata={"help": "of the data's log-mel values; see modeling-ast stats"},
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
    padding: str | None = field(
        default=None,
        metadata={
            "help": "how clips are padded: to max_length, or to the longest of a batch; by "
            "default as the model's extractor was saved",
            "choices": PADDINGS,
        },
    )

    def __post_init__(self):
        # A recipe's values do not pass argparse's check of the choices.
        for name, choices in (("features", FEATURES), ("padding", (None, *PADDINGS))):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"--{name} is {getattr(self, name)!r}; it must be one of {known}")

    @property
    def source(self) -> str:
        """`model`, which a run needs.

        Raises:
            ValueError: It is missing.
        """
        if self.model is None:
            raise ValueError("--model is missing; give an AST on the Hub, or a directory")
        return self.model


@dataclass
class OptimizerArguments:
    """Rates by layer, and the published optimiser and schedule."""

    published_adam: bool = field(
        default=False, metadata={"help": "Adam, betas (0.95, 0.999), the decay in the gradient"}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "rate of a layer: this times that of the next layer"}
    )
    head_rate: float = field(default=1.0, metadata={"help": "rate of the head: this times others'"})
    decay_first: int | None = field(
        default=None,
        metadata={
            "help": "epochs at the full learning rate before its first fall (--decay-factor)"
        },
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
    average_to: int | None = field(
        default=None,
        metadata={"help": "last epoch of the average of --average-from; without it, of the run"},
    )


@dataclass
class AutoArguments:
    """What the run chooses itself, and which of its weights it keeps."""

    auto: bool = field(
        default=False,
        metadata={
            "help": "choose the numbers that are not given from the clips to train on and the "
            "model, and print each with its reason"
        },
    )
    keep_weights: str = field(
        default="auto",
        metadata={
            "help": "which weights the run ends with: those of the last epoch, of the best one, or "
            "the average of --average-from; auto: those that do best on the validation clips, and "
            "without such clips the last",
            "choices": KEPT,
        },
    )

    def __post_init__(self):
        # A recipe's values do not pass argparse's check of the choices.
        if self.keep_weights not in KEPT:
            raise ValueError(
                f"--keep-weights is {self.keep_weights!r}; it must be one of {', '.join(KEPT)}"
            )


@dataclass
class LengthArguments:
    """How the scores of shorter clips are measured."""

    length_clips: int = field(
        default=200,
        metadata={
            "help": "held-out clips that are judged under both paddings, whole and cut to 0.25, "
            "0.5, 1 seconds and so on; 0: none"
        },
    )


@dataclass
class ResultArguments:
    """What is shown of the results."""

    worst_clips: int = field(
        default=30,
        metadata={
            "help": "clips in worst_clips.html, the page that plays the worst mistakes; 0: no page"
        },
    )

    def __post_init__(self):
        if self.worst_clips < 0:
            raise ValueError(f"--worst-clips is {self.worst_clips}; give 0 or more")


@dataclass
class SearchArguments:
    """A search for good numbers instead of one run; see `search.py`."""

    search_trials: int | None = field(
        default=None,
        metadata={
            "help": "train this many times with other numbers, judged by clips set aside from the "
            "training set, and write the best as a recipe"
        },
    )
    search_space: str | None = field(
        default=None,
        metadata={"help": "YAML file of what to search (default: rates, mixup, rank)"},
    )

    def __post_init__(self):
        if self.search_trials is not None and self.search_trials < 1:
            raise ValueError(f"--search-trials is {self.search_trials}; it must be at least 1")
        if self.search_space is not None and self.search_trials is None:
            raise ValueError("--search-space is for a search; give --search-trials too")


@dataclass
class Arguments:
    """All that can be set, by its kind.

    `given` names what a user has set, which `--auto` leaves as it is.
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
        """What is set for an argument of any kind, by its name."""
        return getattr(self._kind_of(name)[1], name)

    def change(self, name: str, value: Any) -> None:
        """Sets an argument of any kind, by its name."""
        place, kind = self._kind_of(name)
        if isinstance(kind, TrainingArguments):
            # Its __post_init__ is for values of a command line.
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
    """The defaults of a run where those of its classes do not suit."""
    return {
        # Augmentation's own are for AudioSet's clips of ten seconds.
        "mixup_rate": 0.0,
        "frequency_mask": 0,
        "time_mask": 0,
        "report_to": "tensorboard" if is_tensorboard_available() else "none",
        "dataloader_num_workers": loading_workers(usable_cores(), torch.cuda.is_available()),
        # Shares of the run: however short it is, its learning curve has some points.
        "logging_steps": 0.05,
        "eval_strategy": "steps",
        "eval_steps": 0.1,
    }


def usable_cores() -> int:
    """Cores that this process may use, its share of those of the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def loading_workers(cores: int, has_gpu: bool) -> int:
    """Processes that decode clips beside the training, which itself uses a CPU's cores.

    On two cores without a GPU there is no core to spare: one worker makes the demo recipe slower.

    Args:
        cores: That this process may use.
        has_gpu: Whether a GPU trains.
    Returns:
        At most 8.
    """
    return min(8, cores - 1 if has_gpu else cores // 4)


def prepare(training: TrainingArguments) -> None:
    """Sets what holds for every run on audio clips."""
    # The collator reads every column of the data set; Trainer would drop what the model lacks.
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    # One process would hand the batches out only if all had the same length; those of a stream may
    # differ.
    assert isinstance(training.accelerator_config, AcceleratorConfig)  # TrainingArguments made it
    training.accelerator_config.dispatch_batches = False


def contradiction(arguments: Arguments) -> str | None:
    """One sentence on arguments that exclude each other, or None."""
    optimizer, sampling, training = arguments.optimizer, arguments.sampling, arguments.training
    if sampling.average_to is not None and sampling.average_from is None:
        return "--average-to is given without --average-from; give the first epoch too"
    if training.max_steps < 1 and (sampling.average_from or 0) > training.num_train_epochs:
        return (
            f"--average-from is {sampling.average_from} but the run has --num-train-epochs "
            f"{training.num_train_epochs:g}; lower the one or raise the other"
        )
    if arguments.model.patch_size and not arguments.model.from_scratch:
        return "--patch-size is for --from-scratch; trained patches keep their size"
    if arguments.model.from_scratch and (arguments.cheap.freeze or arguments.cheap.lora_rank):
        return "--freeze and --lora-rank keep trained weights; leave --from-scratch out"
    if sampling.mix_whole_set and not arguments.augmentation.mixup_rate:
        return "--mix-whole-set is for a mixup; give --mixup-rate too"
    auto = arguments.auto
    if auto.keep_weights == "average" and sampling.average_from is None and not auto.auto:
        return "--keep-weights average needs --average-from, the first epoch that counts"
    if arguments.search.search_trials is not None and arguments.data.folds is not None:
        return "--search-trials and --folds train in different ways; give one of them"
    if arguments.lengths.length_clips < 0:
        return f"--length-clips is {arguments.lengths.length_clips}; give 0 or more"
    if mistake := contradiction_of_stream(arguments):
        return mistake
    if optimizer.decay_first is not None and 0 < training.warmup_steps < 1:
        return "--warmup-steps is a share of the run; with --decay-first give a number of steps"
    return None


def contradiction_of_stream(arguments: Arguments) -> str | None:
    """The same for a stream, which is read once from its start to its end."""
    if not arguments.data.streaming:
        return None
    if arguments.auto.auto:
        return "--auto measures all clips first; train without --streaming"
    if arguments.sampling.balanced_sampling:
        return "--balanced-sampling counts all labels first; train without --streaming"
    if arguments.sampling.mix_whole_set:
        return "--mix-whole-set draws clips from anywhere; mix within the batch, or do not stream"
    if arguments.data.train_clips is None:
        if arguments.training.max_steps < 1:
            return "--streaming has no known end; give --train-clips (of an epoch) or --max-steps"
        if (arguments.optimizer.decay_first, arguments.sampling.average_from) != (None, None):
            return "--decay-first and --average-from count epochs; give --train-clips too"
    return None


__all__ = [
    "KINDS",
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
