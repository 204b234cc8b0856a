"""Averages of the weights of a run's epochs, and of the predictions of several models.

Follows Gong et al. 2021, section 3.1: the arithmetic mean of the epochs' weights is one model that
beats each of them; ensembles average the sigmoid outputs of models with different seeds or strides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..conversion import WeightMean

MEAN_FILE = "weight_mean.safetensors"


class AverageWeightsCallback(TrainerCallback):
    """Averages the weights at the ends of epochs and saves the mean to `average/` after the run.

    Every checkpoint holds the sum so far, so that an interrupted run resumes with it.

    Args:
        first_epoch, last_epoch: The epochs to average, counted from 1, both included; by default
            all. The paper averages epochs 1 to 5 of 5 on AudioSet, and 6 to 25 of 25 on balanced
            AudioSet. An epoch that `max_steps` ends early counts as one.
        processing_class: Saved beside the model; by default the Trainer's own.
    Raises:
        ValueError: The range holds no epoch, or the run ends before its first one.
    Source: Gong et al. 2021, section 3.1.
    """

    def __init__(self, first_epoch: int = 1, last_epoch: int | None = None, processing_class=None):
        if first_epoch < 1 or (last_epoch is not None and last_epoch < first_epoch):
            raise ValueError(
                f"the epochs to average are {first_epoch} to {last_epoch}; give a first epoch of "
                f"at least 1 and a last epoch that is not before the first"
            )
        self.first_epoch = first_epoch
        self.last_epoch = math.inf if last_epoch is None else last_epoch
        self.processing_class = processing_class
        self._mean = WeightMean()

    def on_train_begin(self, args, state, control, **kwargs):
        if self.first_epoch > state.num_train_epochs:
            raise ValueError(
                f"the first epoch to average is {self.first_epoch} but the run has "
                f"{state.num_train_epochs}; lower first_epoch or train longer"
            )
        self._mean = WeightMean()
        if state.global_step > 0:
            self._resume(_checkpoint(args, state), state)

    def _resume(self, checkpoint: Path, state) -> None:
        file = checkpoint / MEAN_FILE
        whole_epochs = int(state.epoch)
        if file.is_file():
            self._mean = WeightMean.load(file)
        elif whole_epochs >= self.first_epoch:
            raise ValueError(
                f"{file} with the weights averaged before step {state.global_step} is missing; "
                f"resume from an earlier checkpoint that has such a file, or train without "
                f"AverageWeightsCallback and call average_checkpoints"
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Not in on_epoch_end, because the checkpoint of an epoch's last step is written before it.
        if state.epoch == int(state.epoch):
            self._add(int(state.epoch), model)
        self._write_before_checkpoint(args, state, control)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        # on_step_end has added the whole epochs; only an epoch that was ended early is left.
        if state.epoch != int(state.epoch):
            self._add(math.ceil(state.epoch), model)
        self._write_before_checkpoint(args, state, control)

    def _write_before_checkpoint(self, args, state, control) -> None:
        # First, because a run killed while saving must not leave a checkpoint without this file.
        if control.should_save:
            self._write(args, state)

    def _add(self, epoch: int, model) -> None:
        if self.first_epoch <= epoch <= self.last_epoch:
            self._mean.add(_plain_names(model.state_dict()))

    def on_save(self, args, state, control, **kwargs):
        # Another callback may have requested this checkpoint after the events above.
        if not (_checkpoint(args, state) / MEAN_FILE).exists():
            self._write(args, state)

    def _write(self, args, state) -> None:
        if self._mean.count and state.is_world_process_zero:
            checkpoint = _checkpoint(args, state)
            checkpoint.mkdir(parents=True, exist_ok=True)
            self._mean.save(checkpoint / MEAN_FILE)

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if not self._mean.count or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "average"
        model.save_pretrained(folder, state_dict=self._mean.mean())
        processor = self.processing_class or processing_class
        if processor is not None:
            processor.save_pretrained(folder)


def _checkpoint(args, state) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that torch.compile and DistributedDataParallel add."""
    plain = {}
    for name, tensor in weights.items():
        if "_flat_param" in name:
            raise ValueError(
                "the weights are flattened by FSDP version 1; use version 2 (fsdp_version: 2), or "
                "call average_checkpoints after the run"
            )
        plain[name.replace("_orig_mod.", "").removeprefix("module.")] = tensor
    return plain


def ensemble_probabilities(logits: Iterable[Tensor], multi_label: bool = True) -> Tensor:
    """The mean of several models' probabilities for the same clips.

    The models may differ in everything but their labels. The same mean over a run's epochs gives
    the authors' cum_mAP.

    Args:
        logits: For each model (B, C), clips and classes in the same order.
        multi_label: Whether probabilities are sigmoids; else they are softmaxes.
    Returns:
        (B, C), float64, because in float32 very high probabilities round to 1 and tie.
    Raises:
        ValueError: There is no model, or the shapes differ.
    Source: Gong et al. 2021, section 3.1 (Ensemble-S, Ensemble-M).
    """
    total, count = None, 0
    for scores in logits:
        wide = torch.as_tensor(scores).double()
        if total is not None and wide.shape != total.shape:
            raise ValueError(
                f"model {count} gave logits of shape {tuple(wide.shape)}, but the models before it "
                f"gave {tuple(total.shape)}; all must score the same clips and classes"
            )
        probabilities = wide.sigmoid() if multi_label else wide.softmax(-1)
        total = probabilities if total is None else total + probabilities
        count += 1
    if total is None:
        raise ValueError("there are no logits; give those of at least one model")
    return total / count


__all__ = ["AverageWeightsCallback", "ensemble_probabilities"]
