"""A linear layer that computes with 8-bit integers on a CPU.

Weights are integers with a scale for each output channel. Inputs are converted to integers at each
call ("dynamic" quantization), so that no calibration data is needed. Weights are plain tensors,
which are saved and loaded like all others; they are packed for torch's kernel at the first call.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Weights are from -127 to 127, symmetric around 0.
MOST = 127


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights.

    On a CPU the input is converted to 8-bit integers. If the CPU lacks VNNI it is 7-bit ones,
    because the kernel then adds two products in 16 bits, which could overflow. On other devices, if
    a gradient is needed, and in exported graphs, the weights are converted back to floats.

    Args:
        in_features, out_features: As in nn.Linear.
        bias: Whether there is one.
    """

    int8_weight: Tensor  # (out, in)
    scale: Tensor  # (out,)
    bias: Tensor | None  # (out,)

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # The name is not "weight", so that plain transformers, which does not know these layers,
        # reports missing weights and does not read the integers as weights.
        int8_weight = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.register_buffer("int8_weight", int8_weight)
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self._packed: Any = None

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> Int8Linear:
        """The layer with the weights of another, rounded."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        scale = linear.weight.abs().amax(1) / MOST  # (out,)
        # A channel of zeros must not be divided by 0.
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        layer.scale = scale
        layer.int8_weight = (linear.weight / scale[:, None]).round().to(torch.int8)
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        wants_gradient = torch.is_grad_enabled() and x.requires_grad
        if wants_gradient or x.device.type != "cpu" or torch.compiler.is_compiling():
            return self._in_floats(x)
        if torch.jit.is_tracing():
            return self._in_floats(x)
        if self._packed is None:
            self._packed = self._pack()
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, not has_vnni()).to(x)

    def _in_floats(self, x: Tensor) -> Tensor:
        weight = self.int8_weight.to(x) * self.scale.to(x)[:, None]
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x))

    def _pack(self) -> Any:
        scale, no_shift = self.scale.double(), torch.zeros(self.out_features, dtype=torch.long)
        # torch's own quantized layers use this function; only torch's workflow is deprecated.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weight = torch._make_per_channel_quantized_tensor(self.int8_weight, scale, no_shift, 0)
        bias = None if self.bias is None else self.bias.float()
        return torch.ops.quantized.linear_prepack(weight, bias)

    def _apply(self, fn, recurse=True):
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def has_vnni() -> bool:
    """Whether the CPU multiplies 8-bit integers and adds the products in 32 bits."""
    # torch 2.11 to 2.14 have this function; without it, False is the safe answer.
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def use_int8(model: nn.Module) -> None:
    """Replaces each linear layer of a model, in place, by one of 8 bits with its weights."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, Int8Linear.from_linear(module))


__all__ = ["Int8Linear", "has_vnni", "use_int8"]
