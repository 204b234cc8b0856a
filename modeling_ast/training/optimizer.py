"""The published optimiser and learning-rate schedules, and learning rates that differ by layer.

Follows Gong et al. 2021, section 3.1, and the authors' src/traintest.py and egs/*/run.sh.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

ADAM_BETAS = (0.95, 0.999)
WEIGHT_DECAY = 5e-7
WARMUP_STEPS = 1000

# "layers.3." in transformers 5, "layer.3." in files, "blocks.3." in timm.
LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|patch_embed)\.")
HEAD = re.compile(r"(?:^|\.)classifier\.")


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    layer_decay: float = 1.0,
    head_rate: float = 1.0,
    weight_decay: float = WEIGHT_DECAY,
) -> list[dict]:
    """Trainable parameters by depth, each group with its own learning rate.

    With L layers, layer l (from 0) has the rate `learning_rate` * layer_decay^(L - l), and the
    embeddings have `learning_rate` * layer_decay^(L + 1). The final layer norm has `learning_rate`
    itself, and the head `head_rate` times it.

    Args:
        learning_rate: Learning rate of the final layer norm.
        layer_decay: In (0, 1]; 1 is the paper's: one rate for all layers.
        head_rate: Above 0; more than 1 lets a new head learn faster.
        weight_decay: The same for all parameters, as published.
    Returns:
        Groups for any torch optimiser, from the embeddings to the head, with a "name" each.
    Raises:
        ValueError: A number is out of its range.
    Source: Bao et al. 2021 (BEiT), appendix, for the decay; the authors' `head_lr` for the head.
    """
    _check_positive(learning_rate=learning_rate, head_rate=head_rate)
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be 0 or more")
    # Frozen layers count too, because a layer's rate depends only on its position.
    indices = [_layer_index(name) for name, _ in model.named_parameters()]
    num_layers = 1 + max((index for index in indices if index is not None), default=-1)
    members: dict[tuple[int, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault(_place(name, num_layers), []).append(parameter)
    groups = []
    for (depth, part), parameters in sorted(members.items(), key=lambda item: item[0]):
        rate = learning_rate * layer_decay ** max(0, num_layers + 1 - depth)
        rate *= head_rate if part == "head" else 1.0
        group = {"name": part, "params": parameters, "lr": rate, "weight_decay": weight_decay}
        groups.append(group)
    return groups


def _place(name: str, num_layers: int) -> tuple[int, str]:
    """Depth, from 0 for the embeddings to L + 2 for the head, and a name for it."""
    index = _layer_index(name)
    if index is not None:
        return index + 1, f"layer {index}"
    if EMBEDDINGS.search(name):
        return 0, "embeddings"
    return (num_layers + 2, "head") if HEAD.search(name) else (num_layers + 1, "final norm")


def _layer_index(name: str) -> int | None:
    match = LAYER.search(name)
    return int(match.group(1)) if match else None


def published_adam(
    model: nn.Module,
    learning_rate: float,
    layer_decay: float = 1.0,
    head_rate: float = 1.0,
    weight_decay: float = WEIGHT_DECAY,
) -> torch.optim.Adam:
    """Adam as published: betas (0.95, 0.999), and a weight decay that is part of the gradient.

    Args, Raises: as `parameter_groups`.
    Source: the authors' src/traintest.py: Adam, not AdamW.
    """
    groups = parameter_groups(model, learning_rate, layer_decay, head_rate, weight_decay)
    return torch.optim.Adam(groups, lr=learning_rate, betas=ADAM_BETAS, weight_decay=weight_decay)


def layered_adamw(
    model: nn.Module,
    learning_rate: float,
    layer_decay: float = 1.0,
    head_rate: float = 1.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW with rates that differ by layer; only matrices and kernels decay.

    Biases, layer norms, the prefix tokens and the positions do not decay, because shrinking them
    does not make the model simpler.

    Args, Raises: as `parameter_groups`; `betas` and `epsilon` as torch's AdamW.
    Source: Bao et al. 2021 (BEiT) and He et al. 2022 (MAE), whose fine-tuning does so.
    """
    groups = []
    for group in parameter_groups(model, learning_rate, layer_decay, head_rate, weight_decay):
        # Prefix tokens and positions have three axes, but the first one has size 1.
        is_matrix = [p.ndim >= 2 and p.shape[0] > 1 for p in group["params"]]
        for decays in (True, False):
            chosen = [p for p, matrix in zip(group["params"], is_matrix) if matrix == decays]
            if chosen:
                own = {"params": chosen, "weight_decay": weight_decay if decays else 0.0}
                groups.append({**group, **own})
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon)


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class EpochDecay:
    """A learning rate that is lowered by a factor after some epochs, with a linear warm-up.

    At step s (from 0, over all epochs) in epoch e (from 0) the full rate is multiplied by
    min(1, s / warmup_steps) and by factor^k, where k counts the milestones first, first + every,
    ... up to e.

    Args:
        first: Epoch (from 0) of the first decay: so many epochs have the full rate.
        every: Number of epochs between two decays.
        factor: Factor that each decay multiplies the rate by.
        warmup_steps: Number of optimiser steps of the warm-up; 0: no warm-up.
    Source: the authors' src/traintest.py (MultiStepLR over range(first, 1000, every)). Their
        warm-up is a staircase, updated every 50 steps; this is the line through its edges.
    """

    first: int
    every: int = 1
    factor: float = 0.5
    warmup_steps: int = 0

    def __post_init__(self):
        _check_positive(every=self.every, factor=self.factor)
        for name in ("first", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    def share(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the full rate at optimiser step `step`, from 0."""
        epoch = step // steps_per_epoch
        falls = 0 if epoch < self.first else 1 + (epoch - self.first) // self.every
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * self.factor**falls

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """The schedule as a torch scheduler, stepped after each optimiser step, as Trainer does.

        Args:
            steps_per_epoch: Optimiser steps: ceil(batches of one process / accumulation steps).
        """
        _check_positive(steps_per_epoch=steps_per_epoch)
        return LambdaLR(optimizer, lambda step: self.share(step, steps_per_epoch))


# The published schedules by data set, from the authors' egs/*/run.sh.
SCHEDULES = {
    "audioset_full": EpochDecay(first=2, every=1, factor=0.5, warmup_steps=WARMUP_STEPS),
    "audioset_balanced": EpochDecay(first=10, every=5, factor=0.5, warmup_steps=WARMUP_STEPS),
    "esc50": EpochDecay(first=5, every=1, factor=0.85),
    "speech_commands": EpochDecay(first=5, every=1, factor=0.85),
}


__all__ = [
    "ADAM_BETAS",
    "SCHEDULES",
    "WARMUP_STEPS",
    "WEIGHT_DECAY",
    "EpochDecay",
    "layered_adamw",
    "parameter_groups",
    "published_adam",
]
