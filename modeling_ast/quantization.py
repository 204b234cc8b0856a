"""A model whose linear layers compute with 8-bit integers, for CPUs.

Weights become integers once, each output channel with its own scale; what comes into a layer
becomes integers at each call ("dynamic"), so that no calibration data is needed. Patch projection,
attention, layer norms and positions stay as they are.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

from .modeling_ast import ASTPreTrainedModel

# Where the classes of torch's quantized layers stand.
QUANTIZED = "torch.ao.nn.quantized"
Model = TypeVar("Model", bound=ASTPreTrainedModel)


def quantize_int8(model: Model) -> Model:
    """A copy of a model for CPUs that computes with 8-bit integers; it cannot be trained or saved.

    Logits move by 2 to 5 % of their deviation (root mean square; tests/benchmarks/README.md). A
    layer's input has one scale for all the clips that it takes at once, so that the logits of a
    clip depend, by as little, on the clips beside it.

    Args:
        model: In float32, on the CPU.
    Returns:
        The copy, in evaluation mode. It takes the same inputs, and AudioTagger takes it.
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
    # torch warns that this part will move to torchao some day, which would be a new dependency.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        each_channel = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        return torch.ao.quantization.quantize_dynamic(model, each_channel)


def is_quantized(model: nn.Module) -> bool:
    """Whether `quantize_int8` made the model."""
    return any(type(module).__module__.startswith(QUANTIZED) for module in model.modules())


__all__ = ["is_quantized", "quantize_int8"]
