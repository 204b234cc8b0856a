"""Augmentation of waveforms, spectrograms and labels: tensor in, tensor out, random for each clip.

Follows Gong et al. 2021, section 3.1 (mixup with a rate, SpecAugment, noise and time roll), in the
authors' arithmetic (src/dataloader.py). Everything runs on the device of its input. The random
numbers come from a `torch.Generator`, on the generator's device, so that a generator on the CPU
draws the same for every training device. Without one, torch's global generator is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..resampling import resample

# For a change of speed only the ratio of two rates counts; the other rate is this one, in Hz.
NOMINAL_RATE = 10_000
# One tensor (B, S), or a list of clips (S_b,) of any lengths; results have the form of the input.
Waveforms = TypeVar("Waveforms", Tensor, list[Tensor])


def mixup_shares(
    count: int, rate: float, generator: Generator | None = None, alpha: int = 10
) -> Tensor:
    """The share of itself that each clip keeps: Beta(alpha, alpha) with probability `rate`, else 1.

    Args:
        count: Number of clips B.
        rate: Probability that a clip is mixed, in [0, 1].
        alpha: A whole number. torch's own Beta takes no generator; instead, the alpha-th smallest
            of 2 * alpha - 1 uniform numbers is taken, which is distributed as Beta(alpha, alpha).
    Returns:
        (B,), float32, in (0, 1], on the generator's device.
    Raises:
        ValueError: `rate` is not from 0 to 1, or `alpha` is not a whole number of at least 1.
    Source: Gong et al. 2021, section 3.1: rate 0.5, Beta(10, 10).
    """
    _check_share("rate", rate)
    if alpha != int(alpha) or alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be a whole number of at least 1, e.g. 10")
    alpha = int(alpha)
    is_mixed = _uniform((count,), generator) < rate  # (B,)
    shares = _uniform((count, 2 * alpha - 1), generator).kthvalue(alpha, dim=1).values  # (B,)
    return torch.where(is_mixed, shares, 1.0)


def mixup(
    waveforms: Waveforms,
    labels: Tensor,
    partners: Tensor | Sequence[Tensor],
    partner_labels: Tensor,
    shares: Tensor,
) -> tuple[Waveforms, Tensor]:
    """share * clip + (1 - share) * partner, each minus its own mean; labels with the same shares.

    A mixed clip keeps its own length: its partner is cut or continued with zeros.

    Args:
        waveforms: B clips (S_b,), or (B, S).
        labels: (B, C), float.
        partners: B clips of any length, or (B, S).
        partner_labels: (B, C).
        shares: (B,), from `mixup_shares`.
    Returns:
        The mixed waveforms, in the form of `waveforms`, and the labels (B, C).
    Raises:
        ValueError: The labels are class indices, or the numbers of clips differ.
    Source: Gong et al. 2021, section 3.1; the authors' src/dataloader.py for means and lengths.
    """
    if labels.ndim != 2 or not labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype}; mixup needs floats "
            f"of shape (clips, classes): the share of each class, or multi-hot labels with the "
            f"multi-label loss (which the authors use for clips with one label, too)"
        )
    if not len(waveforms) == len(labels) == len(partners) == len(partner_labels) == len(shares):
        raise ValueError(
            f"got {len(waveforms)} clips with {len(labels)} labels, {len(partners)} partners with "
            f"{len(partner_labels)} labels and {len(shares)} shares; give as many of each"
        )
    mixed = [_mix(x, y, share) for x, y, share in zip(waveforms, partners, shares.tolist())]
    own = shares.to(labels).unsqueeze(1)  # (B, 1)
    labels = own * labels + (1 - own) * partner_labels
    return torch.stack(mixed) if isinstance(waveforms, Tensor) else mixed, labels


def _mix(waveform: Tensor, partner: Tensor, share: float) -> Tensor:
    mixed = share * (waveform - waveform.mean())
    if share == 1.0:
        return mixed
    overlap = min(len(waveform), len(partner))
    mixed[:overlap] += (1 - share) * (partner - partner.mean())[:overlap]
    return mixed


def change_gain(
    waveforms: Waveforms, max_db: float, generator: Generator | None = None
) -> Waveforms:
    """Makes each clip louder or softer by a gain uniform in [-max_db, max_db] decibels.

    Args:
        waveforms: B clips (S_b,), or (B, S).
    Returns:
        In the form of `waveforms`.
    """
    gains_db = (2 * _uniform((len(waveforms),), generator) - 1) * max_db
    factors = (10 ** (gains_db / 20)).tolist()
    changed = [factor * waveform for factor, waveform in zip(factors, waveforms)]
    return torch.stack(changed) if isinstance(waveforms, Tensor) else changed


def draw_speed(max_change: float, generator: Generator | None = None) -> float:
    """A speed from 1 / (1 + max_change) to 1 + max_change, uniform in the logarithm.

    Raises:
        ValueError: `max_change` is not from 0 to 1.
    Source: Ko et al. 2015, "Audio Augmentation for Speech Recognition", with speeds 0.9, 1 and 1.1.
    """
    _check_share("max_change", max_change)
    return (1 + max_change) ** (2 * _uniform((), generator).item() - 1)


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """Plays a clip faster or slower, as a tape does: pitch and length change together.

    Args:
        waveform: (S,).
        speed: 2 is an octave higher and half as long.
    Returns:
        (R,), R about S / speed.
    """
    return resample(waveform, round(speed * NOMINAL_RATE), NOMINAL_RATE)


def mask_frequency(
    frames: Tensor, max_width: int, value: float, generator: Generator | None = None
) -> Tensor:
    """Hides a band of mel bins in each clip.

    The width is uniform in [0, max_width), rounded down to a whole number. The start is uniform
    among the places where the band fits.

    Args:
        frames: (B, T, F).
        max_width: In mel bins; a value above F counts as F.
        value: Written into the band, e.g. `config.padding_value`: the published models were trained
            with a log-mel of 0, before the normalisation.
    Returns:
        (B, T, F), a new tensor.
    Source: Park et al. 2019 (SpecAugment), as in torchaudio's mask_along_axis_iid.
    """
    return torch.where(_band(frames, 2, max_width, generator).unsqueeze(1), value, frames)


def mask_time(
    frames: Tensor,
    max_width: int,
    value: float,
    generator: Generator | None = None,
    num_frames: Tensor | None = None,
) -> Tensor:
    """Hides a span of frames in each clip; see `mask_frequency`, with T for F.

    Args:
        num_frames: (B,), the number of frames of each clip without its padding. The span lies
            inside these, and its width is scaled by num_frames / T. None: no clip has padding.
    """
    band = _band(frames, 1, max_width, generator, num_frames)
    return torch.where(band.unsqueeze(2), value, frames)


def _band(
    frames: Tensor,
    axis: int,
    max_width: int,
    generator: Generator | None,
    own: Tensor | None = None,
) -> Tensor:
    """(B, length of `axis`), true inside each clip's band, which ends before `own` (B,)."""
    if max_width < 0:
        raise ValueError(f"the width of a mask is {max_width}; it must be 0 (no mask) or more")
    length = frames.shape[axis]
    width = _uniform((len(frames),), generator) * min(max_width, length)  # (B,)
    start = _uniform((len(frames),), generator)
    if own is None:
        start = start * (length - width)
    else:
        width, start = width.to(own.device), start.to(own.device)
        width = width * own / length
        start = start * (own - width)
    first = start.long()
    position = torch.arange(length, device=first.device)
    behind = (first + width.long()).unsqueeze(1)
    band = (first.unsqueeze(1) <= position) & (position < behind)  # (B, length)
    return band.to(frames.device)


def add_noise(frames: Tensor, max_level: float = 0.1, generator: Generator | None = None) -> Tensor:
    """Adds noise that is uniform in [0, level); each clip's level is uniform in [0, max_level).

    Args:
        frames: (B, T, F), normalised.
    Source: the authors' src/dataloader.py: after the normalisation, level up to 0.1.
    """
    levels = _uniform((len(frames), 1, 1), generator) * max_level
    return frames + (_uniform(frames.shape, generator) * levels).to(frames)


def roll_time(
    x: Tensor,
    max_shift: int = 10,
    generator: Generator | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Rolls each clip along its time axis; what leaves at one end enters at the other.

    Args:
        x: (B, T, F) frames, or (B, S) samples.
        max_shift: The shift is uniform in [-max_shift, max_shift - 1], in frames or samples.
        lengths: (B,), the length of each clip without its padding. Only this part rolls, so that
            the padding stays at the end. None: the whole axis rolls.
    Source: the authors' src/dataloader.py: -10 to 9 frames.
    """
    if max_shift < 1:
        return x
    count, length = x.shape[:2]
    shifts = (_uniform((count, 1), generator) * 2 * max_shift).long() - max_shift  # (B, 1)
    place = torch.arange(length, device=x.device)
    shifts = shifts.to(x.device)
    if lengths is None:
        source = (place - shifts) % length  # (B, T)
    else:
        own = lengths.to(x.device).unsqueeze(1)  # (B, 1)
        source = torch.where(place < own, (place - shifts) % own.clamp(min=1), place)  # (B, T)
    index = source.reshape(count, length, *[1] * (x.ndim - 2))
    return x.take_along_dim(index, dim=1)


def smooth_labels(labels: Tensor, amount: float, exclusive: bool = False) -> Tensor:
    """Moves labels towards chance: (1 - amount) * label + amount * chance.

    Args:
        labels: (B, C), shares of 0 to 1.
        amount: In [0, 1].
        exclusive: Whether a clip has exactly one label, so that chance is 1 / C (cross entropy);
            else each class is a separate yes or no, and chance is 1 / 2.
    Returns:
        (B, C).
    """
    _check_share("amount", amount)
    chance = 1 / labels.shape[1] if exclusive else 0.5
    return (1 - amount) * labels + amount * chance


@dataclass(frozen=True)
class Augmentation:
    """How clips are changed in training: mixup, speed, gain, masks, noise, roll, labels.

    The defaults are those of the paper's AudioSet recipe.

    Args:
        mixup_rate: Probability that a clip is mixed with another.
        mixup_alpha: Parameter of the Beta distribution, see `mixup_shares`; a whole number.
        max_speed_change: See `draw_speed` and `change_speed`.
        max_gain_db: See `change_gain`.
        frequency_mask, time_mask: Largest widths, in mel bins and frames.
        max_noise: See `add_noise`; the authors use 0.1, for Speech Commands only.
        max_roll: See `roll_time`, in frames; the authors use 10, for Speech Commands only. Padding
            rolls too, unless the batch has a mask that marks the padding.
        label_smoothing: See `smooth_labels`; only for labels (B, C).
    """

    mixup_rate: float = field(
        default=0.5, metadata={"help": "how often a clip is mixed with another, from 0 to 1"}
    )
    mixup_alpha: int = field(
        default=10,
        metadata={"help": "mixup shares are Beta(alpha, alpha): the larger, the more equal"},
    )
    max_speed_change: float = field(
        default=0.0,
        metadata={"help": "play clips faster (and higher) or slower by up to this share, 0 to 1"},
    )
    max_gain_db: float = field(
        default=0.0, metadata={"help": "make clips louder or softer by up to this many decibels"}
    )
    frequency_mask: int = field(
        default=48, metadata={"help": "hide a band of up to this many mel bins of each clip"}
    )
    time_mask: int = field(
        default=192, metadata={"help": "hide a span of up to this many frames of each clip"}
    )
    max_noise: float = field(
        default=0.0, metadata={"help": "add noise of up to this level to the features"}
    )
    max_roll: int = field(
        default=0, metadata={"help": "shift the features in time by up to this many frames"}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "move labels towards chance by this share, from 0 to 1"}
    )

    def __post_init__(self) -> None:
        for name in ("mixup_rate", "max_speed_change", "label_smoothing"):
            _check_share(name, getattr(self, name))
        for name in ("max_gain_db", "frequency_mask", "time_mask", "max_noise", "max_roll"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be 0 (none) or more")

    def shares(self, count: int, generator: Generator | None = None) -> Tensor:
        """`mixup_shares` (B,) at this recipe's rate."""
        return mixup_shares(count, self.mixup_rate, generator, self.mixup_alpha)

    def speed(self, generator: Generator | None = None) -> float:
        """`draw_speed` at this recipe's largest change; 1 without a draw if it changes none."""
        return draw_speed(self.max_speed_change, generator) if self.max_speed_change > 0 else 1.0

    def waveforms(self, waveforms: Waveforms, generator: Generator | None = None) -> Waveforms:
        """Changes the gain of waveforms, after a mixup and before the features are computed."""
        if self.max_gain_db > 0:
            waveforms = change_gain(waveforms, self.max_gain_db, generator)
        return waveforms

    def features(
        self,
        input_values: Tensor,
        masked_value: float,
        generator: Generator | None = None,
        num_frames: Tensor | None = None,
    ) -> Tensor:
        """Masks, then noise, then roll: the authors' order.

        Args:
            input_values: (B, T, F), normalised.
            masked_value: `config.padding_value`.
            num_frames: (B,), the number of frames of each clip without its padding; the time mask
                and the roll stay inside these. None: padding is treated like the clip.
        """
        x = input_values
        if self.frequency_mask > 0:
            x = mask_frequency(x, self.frequency_mask, masked_value, generator)
        if self.time_mask > 0:
            x = mask_time(x, self.time_mask, masked_value, generator, num_frames)
        if self.max_noise > 0:
            x = add_noise(x, self.max_noise, generator)
        return roll_time(x, self.max_roll, generator, num_frames)

    def labels(self, labels: Tensor, exclusive: bool = False) -> Tensor:
        """Smooths labels (B, C).

        Args:
            exclusive: See `smooth_labels`.
        Raises:
            ValueError: The labels are class indices, which only the loss function can smooth.
        """
        if self.label_smoothing == 0.0:
            return labels
        if labels.ndim != 2:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; smoothing needs (clips, classes), so "
                f"give LabelEncoder(..., shares=True), or label_smoothing_factor of "
                f"TrainingArguments"
            )
        return smooth_labels(labels, self.label_smoothing, exclusive)


def _uniform(shape: Sequence[int], generator: Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=device)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must be from 0 to 1")


__all__ = [
    "Augmentation",
    "add_noise",
    "change_gain",
    "change_speed",
    "draw_speed",
    "mask_frequency",
    "mask_time",
    "mixup",
    "mixup_shares",
    "roll_time",
    "smooth_labels",
]
