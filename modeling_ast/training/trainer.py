"""ASTTrainer: transformers' Trainer with the parts of this folder.

The training loop is Trainer's. This class only adds a second collator, a sampler, an optimiser, a
schedule, and features computed on the training device. Each is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from ..clip_parts import mean_logits
from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import activation
from ..modeling_ast import ASTForAudioClassification
from .augmentation import Augmentation
from .batches import add_features
from .optimizer import EpochDecay
from .progress import replaced_callbacks
from .sampling import EpochCallback


def output_folder(arguments: TrainingArguments) -> Path:
    """The output directory of a run."""
    # TrainingArguments choose one where none is given.
    assert arguments.output_dir is not None
    return Path(arguments.output_dir)


class ASTTrainer(Trainer):
    """Trainer for audio; all arguments of Trainer, and these:

    Args:
        validation_dataset: Clips set aside from the training set, to choose between weights; see
            `kept_weights.py`.
        eval_collator: Collates evaluation batches; by default `data_collator` does, with its
            augmentation.
        train_sampler: Chooses the training clips, e.g. `BalancedSampler`.
        make_optimizer: Model -> optimiser, e.g. `partial(published_adam, learning_rate=1e-5)`.
            Unlike Trainer's `optimizers` it works with FSDP, which replaces the parameters first.
        epoch_decay: The schedule; by default that of TrainingArguments.
        extractor: Computes the features of batches that hold waveforms, on the training device.
        augmentation: Applied to these features in training; see `add_features`.
    Raises:
        ValueError: TrainingArguments switch FSDP on, but accelerate would silently not shard.
    """

    # For mypy: Trainer declares that the model may be None.
    model: ASTForAudioClassification

    def __init__(
        self,
        *args,
        validation_dataset: Dataset | None = None,
        eval_collator: Callable | None = None,
        train_sampler: Sampler | None = None,
        make_optimizer: Callable[[nn.Module], Optimizer] | None = None,
        epoch_decay: EpochDecay | None = None,
        extractor: ASTFeatureExtractor | None = None,
        augmentation: Augmentation | None = None,
        **kwargs,
    ):
        self.validation_dataset = validation_dataset
        self.eval_collator = eval_collator
        self.train_sampler = train_sampler
        self.make_optimizer = make_optimizer
        self.epoch_decay = epoch_decay
        self.extractor = extractor
        self.augmentation = augmentation
        super().__init__(*args, **kwargs)
        drawing = [x for x in (train_sampler, self.data_collator) if hasattr(x, "set_epoch")]
        self.add_callback(EpochCallback(*drawing))
        for theirs, ours in replaced_callbacks().items():
            if self.pop_callback(theirs) is not None:
                self.add_callback(ours)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp:
            # By default accelerate shards the embeddings, and then again the patch projection
            # inside them, which torch refuses.
            self.args.fsdp_plugin_args.setdefault("transformer_cls_names_to_wrap", "ASTLayer")
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError(
                f"fsdp is switched on, but accelerate shards only over several GPUs and this run "
                f"has {self.args.world_size} process(es) on {self.args.device}; start it with "
                f"torchrun or accelerate launch on GPUs, or without fsdp"
            )

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        # A DataLoader draws its seed from torch's global generator. An evaluation must not change
        # the draws of the training after it, because a run that resumes from a checkpoint does not
        # repeat the evaluation.
        with torch.random.fork_rng(devices=()):
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _collating_for_evaluation(self):
        training_collator = self.data_collator
        self.data_collator = self.eval_collator or training_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return self.train_sampler or super()._get_train_sampler(train_dataset)

    def create_optimizer(self, model=None) -> Optimizer:
        if self.optimizer is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer(self.model if model is None else model)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None):
        if self.lr_scheduler is None and self.epoch_decay is not None:
            batches = len(self.get_train_dataloader())
            steps_per_epoch = -(-batches // self.args.gradient_accumulation_steps)
            optimizer = self.optimizer if optimizer is None else optimizer
            assert optimizer is not None  # Trainer creates it before the schedule
            self.lr_scheduler = self.epoch_decay.scheduler(optimizer, steps_per_epoch)
        return super().create_scheduler(num_training_steps, optimizer)

    def create_model_card(self, *args, **kwargs) -> None:
        """As in Trainer, but keeps an existing card, which every push would overwrite."""
        if not (output_folder(self.args) / "README.md").exists():
            super().create_model_card(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As in Trainer; a clip that comes in parts gets the logits of their mean scores.

        The loss is the mean over the parts. The parts of a batch are computed a few at a time,
        because a long clip has many.
        """
        inputs = dict(inputs)
        if (num_parts := inputs.pop("num_parts", None)) is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        num_parts = num_parts.tolist()
        most = sum(num_parts) if self._must_step_together() else self.args.eval_batch_size
        blocks = [
            {name: tensor[start : start + most] for name, tensor in inputs.items()}
            for start in range(0, sum(num_parts), most)
        ]
        sizes = [len(next(iter(block.values()))) for block in blocks]
        step = super().prediction_step
        losses, part_logits, part_labels = zip(
            *(step(model, block, prediction_loss_only, ignore_keys) for block in blocks)
        )
        loss = None
        if losses[0] is not None:
            loss = sum(loss * size for loss, size in zip(losses, sizes)) / sum(sizes)
        if prediction_loss_only:
            return loss, None, None
        sigmoid = activation("auto", self.model.config) == "sigmoid"
        logits = mean_logits(torch.cat(part_logits), num_parts, sigmoid)  # (B, C)
        if part_labels[0] is None:
            return loss, logits, None
        first_parts = torch.tensor([0, *num_parts[:-1]]).cumsum(0)  # (B,)
        labels = torch.cat(part_labels)
        return loss, logits, labels[first_parts.to(labels.device)]

    def _must_step_together(self) -> bool:
        """Whether all processes must run the model equally often, as each holds a shard of it."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Moves a batch to the device, and computes the features of waveforms there."""
        inputs = super()._prepare_inputs(inputs)
        if "waveforms" not in inputs:
            return inputs
        if self.extractor is None:
            raise ValueError(
                "a batch holds waveforms but the trainer has no extractor; give "
                "ASTTrainer(extractor=...) or let the collator compute features=True"
            )
        augmentation = self.augmentation if self.model.training else None
        return add_features(inputs, self.extractor, augmentation)


__all__ = ["ASTTrainer", "output_folder"]
