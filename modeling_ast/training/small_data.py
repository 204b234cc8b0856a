"""Hyperparameters for a fine-tuning on 10 to 2,000 clips, chosen by the clips and the model.

Each rule below is a plain function of a few measured numbers, and gives a value with its reason in
a short text. `choose` applies all rules, except those for values that the user gave. No rule uses
the held-out clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from ..pretrained import load_config, load_extractor
from .arguments import Arguments
from .choices import GIVEN, Choice
from .classes import label_column, label_names
from .clips import BadClips, ClipReader
from .normalization import Moments, measure_clips

# Largest number of clips that are measured.
MEASURED = 2000
# With fewer clips than this none are set aside to choose between weights: they would be too few for
# a sure choice, and are more useful in the training.
FEWEST_TO_DIVIDE = 60
VALIDATION_SHARE = 0.15
# The published input length for AudioSet; longer inputs cost more than they gain.
LONGEST_INPUT = 1024
# Largest input length as a multiple of the median clip's length.
MOST_OF_USUAL = 2
# Share of a clip's frames and of the mel bins that the widest mask hides, as published for ESC-50:
# 96 of 512 frames, and 24 of 128 mel bins.
MASKED_SHARE = 3 / 16
# Largest change of speed, as a share: from 1 / 1.2 to 1.2. See docs/what_we_measured.md.
SPEED_CHANGE = 0.2
# The shortest parts of clips that are trained on, as a share of the input, see docs/short_clips.md.
SHORTEST_PART = 1 / 4
# Width of a pretrained model -> its learning rate (AdamW, batches of 16). The rate of the small
# model was measured; the rate of the base size is the usual one.
RATES = {128: 1e-3, 768: 5e-5}
# Layers from which on a model is deep: its lower layers get smaller rates, and some are skipped.
DEEP = 6
# The new matrices of an adapter need larger steps (Hu et al. 2021, appendix D).
ADAPTER_FACTOR = 10
# For random weights of width 128; wider models get a smaller rate (Yang et al. 2021, muP).
SCRATCH_RATE = 1e-3
# Number of clips that are drawn in a run, over all epochs.
DRAWS, SCRATCH_DRAWS = 8000, 16000
# Fewest and most epochs.
EPOCHS, SCRATCH_EPOCHS = (10, 60), (20, 120)
WARMUP_SHARE = 0.1
# Sampling is balanced if the commonest class has this many times as many clips as the rarest.
IMBALANCE = 5
# Number of evaluations in a run, and of logged values of its training loss.
EVALUATIONS, LOSSES = 12, 40


@dataclass(frozen=True)
class Facts:
    """The facts that the choices depend on.

    Args:
        num_clips: Number of training clips.
        class_counts: Number of training clips of each class that has any.
        exclusive: Whether a clip has exactly one label.
        num_frames: Number of frames of each measured clip, at the model's frame shift.
        moments: Moments of the log-mel values of the measured clips.
        max_length, num_mel_bins, patch_frames, time_stride: Sizes of the model's input.
        width, num_layers: Sizes of the model.
        mean, std: Statistics that the model's extractor normalises with.
        pretrained: Whether the model starts from trained weights.
        adapted: Whether an adapter is trained instead of these weights.
        num_processes: Number of processes that share a batch.
    """

    num_clips: int
    class_counts: Sequence[int]
    exclusive: bool
    num_frames: Sequence[int]
    moments: Moments
    max_length: int
    num_mel_bins: int
    patch_frames: int
    time_stride: int
    width: int
    num_layers: int
    mean: float
    std: float
    pretrained: bool
    adapted: bool = False
    num_processes: int = 1


def measure(arguments: Arguments, train: Dataset, exclusive: bool) -> Facts:
    """Measures the training clips, at most `MEASURED` of them, and reads the model's config.

    Args:
        arguments: The arguments of the run; their changes to the model's input are used.
        train: The clips to train on.
        exclusive: Whether a clip has exactly one label.
    Raises:
        OSError, ValueError: The model, or every one of the clips, cannot be read.
    """
    given, training, data = arguments.model, arguments.training, arguments.data
    config, extractor = load_config(given.source), load_extractor(given.source)
    patch_frames = given.patch_size[-1] if given.patch_size else config.patch_shape[1]
    spread = np.linspace(0, len(train) - 1, min(len(train), MEASURED)).round().astype(int)
    reader = ClipReader.for_extractor(extractor, audio_column=data.audio_column, root=data.root)
    with TemporaryDirectory() as folder:
        # Bad clips are left out here; the training lists and counts them.
        bad = BadClips(Path(folder) / "bad_clips.txt", len(train), max_share=1.0)
        measures = measure_clips(
            train.select(spread),
            extractor,
            reader,
            bad,
            num_workers=training.dataloader_num_workers,
        )
    labels = label_names(train, label_column(data, train))
    return Facts(
        num_clips=len(train),
        class_counts=list(Counter(label for row in labels for label in row).values()),
        exclusive=exclusive,
        num_frames=measures.num_frames,
        moments=measures.moments,
        max_length=config.max_length,
        num_mel_bins=config.num_mel_bins,
        patch_frames=patch_frames,
        time_stride=given.time_stride or config.time_stride,
        width=config.hidden_size,
        num_layers=config.num_hidden_layers,
        mean=extractor.mean,
        std=extractor.std,
        pretrained=not given.from_scratch,
        adapted=arguments.cheap.lora_rank is not None,
        num_processes=training.world_size,
    )


def validation_share(num_clips: int) -> Choice:
    """The share of the training clips that is set aside to choose between weights."""
    if num_clips < FEWEST_TO_DIVIDE:
        return Choice(
            "validation_share", None, f"{num_clips} training clips are too few to set some aside"
        )
    reason = f"{num_clips} training clips are enough to set some aside for choosing the weights"
    return Choice("validation_share", VALIDATION_SHARE, reason)


def max_length(facts: Facts) -> Choice:
    """An input length that holds nine of ten clips, but at most twice the median clip's length.

    A few long clips should not make every batch long and the trained positions stretched. The
    length is rounded up to whole patches.
    """
    fitting = float(np.percentile(facts.num_frames, 90))
    most = MOST_OF_USUAL * float(np.median(facts.num_frames))
    wanted = math.ceil(min(fitting, most))
    why = "nine of ten clips are no longer than" if fitting <= most else "twice the median length:"
    longest = max(facts.num_frames)
    # If a few frames more are enough for the longest clip, its length is taken.
    if longest <= 1.25 * wanted:
        wanted, why = longest, "the longest clip has"
    limit = max(LONGEST_INPUT, facts.max_length)
    if wanted > limit:
        wanted, why = limit, "the longest input:"
    beyond = max(0, wanted - facts.patch_frames)
    frames = facts.patch_frames + math.ceil(beyond / facts.time_stride) * facts.time_stride
    is_own = wanted <= facts.max_length <= 1.1 * frames
    chosen = facts.max_length if is_own else frames
    if is_own:
        reason = "the model's own"
    else:
        rounded = ", rounded up to whole patches" if frames != wanted else ""
        reason = f"{why} {wanted} frames of 10 ms{rounded}"
    share = np.mean(np.asarray(facts.num_frames) <= chosen)
    return Choice("max_length", chosen, f"{reason}; {share:.0%} of the clips to train on fit whole")


def statistics(facts: Facts) -> list[Choice]:
    """Mean and standard deviation that normalise log-mel values: those that trained weights know,
    or those of the training clips."""
    count, mean, std = len(facts.num_frames), facts.moments.mean, facts.moments.std
    if facts.pretrained:
        reason = "the model's own, which its weights know; that of {} clips to train on is {:.4g}"
        return [
            Choice("mean", facts.mean, reason.format(count, mean)),
            Choice("std", facts.std, reason.format(count, std)),
        ]
    reason = f"measured, of the log-mel values of {count} clips to train on"
    return [Choice("mean", round(mean, 4), reason), Choice("std", round(std, 4), reason)]


def masks(facts: Facts, frames: int) -> list[Choice]:
    """SpecAugment's masks, in proportion to the mel bins and to the median clip's length.

    Args:
        frames: `max_length` of the run.
    """
    median = min(frames, int(np.median(facts.num_frames)))
    share = f"{MASKED_SHARE:.3g}"
    return [
        Choice(
            "frequency_mask",
            round(MASKED_SHARE * facts.num_mel_bins),
            f"{share} of the {facts.num_mel_bins} mel bins, as published for ESC-50",
        ),
        Choice(
            "time_mask",
            round(MASKED_SHARE * median),
            f"{share} of the median clip's {median} frames, as published for ESC-50",
        ),
    ]


def min_length(facts: Facts, frames: int) -> Choice:
    """The shortest part of a clip that is trained on: at least one patch.

    Args:
        frames: `max_length` of the run.
    """
    wanted, patch = round(SHORTEST_PART * frames), facts.patch_frames
    length = "one patch" if wanted < patch else f"{SHORTEST_PART:g} of the longest input"
    reason = f"{length}: parts of clips train too, so that the model knows short clips"
    return Choice("min_length", max(patch, wanted), reason)


def rates(facts: Facts) -> list[Choice]:
    """The learning rate, its decay from layer to layer, and the factor for the head."""
    width = facts.width
    if not facts.pretrained:
        rate = min(SCRATCH_RATE, SCRATCH_RATE * min(RATES) / width)
        reason = f"random weights need larger steps, wider models smaller ones (width {width})"
        return [
            Choice("learning_rate", float(f"{rate:.2g}"), reason),
            Choice("layer_decay", 1.0, "all layers start from random weights"),
            Choice("head_rate", 1.0, "so does the head"),
        ]
    (small, large), (high, low) = RATES.keys(), RATES.values()
    slope = math.log(low / high) / math.log(large / small)
    rate = high * (width / small) ** slope
    reason = f"between {high:g} for trained weights of width {small} and {low:g} for {large}"
    if facts.adapted:
        rate *= ADAPTER_FACTOR
        reason += f", times {ADAPTER_FACTOR} for an adapter, up to {high:g}"
    rate = float(f"{min(high, rate):.2g}")
    head_rate = float(f"{min(10.0, high / rate):.2g}")
    return [
        Choice("learning_rate", rate, reason),
        layer_decay(facts.num_layers),
        Choice("head_rate", head_rate, f"the head is new: up to ten times, at most {high:g}"),
    ]


def layer_decay(num_layers: int) -> Choice:
    """Smaller learning rates for the lower layers of a pretrained model, if it is deep."""
    if num_layers < DEEP:
        reason = f"{num_layers} layers all learn; from {DEEP} on lower ones should change less"
        return Choice("layer_decay", 1.0, reason)
    reason = "lower layers have general features and should change less"
    return Choice("layer_decay", 0.75, reason)


def batch_size(num_clips: int, num_processes: int = 1) -> Choice:
    """The batch size: small for few clips, so that an epoch has some steps."""
    size = 16 if num_clips >= FEWEST_TO_DIVIDE else 8
    reason = f"{num_clips} clips to train on"
    if num_processes > 1:
        reason += f": {size} clips over {num_processes} processes"
    return Choice("per_device_train_batch_size", max(1, size // num_processes), reason)


def epochs(num_clips: int, pretrained: bool) -> Choice:
    """The number of epochs that draws about `DRAWS` clips in all, within bounds."""
    draws = DRAWS if pretrained else SCRATCH_DRAWS
    fewest, most = EPOCHS if pretrained else SCRATCH_EPOCHS
    wanted = round(draws / num_clips)
    count = min(most, max(fewest, wanted))
    start = "trained" if pretrained else "random"
    if count == wanted:
        reason = f"about {draws} clips in all, as usual from {start} weights"
    else:
        bound = "most" if count < wanted else "fewest"
        reason = f"the {bound} epochs from {start} weights: {count * num_clips} clips in all"
    return Choice("num_train_epochs", float(count), reason)


def regularisers(facts: Facts) -> list[Choice]:
    """The settings that keep a model from memorising its few clips."""
    depth = 0.1 if facts.num_layers >= DEEP else 0.0
    return [
        Choice("mixup_rate", 0.5, "as published; the labels of both clips count by their shares"),
        Choice(
            "max_speed_change",
            SPEED_CHANGE,
            "other speakers and instruments are higher or lower; 0 if pitch tells your labels",
        ),
        Choice("max_gain_db", 6.0, "recordings differ in level"),
        Choice(
            "drop_path_rate",
            depth,
            f"{facts.num_layers} layers; with {DEEP} or more, some are skipped",
        ),
        Choice("weight_decay", 0.05, "keeps weights small, as there are few clips"),
    ]


def balance(class_counts: Sequence[int]) -> Choice:
    """Whether clips of rare classes are drawn more often."""
    most, fewest = max(class_counts), min(class_counts)
    ratio = most / fewest
    reason = f"the commonest class has {most} clips to train on, the rarest {fewest}"
    return Choice("balanced_sampling", ratio >= IMBALANCE, reason)


def schedule(total_steps: int, steps_of_epoch: int) -> list[Choice]:
    """The learning-rate schedule, and when the run evaluates, saves and logs.

    Args:
        total_steps, steps_of_epoch: Optimiser steps of the run, and of an epoch.
    """
    between = max(1, round(total_steps / EVALUATIONS))
    reason = f"{total_steps} steps, evaluated about {total_steps // between} times"
    num_epochs = math.ceil(total_steps / steps_of_epoch)
    chosen = [
        Choice("warmup_steps", WARMUP_SHARE, "of the run: a new head must not disturb the rest"),
        Choice("lr_scheduler_type", SchedulerType.COSINE, "ends at 0: weights settle at the end"),
        Choice("eval_strategy", IntervalStrategy.STEPS, reason),
        Choice("eval_steps", between, reason),
        Choice("save_strategy", SaveStrategy.STEPS, "each evaluated state can be kept"),
        Choice("save_steps", between, "each evaluated state can be kept"),
        Choice("logging_steps", max(1, total_steps // LOSSES), "for the learning curve"),
    ]
    if num_epochs >= 4:
        first = num_epochs - num_epochs // 4 + 1
        reason = f"the last quarter of {num_epochs} epochs, as an alternative to the last epoch"
        chosen.append(Choice("average_from", first, reason))
    return chosen


def choose(arguments: Arguments, facts: Facts) -> list[Choice]:
    """Sets all arguments that this file chooses and the user did not give.

    Args:
        arguments: Changed in place, except those that `arguments.given` names.
        facts: From `measure`.
    Returns:
        All arguments that this file chooses, including those that were given; without the epochs
        if `max_steps` overrides them.
    """
    done: list[Choice] = []

    def take(*choices: Choice) -> None:
        for choice in choices:
            if choice.name in arguments.given:
                done.append(Choice(choice.name, arguments.value(choice.name), GIVEN))
            else:
                arguments.change(choice.name, choice.value)
                done.append(choice)

    take(max_length(facts), *statistics(facts))
    frames = arguments.value("max_length") or facts.max_length
    take(min_length(facts, frames), *masks(facts, frames))
    take(*rates(facts), batch_size(facts.num_clips, facts.num_processes))
    if arguments.training.max_steps < 1:  # otherwise max_steps is the length of the run
        take(epochs(facts.num_clips, facts.pretrained))
    take(*regularisers(facts), balance(facts.class_counts))
    take(*schedule(*steps(arguments, facts.num_clips)))
    return done


def steps(arguments: Arguments, num_clips: int) -> tuple[int, int]:
    """Optimiser steps of the run, and of an epoch."""
    training = arguments.training
    batch = training.train_batch_size * training.world_size
    batches = math.ceil(num_clips / batch)
    of_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    total = training.max_steps
    if total < 1:
        total = math.ceil(training.num_train_epochs * of_epoch)
    return total, of_epoch


__all__ = [
    "MEASURED",
    "Facts",
    "balance",
    "batch_size",
    "choose",
    "epochs",
    "masks",
    "max_length",
    "measure",
    "min_length",
    "rates",
    "regularisers",
    "schedule",
    "statistics",
    "validation_share",
]
