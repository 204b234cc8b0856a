"""Numbers in any container -> float32 samples of one channel in [-1, 1], or the reason why not.

The numbers may be in arrays, tensors or lists, as floats or as int16 or int32 PCM, with or without
an axis of channels. This file also checks that the values can be audio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import one_line

PCM_SCALES = {torch.int16: 2.0**15, torch.int32: 2.0**31}
# Ambisonics of the seventh order has so many channels; an array with more is not a single clip.
MOST_CHANNELS = 64
# Larger samples are not audio: the header states another type than that of the data, or the file is
# damaged.
LARGEST_SAMPLE = 1e6


def as_tensor(samples: Any, name: str, copy: bool = False) -> Tensor:
    """Samples as a tensor.

    Args:
        samples: An array, a tensor, or a list of numbers, of any shape.
        name: What errors call the clip.
        copy: Whether it must have memory of its own; else it may share that of `samples`.
    Raises:
        TypeError: They are no numbers.
    """
    if isinstance(samples, Tensor):
        return samples.clone() if copy else samples
    try:
        array = np.asarray(samples)
    # numpy raises a RuntimeError for a list of tensors with a gradient.
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_numbers(samples, name, one_line(error)) from error
    if array.dtype.kind not in "fiubc":
        raise _no_numbers(samples, name, f"its type is {array.dtype}")
    if isinstance(samples, list | tuple) and array.dtype == np.float64:
        array = array.astype(np.float32)
    try:
        # torch accepts neither foreign byte orders nor negative strides nor read-only memory.
        copy = copy or not array.flags.writeable
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=copy)
        return torch.from_numpy(native)
    except (TypeError, ValueError) as error:  # such as float128
        raise _no_numbers(samples, name, f"its type is {array.dtype}") from error


def _no_numbers(samples: Any, name: str, why: str) -> TypeError:
    return TypeError(
        f"{name} is a {type(samples).__name__} that holds no numbers ({why}); pass audio as an "
        f"array, a tensor or a list of floats"
    )


def scale_samples(x: Tensor, what: str) -> Tensor:
    """Samples as float32, those of int16 and int32 PCM brought to [-1, 1].

    Args:
        what: Begins the message, such as "clip 3 holds".
    Raises:
        ValueError: They are of a type whose scale is unknown.
    """
    if x.dtype in PCM_SCALES:
        return x.float() / PCM_SCALES[x.dtype]
    if not x.is_floating_point():
        raise ValueError(
            f"{what} {x.dtype} values, whose scale is unknown; pass floats in [-1, 1] or int16 or "
            f"int32 PCM"
        )
    return x.float()


def check_samples(x: Tensor, name: str) -> None:
    """Refuses values that audio cannot have. For samples on a GPU the host waits for the result.

    Raises:
        ValueError: There is NaN or infinity (the message states in how many samples), or a sample
            is beyond one million, which makes the features overflow.
    """
    if are_samples_usable(x):
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad > 0:
        raise ValueError(
            f"{name} holds NaN or infinity in {bad} of {len(x)} samples; all samples must be "
            f"finite, so repair or drop the clip"
        )
    raise ValueError(
        f"{name} holds samples of up to {x.abs().max().item():.1g} but audio lies in [-1, 1], and "
        f"beyond {LARGEST_SAMPLE:,.0f} its features overflow; if its header says float where "
        f"integers are stored, write it again, else repair or drop the clip"
    )


def are_samples_usable(x: Tensor) -> bool:
    """Whether all samples, of any shape, are finite and none is beyond one million."""
    if x.numel() == 0:
        return True
    if x.is_cpu:
        # numpy is as fast here and does not need torch's threads, which the model may be using.
        array = x.detach().numpy()
        low, high = array.min(), array.max()
    else:
        low, high = x.detach().aminmax()
    # Also False if a sample is NaN, because low and high are then NaN.
    return bool((low >= -LARGEST_SAMPLE) & (high <= LARGEST_SAMPLE))


def mixed_down(x: Tensor, name: str, channel_axis: int | None = None) -> Tensor:
    """The mean of the channels.

    Args:
        x: (S,), (channels, S) or (S, channels).
        name: What errors call the clip.
        channel_axis: Which axis holds the channels; by default the shorter one.
    Returns:
        (S,), in the dtype of `x`.
    Raises:
        ValueError: It has another number of axes, or too many channels.
    """
    if x.ndim == 1:
        return x
    if x.ndim != 2 or (channel_axis is None and min(x.shape) > MOST_CHANNELS):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} but must be (samples,), (channels, samples) or "
            f"(samples, channels) with at most {MOST_CHANNELS} channels; pick out one clip"
        )
    if channel_axis is None:
        channel_axis = 0 if x.shape[0] <= x.shape[1] else 1
    channels = x.unbind(channel_axis)
    if not channels:
        return x.flatten()  # (0,)
    # x.mean(axis) is not used: a mean over so short an axis is slow.
    if len(channels) == 1:
        return channels[0]
    return sum(channels, x.new_zeros(())) / len(channels)


__all__ = [
    "LARGEST_SAMPLE",
    "are_samples_usable",
    "as_tensor",
    "check_samples",
    "mixed_down",
    "scale_samples",
]
