"""ASTFeatureExtractor: check the clip, log-mel frames, cut or pad, normalise, batch.

With padding="max_length" the result equals that of transformers' extractor for the same clip. With
padding="longest" a mask tells the model which frames are padding. Padding is 0 in log-mel space,
before the normalisation, as in the training of the published weights.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import PaddingStrategy, is_torchaudio_available, logging

try:
    from transformers import BatchFeature, SequenceFeatureExtractor
except (ImportError, OSError, RuntimeError):
    # transformers imports torchaudio, which fails if it was built for another torch (for one with
    # CUDA, say). Nothing here needs it: make transformers treat torchaudio as not installed.
    # With None, Python refuses the import; typeshed allows only modules there.
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
    is_torchaudio_available.cache_clear()
    from transformers import BatchFeature, SequenceFeatureExtractor

from .audio import (
    ClipSource,
    decode_clip,
    is_single_clip,
    open_clip,
)
from .configuration_ast import LARGEST, PATCH_SIDE, ASTConfig, Framing, without_defaults
from .devices import living_threads, sent, sent_together
from .fbank import count_frames, fbank
from .fbank_cpu import write_fbank
from .padding import as_array, as_columns, pad_rows, padding_name
from .samples import are_samples_usable, check_samples, scale_samples

logger = logging.get_logger(__name__)

# A max_length above this many times the saved one is probably a number of samples.
MAX_LENGTH_FACTOR = 10


class ASTFeatureExtractor(Framing, SequenceFeatureExtractor):
    """Waveforms -> log-mel spectrograms of 128 x 100t (stored (T, F)), ready for the model.

    Every argument is saved in preprocessor_config.json, so that a pipeline uses it too.

    Args:
        feature_size: Kept for transformers; has no effect.
        sampling_rate: Rate of the waveforms, in Hz.
        num_mel_bins: Mel bins F of a frame.
        max_length: Frames that `padding="max_length"` gives, by default 10 ms each.
        padding_value: Kept for transformers; padded frames hold `padded_frame` instead.
        do_normalize: Whether log-mel values x become (x - mean) / (2 * std).
        mean, std: Of the log-mel values of the training set.
        return_attention_mask: Whether to return a mask over frames with "max_length" too. With
            "longest" it is always returned, unless a call passes False.
        padding: "max_length" cuts or pads every clip to `max_length` frames; "longest" pads to the
            longest clip of the batch, where a clip of t seconds takes 100t frames.
        truncation: Whether clips over `max_length` frames are cut; by default with "max_length"
            only.
        min_length: The fewest frames that "longest" gives: one patch.
        device: Where features are computed and returned, such as "cuda". By default it is that of
            the clips; arrays and lists are on the CPU. Saved only if given.
        window_seconds, hop_seconds: Length of the window that a frame is computed from, and time
            from one window to the next, as in `ASTConfig`. Saved only if they differ from the
            defaults.

    Raises:
        StrictDataclassError: A number of the front end has the wrong type or is impossible.
        ValueError: Another argument has the wrong type, or `padding` is none of the two.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_ast import ASTFeatureExtractor
    >>> extractor = ASTFeatureExtractor()
    >>> inputs = extractor(np.zeros(16000), sampling_rate=16000, return_tensors="pt")
    >>> inputs.input_values.shape
    torch.Size([1, 1024, 128])
    >>> clips = [np.zeros(16000), np.zeros(40000)]
    >>> inputs = extractor(clips, sampling_rate=16000, padding="longest", return_tensors="pt")
    >>> inputs.input_values.shape, inputs.attention_mask.sum(1)
    (torch.Size([2, 250, 128]), tensor([ 98, 248]))
    ```
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = ASTConfig.sampling_rate,
        num_mel_bins: int = ASTConfig.num_mel_bins,
        max_length: int = ASTConfig.max_length,
        padding_value: float = 0.0,
        do_normalize: bool = ASTConfig.do_normalize,
        mean: float = ASTConfig.mean,
        std: float = ASTConfig.std,
        return_attention_mask: bool = False,
        padding: str = "max_length",
        truncation: bool | None = None,
        min_length: int = PATCH_SIDE,
        device: str | None = None,
        window_seconds: float = ASTConfig.window_seconds,
        hop_seconds: float = ASTConfig.hop_seconds,
        **kwargs,
    ):
        # ASTConfig refuses impossible values of these arguments.
        ASTConfig(
            sampling_rate=sampling_rate,
            window_seconds=window_seconds,
            hop_seconds=hop_seconds,
            num_mel_bins=num_mel_bins,
            max_length=max_length,
            do_normalize=do_normalize,
            mean=mean,
            std=std,
            patch_size=1,
        )
        for name, value, kinds in (
            ("padding_value", padding_value, (int, float)),
            ("return_attention_mask", return_attention_mask, (bool, NoneType)),
            ("truncation", truncation, (bool, NoneType)),
            ("min_length", min_length, (int,)),
            ("device", device, (str, int, torch.device, NoneType)),
        ):
            if not isinstance(value, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise ValueError(f"{name} is {value!r}; it must be of type {wanted}")
        if not 0 <= min_length <= LARGEST["max_length"]:
            most = LARGEST["max_length"]
            raise ValueError(f"min_length is {min_length}; give frames, from 0 to {most}")
        if not math.isfinite(padding_value):
            raise ValueError(f"padding_value is {padding_value}; it must be a finite number")
        side = kwargs.get("padding_side", "right")
        if side not in ("right", "left"):
            raise ValueError(f'padding_side is {side!r}; give "right": only the right is padded')
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.max_length = max_length
        self.do_normalize = do_normalize
        self.mean = mean
        self.std = std
        self.return_attention_mask = return_attention_mask
        self.padding = padding_name(padding)
        self.truncation = truncation
        self.min_length = min_length
        self.device = device
        self.window_seconds = window_seconds
        self.hop_seconds = hop_seconds

    @classmethod
    def from_config(cls, config: ASTConfig, **kwargs) -> ASTFeatureExtractor:
        """The extractor that matches a model's config; `kwargs` are further arguments of it."""
        shared = (
            "sampling_rate",
            "window_seconds",
            "hop_seconds",
            "num_mel_bins",
            "max_length",
            "do_normalize",
            "mean",
            "std",
        )
        fields = {name: getattr(config, name) for name in shared}
        return cls(**{**fields, "min_length": config.patch_shape[1], **kwargs})

    @living_threads()
    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        padding: str | bool | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Turns one clip or a batch of clips into model inputs.

        Args:
            raw_speech: A clip in any form that `audio.read_clip` takes (an array, a tensor, a list
                of numbers, {"array", "sampling_rate"}, (array, rate), a path, the content of a
                file, a data set's row, ...), a list of such clips of any lengths, or an array or
                tensor (B, S). Channels are mixed down; a clip that states its own rate is
                resampled. Tensors keep their gradient and, without `device`, stay where they are.
            sampling_rate: Rate, in Hz, of the clips that do not state their own. It must be the
                model's.
            return_tensors: "pt", "np", or None: a tensor for tensors, else a list of arrays.
            padding, truncation, max_length, return_attention_mask, device: These replace the saved
                settings in this call; `padding=True` is "longest".

        Returns:
            `input_values` (B, T, F), float32, and with padding "longest" `attention_mask` (B, T),
            1 where a frame comes from the clip. A clip of t seconds has 100t - 2 such frames.

        Raises:
            ValueError: Wrong rate, an empty clip, one shorter than a window (25 ms), NaN or
                infinity, a number type without a known scale, a file that cannot be decoded,
                unknown padding, a device that is not there.
            TypeError: Unknown keyword, or something that is not audio.
        """
        if kwargs:
            raise TypeError(
                f"unknown keyword(s) {sorted(kwargs)}; ASTFeatureExtractor takes sampling_rate, "
                f"return_tensors, padding, truncation, max_length, return_attention_mask and device"
            )
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors is {return_tensors!r}; it must be "pt", "np" or None')
        device = self.device if device is None else device
        device = None if device is None else _existing(device)
        clips = [raw_speech] if is_single_clip(raw_speech) else _listed(raw_speech)
        sources = [open_clip(clip, f"clip {index}") for index, clip in enumerate(clips)]
        self._check_rate(sources, sampling_rate)
        rate, shortest = self.sampling_rate, self.window_samples
        waveforms = [decode_clip(source, rate, shortest) for source in sources]
        device = device or waveforms[0].device
        inputs = self.extract(
            waveforms, padding, truncation, max_length, return_attention_mask, device
        )
        if "attention_mask" in inputs:
            inputs["attention_mask"] = sent(inputs["attention_mask"], device)
        stay_tensors = any(isinstance(source.content, Tensor) for source in sources)
        return_tensors = return_tensors or ("pt" if stay_tensors else None)
        return BatchFeature(_convert(inputs.data, return_tensors))

    @living_threads()
    def extract(
        self,
        waveforms: list[Tensor],
        padding: str | bool | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        device: torch.device | None = None,
    ) -> BatchFeature:
        """Model inputs of checked waveforms: the part of a call that follows the reading of clips.

        Args:
            waveforms: (S,) each, of any lengths, as `audio.read_clip` gives them at this rate.
            padding, truncation, max_length, return_attention_mask: As in a call.
            device: Of `input_values`; by default that of the first waveform.
        Returns:
            As a call returns, but always tensors. The mask stays on the CPU, so that the model can
            read the lengths of clips without waiting for a GPU.
        Raises:
            ValueError: Unknown padding; waveforms on a GPU hold what `check_samples` refuses.
        """
        padding = self.padding if padding is None else padding_name(padding)
        self._warn_of_samples(max_length)
        num_samples = [len(waveform) for waveform in waveforms]
        num_frames = self.num_frames(num_samples, padding, truncation, max_length)
        device = waveforms[0].device if device is None else device
        inputs = {"input_values": self._features(waveforms, num_frames, device)}  # (B, T, F)
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask or padding == "longest"
        if return_attention_mask:
            counts = torch.tensor([self.count_frames(count) for count in num_samples])  # (B,)
            mask = torch.arange(num_frames) < counts.unsqueeze(1)  # (B, T)
            inputs["attention_mask"] = mask.long()
        return BatchFeature(inputs)

    def extract_padded(self, waveforms: Tensor, num_samples: Tensor) -> BatchFeature:
        """Model inputs of a batch that is padded already, on its device, with the saved settings.

        The host does not wait for a GPU, and therefore cannot refuse bad samples there: frames with
        NaN or infinity become NaN, and a clip shorter than a window has no frames.

        Args:
            waveforms: (B, S), in [-1, 1] or PCM; the samples of each clip, then any values.
            num_samples: (B,), how many samples each clip has; the longest is taken to have S.
        Returns:
            As a call returns, but always tensors.
        Raises:
            ValueError: The shapes do not match; on a CPU, also what a call refuses.
        """
        if waveforms.ndim != 2 or num_samples.shape != waveforms.shape[:1]:
            raise ValueError(
                f"waveforms has shape {tuple(waveforms.shape)} and num_samples "
                f"{tuple(num_samples.shape)} but they must be (clips, samples) and (clips,); for a "
                f"list of clips call the extractor itself"
            )
        if waveforms.is_cpu:
            clips = [waveform[:n] for waveform, n in zip(waveforms, num_samples.tolist())]
            rate = self.sampling_rate
            return self(clips, sampling_rate=rate, return_tensors="pt", device="cpu")
        longest = waveforms.shape[1]
        num_samples = sent(num_samples, waveforms.device)
        waveforms = scale_samples(waveforms, "waveforms are")
        values, mask = self._together(waveforms, num_samples, self.num_frames([longest]))
        data = {"input_values": values}
        if self.return_attention_mask or self.padding == "longest":
            data["attention_mask"] = mask
        return BatchFeature(data)

    def pad(
        self,
        processed_features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: str | bool | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Makes one batch of features of unequal lengths, as `DataCollatorWithPadding` asks for.

        Args:
            processed_features: Rows with `input_values` (T, F) each, optionally with
                `attention_mask` (T,), and other columns, which are kept; or columns of such rows.
            padding: `True` or "longest", "max_length", or False for none.
            max_length: Frames; by default the saved ones.
            truncation: Whether longer rows are cut to `max_length`.
            pad_to_multiple_of: The frames become a multiple of it.
            return_attention_mask: By default where `padding` is "longest", a row has a mask, or the
                extractor always returns one.
            return_tensors: "pt" or "np"; by default "pt" for tensors.
        Returns:
            `input_values` (B, T, F), padded with `padded_frame` at the end, `attention_mask`
            (B, T), 1 where a frame comes from the row, and the other columns.
        Raises:
            ValueError: `input_values` have another shape.
        """
        columns = as_columns(processed_features)
        rows = columns.get("input_values", ())
        if not len(rows) or as_array(rows[0]).ndim < 2:  # transformers' error says what is missing
            return super().pad(
                BatchFeature(columns),
                padding,
                max_length,
                truncation,
                pad_to_multiple_of,
                return_attention_mask,
                return_tensors,
            )
        self._warn_of_samples(max_length)
        if return_attention_mask is None:
            is_longest = padding is True or padding == "longest"
            has_mask = "attention_mask" in columns
            return_attention_mask = is_longest or has_mask or self.return_attention_mask
        columns = pad_rows(
            columns,
            self.padded_frame[0].item(),
            padding,
            self.max_length if max_length is None else max_length,
            truncation,
            pad_to_multiple_of,
            self.min_length,
        )
        if not return_attention_mask:
            del columns["attention_mask"]
        return_tensors = return_tensors or ("pt" if isinstance(rows[0], Tensor) else "np")
        return BatchFeature(columns, tensor_type=return_tensors)

    def normalize(self, input_values: Tensor) -> Tensor:
        """(x - mean) / (2 * std): the paper's zero mean and standard deviation of 0.5."""
        return (input_values - self.mean) / (self.std * 2)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs):
        """As in transformers, but keyword arguments also count if the file lacks them.

        transformers ignores those. The files on the Hub have no `padding`, so that
        `from_pretrained(..., padding="longest")` would have no effect.
        """
        ours = inspect.signature(cls.__init__).parameters.keys() & kwargs.keys()
        fields = {**feature_extractor_dict, **{name: kwargs.pop(name) for name in ours}}
        return super().from_dict(fields, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved. `feature_extractor_type` is also the name of transformers'
        own class: it gives our class if this package is imported, and transformers' otherwise."""
        fields = without_defaults(super().to_dict())
        if fields["device"] is None:
            del fields["device"]
        return fields

    def count_frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples` samples, without padding: its whole windows."""
        return count_frames(num_samples, self.window_samples, self.hop_samples)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Frames of one waveform or of equally long ones, neither normalised nor padded.

        Args:
            waveform: (..., S), in [-1, 1], at least one window long.
        Returns:
            (..., T, F), natural logarithms of power.
        """
        window, hop = self.window_samples, self.hop_samples
        return fbank(waveform, self.num_mel_bins, self.sampling_rate, window, hop)

    @property
    def padded_frame(self) -> Tensor:
        """(F,): a padded frame of `input_values`, which is a log-mel of 0, normalised."""
        silent = torch.zeros(self.num_mel_bins)  # (F,)
        return self.normalize(silent) if self.do_normalize else silent

    @property
    def max_samples(self) -> int:
        """Samples that `max_length` frames cover: the longest clip that the model takes in one
        piece."""
        return self._samples_seen(self.max_length)

    def num_frames(
        self,
        num_samples: Sequence[int],
        padding: str | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> int:
        """Frames T of a batch of clips, padding included.

        Args:
            num_samples: Of each clip.
            padding, truncation, max_length: As in a call.
        """
        padding = self.padding if padding is None else padding
        truncation = self.truncation if truncation is None else truncation
        max_length = self.max_length if max_length is None else max_length
        if truncation is None:
            truncation = padding == "max_length"
        counts = [self.count_frames(count) for count in num_samples]
        if padding == "max_length":
            longest = max(max_length, *counts)
        else:
            # A frame for each hop, 100 in a second: one or two more than the whole windows that
            # Kaldi counts, unless the clip would then have more frames than the model has
            # positions for.
            hop = self.hop_samples
            frames = (
                min(samples // hop, max_length) if count <= max_length else samples // hop
                for samples, count in zip(num_samples, counts)
            )
            longest = max(self.min_length, *frames)
        return min(longest, max_length) if truncation else longest

    def _check_rate(self, sources: list[ClipSource], sampling_rate: int | None) -> None:
        """Refuses a rate that is not the model's, for samples that do not state their own."""
        if all(source.is_file or source.sampling_rate is not None for source in sources):
            return
        if sampling_rate is None:
            logger.warning_once(
                f"no sampling_rate was given to ASTFeatureExtractor; it assumes that the audio is "
                f"at {self.sampling_rate} Hz; pass sampling_rate=... to have it checked"
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate is {sampling_rate} Hz but the model was trained at "
                f"{self.sampling_rate} Hz; resample the clip first, or give it with its rate, as "
                f"(clip, {sampling_rate}), and it will be resampled"
            )

    def _warn_of_samples(self, max_length: int | None) -> None:
        """Warns of a `max_length` that looks like a number of samples."""
        if max_length is not None and max_length > MAX_LENGTH_FACTOR * self.max_length:
            frames = -(-max_length // self.hop_samples)
            logger.warning_once(
                f"max_length is {max_length} frames of {1000 * self.hop_seconds:g} ms each, "
                f"{max_length / self.frames_per_second:.0f} seconds, but the saved max_length is "
                f"{self.max_length} frames; if {max_length} are samples, pass max_length={frames}"
            )

    def _samples_seen(self, num_frames: int) -> int:
        """Samples that the first `num_frames` frames cover."""
        return (num_frames - 1) * self.hop_samples + self.window_samples

    def _features(self, waveforms: list[Tensor], num_frames: int, device: torch.device) -> Tensor:
        """`input_values` (B, T, F) on `device`."""
        come_from_cpu = all(waveform.is_cpu for waveform in waveforms)
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in waveforms)
        if device.type == "cpu" and come_from_cpu and not differentiable:
            return self._clip_by_clip(waveforms, num_frames)
        samples = torch.tensor([len(waveform) for waveform in waveforms])  # (B,)
        padded = sent_together(waveforms, device)  # (B, S)
        values, _ = self._together(padded, sent(samples, device), num_frames)
        # Samples on a GPU are checked together and last, because the host waits for the result.
        if not come_from_cpu and not are_samples_usable(padded):
            for index, waveform in enumerate(waveforms):
                check_samples(waveform, f"clip {index}")
        return values

    def _clip_by_clip(self, waveforms: list[Tensor], num_frames: int) -> Tensor:
        """The fast way on a CPU."""
        seen = self._samples_seen(num_frames)
        waveforms = [waveform[:seen] for waveform in waveforms]
        counts = [self.count_frames(len(waveform)) for waveform in waveforms]
        finish = self.normalize if self.do_normalize else None
        values = waveforms[0].new_empty(len(waveforms), num_frames, self.num_mel_bins)  # (B, T, F)
        outputs = [clip_values[:count] for clip_values, count in zip(values, counts)]
        # If max_length is 3 frames or fewer, a part of a long clip may be shorter than one frame.
        whole = [(waveform, out) for waveform, out in zip(waveforms, outputs) if len(out)]
        if whole:
            sources, targets = map(list, zip(*whole))
            window, hop = self.window_samples, self.hop_samples
            write_fbank(sources, targets, self.sampling_rate, window, hop, finish)
        padded_frame = self.padded_frame
        for clip_values, count in zip(values, counts):
            clip_values[count:] = padded_frame
        return values

    def _together(
        self, waveforms: Tensor, num_samples: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Values (B, T, F) and mask (B, T) of all clips in one pass.

        The first `num_samples` (B,) samples of the waveforms (B, S) belong to the clips. A frame
        that ends within its clip depends on the clip alone; the other frames become padding. No
        value is read from the device, because the host would have to wait for it.
        """
        x = self.log_mel(waveforms[:, : self._samples_seen(length)])  # (B, frames, F)
        x = F.pad(x, (0, 0, 0, length - x.shape[1]))  # (B, T, F)
        starts = torch.arange(length, device=x.device) * self.hop_samples  # (T,)
        is_real = starts + self.window_samples <= num_samples.unsqueeze(1)  # (B, T)
        x = x.masked_fill(~is_real.unsqueeze(-1), 0.0)
        return self.normalize(x) if self.do_normalize else x, is_real.long()


def _listed(clips: Any) -> list[Any]:
    """The clips of a batch."""
    if not isinstance(clips, Sequence | Tensor | np.ndarray):
        raise TypeError(
            f"got {type(clips).__name__}; pass a clip (an array, a tensor, a path, a dict "
            f'{{"array": ..., "sampling_rate": ...}}, ...) or a list of clips'
        )
    if len(clips) == 0:
        raise ValueError("the list of clips is empty; pass at least one clip")
    return list(clips)


def _existing(device: str | torch.device | int) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        there = ["cpu"]
        if accelerator is not None:
            count = torch.accelerator.device_count()
            there += [f"{accelerator.type}:{index}" for index in range(count)]
        raise ValueError(
            f"device is {str(device)!r} but torch finds only these here: {', '.join(there)}; "
            f"pass one of them as device=... or set extractor.device ({str(error).splitlines()[0]})"
        ) from error


def _convert(data: dict[str, Tensor], return_tensors: str | None) -> dict[str, Any]:
    if return_tensors == "pt":
        return data
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in data.items()}
    return arrays if return_tensors == "np" else {name: list(a) for name, a in arrays.items()}


__all__ = ["ASTFeatureExtractor"]
