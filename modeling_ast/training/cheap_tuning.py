"""Training a part of the weights: frozen layers, and low-rank adapters (LoRA) from peft.

Both make the state of the optimiser small. Frozen layers also save the time and memory of their
gradients. An adapter is saved as a small folder that names its base model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from ..adapters import ADAPTER_FILES, WEIGHT_FILES, need_peft
from ..modeling_ast import ASTForAudioClassification
from .trainer import ASTTrainer, output_folder

if TYPE_CHECKING:
    from .adapted_model import AdaptedAST

ALL = "all"
# Default alpha / rank. An adapter's output is scaled by alpha / rank, so by 2 for every rank.
ALPHA_OF_RANK = 2


@dataclass
class CheapArguments:
    """Which of the weights are trained."""

    freeze: str | None = field(
        default=None,
        metadata={
            "help": "N: freeze the embeddings and the first N layers (0: only the embeddings); "
            "all: train only the head"
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "train an adapter of this rank (LoRA, 4 to 32) and the head; the adapter is "
            "saved instead of the model"
        },
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={"help": f"adapter's scale (default: {ALPHA_OF_RANK} times the rank)"},
    )
    merge: bool = field(
        default=False,
        metadata={"help": "save the whole model, with the adapter's weights added to its own"},
    )

    def __post_init__(self):
        if self.freeze is not None and self.freeze != ALL and not self.freeze.isdecimal():
            raise ValueError(
                f"--freeze is {self.freeze!r}; it must be a number of layers, or {ALL!r}"
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"--lora-rank is {self.lora_rank}; it must be at least 1")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ValueError(f"--lora-alpha is {self.lora_alpha}; it must be above 0")
        if self.lora_rank is None and (self.lora_alpha is not None or self.merge):
            flag = "--merge" if self.merge else "--lora-alpha"
            raise ValueError(f"{flag} needs an adapter; give --lora-rank too")
        if self.lora_rank is not None and self.freeze == ALL:
            raise ValueError("--freeze all leaves no layer to adapt; leave --lora-rank out")

    def num_frozen(self, num_layers: int) -> int | None:
        """Number of frozen layers; None where not even the embeddings are frozen.

        Args:
            num_layers: Number of layers of the model.
        Raises:
            ValueError: More layers should be frozen than the model has.
        """
        if self.freeze is None:
            return None
        count = num_layers if self.freeze == ALL else int(self.freeze)
        if count > num_layers:
            raise ValueError(
                f"--freeze is {count} but the model has {num_layers} layers; give at most that"
            )
        return count


def train_a_part(
    model: ASTForAudioClassification, arguments: CheapArguments
) -> ASTForAudioClassification | AdaptedAST:
    """Freezes the weights that the arguments name, and adds an adapter if they give a rank.

    Args:
        model: With the head to train; changed in place.
        arguments: Which weights are trained.
    Returns:
        The model with its adapter, or `model` itself if there is none.
    Raises:
        MissingExtra: peft is not installed.
        ValueError: The model has too few layers.
    """
    num_layers = model.config.num_hidden_layers
    num_frozen = arguments.num_frozen(num_layers)
    if num_frozen is not None:
        freeze(model, num_frozen)
        if arguments.freeze == ALL:
            model.freeze_base_model()
    if arguments.lora_rank is None:
        return model
    return _adapted(model, arguments, range(num_frozen or 0, num_layers))


def freeze(model: ASTForAudioClassification, num_layers: int) -> None:
    """Keeps the weights of the embeddings and of the first layers as they are.

    Frozen layers compute as in evaluation, without dropout, because they cannot adapt to it.
    Patchout still drops patches, because the layers above are trained. No gradients are computed
    below the first trained layer.

    Args:
        num_layers: Number of layers to freeze, from the input on.
    """
    encoder = model.audio_spectrogram_transformer
    encoder.embeddings.requires_grad_(False)
    as_in_evaluation(encoder.embeddings.dropout)
    for layer in encoder.layers[:num_layers]:
        layer.requires_grad_(False)
        as_in_evaluation(layer)


def as_in_evaluation(module: nn.Module) -> None:
    """Makes a module compute as in evaluation, even while the model is trained."""
    # A single call of eval() would not last: Trainer calls model.train() before each step.
    module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, inputs: Any) -> None:
    module.eval()


def _adapted(
    model: ASTForAudioClassification, arguments: CheapArguments, layers: range
) -> AdaptedAST:
    rank, alpha = arguments.lora_rank, arguments.lora_alpha
    assert rank is not None  # the caller has checked it
    if not layers:
        raise ValueError(
            f"--freeze is {arguments.freeze}, which is all layers of the model and leaves none to "
            f"adapt; freeze fewer, or leave --lora-rank out"
        )
    need_peft("--lora-rank")
    from .adapted_model import add_adapter

    return add_adapter(model, rank, ALPHA_OF_RANK * rank if alpha is None else alpha, layers)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has an adapter that is not merged."""
    return hasattr(model, "merge_and_unload")


@contextmanager
def as_saved(trainer: ASTTrainer, arguments: CheapArguments) -> Iterator[None]:
    """Inside the context the trainer saves the adapter, or with `merge` the merged model.

    An earlier run may have left weights of the other kind in the output directory. They are
    removed, because a folder with both would be ambiguous.

    Args:
        trainer: After the training.
        arguments: The arguments of the run.
    """
    trained, wrapped = trainer.model, trainer.model_wrapped
    if arguments.merge:
        adapted: Any = copy.deepcopy(trained)
        trainer.model = trainer.model_wrapped = adapted.merge_and_unload()
    if trainer.is_world_process_zero():
        for name in WEIGHT_FILES if is_adapted(trainer.model) else ADAPTER_FILES:
            (output_folder(trainer.args) / name).unlink(missing_ok=True)
    try:
        yield
    finally:
        trainer.model, trainer.model_wrapped = trained, wrapped


def how_trained(model: nn.Module, arguments: CheapArguments) -> str:
    """A sentence that says which weights are trained.

    Args:
        model: From `train_a_part`, with the same arguments.
    """
    weights = list(model.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    parts = []
    if arguments.freeze == ALL:
        parts.append("the encoder was frozen and only the head was trained")
    elif arguments.freeze is not None:
        parts.append(f"the embeddings and the first {arguments.freeze} layers were frozen")
    if arguments.lora_rank is not None:
        merged = ", merged into the model" if arguments.merge else ""
        parts.append(
            f"a LoRA adapter of rank {arguments.lora_rank} and the head were trained{merged}"
        )
    if not parts:
        return "All weights were trained."
    sentence = "; ".join(parts)
    share = f"{trained:,} of {total:,} weights, {trained / total:.1%}"
    return f"{sentence[0].upper()}{sentence[1:]} ({share})."


__all__ = [
    "CheapArguments",
    "as_in_evaluation",
    "as_saved",
    "freeze",
    "how_trained",
    "is_adapted",
    "train_a_part",
]
