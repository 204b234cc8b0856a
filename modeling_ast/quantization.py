"""A model whose linear layers compute with 8-bit integers, for CPUs.

Patch projection, attention, layer norms and positions do not change; `int8_linear.py` has the
layers.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from .int8_linear import Int8Linear, use_int8
from .modeling_ast import ASTPreTrainedModel

Model = TypeVar("Model", bound=ASTPreTrainedModel)


def quantize_int8(model: Model) -> Model:
    """A copy of a model for CPUs that computes with 8-bit integers; it cannot be trained.

    `save_pretrained` saves it like every model, a quarter as large, and this package loads it
    again: its config says `int8_linear`. Plain transformers cannot load it.

    Logits change by 2 to 4 % of their deviation (root mean square; docs/export.md). All clips of a
    batch share one scale for a layer's input, so that the logits of a clip also depend, as little
    as that, on the other clips of its batch.

    Args:
        model: In float32, on the CPU.
    Returns:
        The copy, in evaluation mode. It takes the same inputs, and AudioTagger accepts it.
    Raises:
        ValueError: The model is not on the CPU, not in float32, or quantized already.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f"the model is in {model.dtype} on {model.device} but 8-bit integers are for float32 "
            f"models on a CPU; call model.float().cpu() first"
        )
    if not any(type(module) is nn.Linear for module in model.modules()):
        raise ValueError("the model has no linear layer in float32; it is quantized already")
    quantized = copy.deepcopy(model)
    use_int8(quantized)
    quantized.config.int8_linear = True
    return quantized.eval()


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantize_int8` made the model."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


__all__ = ["is_quantized", "quantize_int8"]
