"""ASTFeatureExtractor: check the clip, log-mel frames, cut or pad, normalise, batch.

Gives what transformers' extractor gives for the same clip (padding="max_length"), and batches whose
padding is known to the model (padding="longest"). Padding is 0 in log-mel space, before the
normalisation, as the published weights saw it.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import is_torchaudio_available, logging

try:
    from transformers import BatchFeature, SequenceFeatureExtractor
except (ImportError, OSError, RuntimeError):
    # transformers imports torchaudio, which fails beside a torch it was not built for (CPU-only
    # ones among them). Nothing here needs it: let transformers take it for not installed.
    sys.modules["torchaudio"] = None
    is_torchaudio_available.cache_clear()
    from transformers import BatchFeature, SequenceFeatureExtractor

from .configuration_ast import ASTConfig
from .fbank_ast import (
    count_frames,
    fbank,
    frame_mask,
    frame_samples,
    hop_samples,
    write_fbank,
)
from .threads_ast import living_threads
from .transfer_ast import sent, sent_together

logger = logging.get_logger(__name__)

PADDINGS = ("max_length", "longest")
PCM_SCALES = {torch.int16: 2.0**15, torch.int32: 2.0**31}


class ASTFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms -> log-mel spectrograms of 128 x 100t (stored (T, F)), ready for the model.

    Every argument is saved in preprocessor_config.json, so that a pipeline uses it too.

    Args:
        feature_size: Kept for transformers; has no effect.
        sampling_rate: Rate of the waveforms, in Hz.
        num_mel_bins: Mel bins F of a frame.
        max_length: Frames that `padding="max_length"` gives, 10 ms each.
        padding_value: Kept for transformers' `pad`, which pads normalised features.
        do_normalize: Whether log-mel values x become (x - mean) / (2 * std).
        mean, std: Of the log-mel values of the training set.
        return_attention_mask: Whether to return a mask over frames with "max_length" too; with
            "longest" it always comes, unless a call says no.
        padding: "max_length" cuts or pads every clip to `max_length` frames; "longest" pads to the
            longest clip of the batch, where a clip of t seconds takes 100t frames.
        truncation: Whether clips over `max_length` frames are cut; by default with "max_length"
            only.
        min_length: Frames that "longest" gives at least: one patch.
        device: Where features are computed and returned, such as "cuda"; by default where each
            clip is, arrays and lists on the CPU. Saved only if given.

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
        min_length: int = ASTConfig.patch_size,
        device: str | None = None,
        **kwargs,
    ):
        # ASTConfig knows which of these numbers are possible, and says it.
        ASTConfig(
            sampling_rate=sampling_rate,
            num_mel_bins=num_mel_bins,
            max_length=max_length,
            mean=mean,
            std=std,
            patch_size=1,
        )
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.max_length = max_length
        self.do_normalize = do_normalize
        self.mean = mean
        self.std = std
        self.return_attention_mask = return_attention_mask
        self.padding = _padding_name(padding)
        self.truncation = truncation
        self.min_length = min_length
        self.device = device

    @classmethod
    def from_config(cls, config: ASTConfig, **kwargs) -> ASTFeatureExtractor:
        """The extractor that matches a model's config; `kwargs` are further arguments of ours."""
        shared = ("sampling_rate", "num_mel_bins", "max_length", "do_normalize", "mean", "std")
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
            raw_speech: Mono audio in [-1, 1]: a list of floats, a 1-D array or tensor, a dict
                {"array", "sampling_rate"}, a list of any of these (lengths may differ), or a 2-D
                array or tensor (B, S). int16 and int32 are read as PCM. Tensors keep their
                gradient and, without `device`, stay where they are.
            sampling_rate: Rate of `raw_speech`, in Hz; refused if it is not the model's.
            return_tensors: "pt", "np", or None: a tensor for tensors, else a list of arrays.
            padding, truncation, max_length, return_attention_mask, device: Instead of the saved
                ones; `padding=True` is "longest".

        Returns:
            `input_values` (B, T, F), float32, and with padding "longest" `attention_mask` (B, T),
            1 where a frame comes from the clip. An utterance of t seconds has 100t - 2 of these.

        Raises:
            ValueError: Wrong rate, more than one channel, an empty clip, one shorter than a frame
                (25 ms), NaN or infinity, a number type without a known scale, unknown padding, a
                device that is not there.
            TypeError: Unknown keyword, or something that is no audio.
        """
        if kwargs:
            raise TypeError(
                f"unknown keyword(s) {sorted(kwargs)}; ASTFeatureExtractor takes sampling_rate, "
                f"return_tensors, padding, truncation, max_length, return_attention_mask and device"
            )
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors is {return_tensors!r}; it must be "pt", "np" or None')
        padding = self.padding if padding is None else _padding_name(padding)
        truncation = self.truncation if truncation is None else truncation
        max_length = self.max_length if max_length is None else max_length
        device = self.device if device is None else device
        device = None if device is None else _existing(device)
        clips = _split_batch(raw_speech)
        rates = [self._check_rate(clip, sampling_rate) for clip in clips]
        if None in rates:
            logger.warning_once(
                f"ASTFeatureExtractor was not told the sampling_rate and takes the audio to be at "
                f"{self.sampling_rate} Hz; pass sampling_rate=... to have it checked"
            )
        waveforms = [self._waveform(clip, index, copy=False) for index, clip in enumerate(clips)]
        samples = [len(waveform) for waveform in waveforms]
        length = self._batch_length(samples, padding, max_length, truncation)
        values, mask = self._features(waveforms, length, device or waveforms[0].device)
        data = {"input_values": values}
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask or padding == "longest"
        if return_attention_mask:
            data["attention_mask"] = mask
        stay_tensors = any(isinstance(_audio(clip), Tensor) for clip in clips)
        return BatchFeature(_convert(data, return_tensors or ("pt" if stay_tensors else None)))

    def extract_padded(self, waveforms: Tensor, num_samples: Tensor) -> BatchFeature:
        """Model inputs of a batch that is padded already, on its device, by the saved settings.

        The host does not wait for a GPU, and so does not see there what a call refuses: frames with
        NaN or infinity become NaN, a clip under 25 ms has no frames.

        Args:
            waveforms: (B, S), in [-1, 1] or PCM; a clip's samples, then any others.
            num_samples: (B,), how many are the clip's; S is taken for the longest.
        Returns:
            As a call does, tensors.
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
        length = self._batch_length([longest], self.padding, self.max_length, self.truncation)
        num_samples = sent(num_samples, waveforms.device)
        waveforms = _scaled(waveforms, "waveforms are")
        values, mask = self._together(waveforms, num_samples, length)
        data = {"input_values": values}
        if self.return_attention_mask or self.padding == "longest":
            data["attention_mask"] = mask
        return BatchFeature(data)

    def normalize(self, input_values: Tensor) -> Tensor:
        """(x - mean) / (2 * std): the paper's zero mean and standard deviation of 0.5."""
        return (input_values - self.mean) / (self.std * 2)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs):
        """As in transformers, which overrides only what the file has: those on the Hub have no
        `padding`, and `from_pretrained(..., padding="longest")` would be lost.
        """
        ours = inspect.signature(cls.__init__).parameters.keys() & kwargs.keys()
        fields = {**feature_extractor_dict, **{name: kwargs.pop(name) for name in ours}}
        return super().from_dict(fields, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As saved. Without the class name: AutoFeatureExtractor then chooses by model type, ours
        where this package is imported and transformers' own elsewhere."""
        fields = super().to_dict()
        fields.pop("feature_extractor_type", None)
        if fields["device"] is None:
            del fields["device"]
        return fields

    def _check_rate(self, clip: Any, sampling_rate: int | None) -> int | None:
        given = clip.get("sampling_rate", sampling_rate) if isinstance(clip, Mapping) else None
        for rate in (given, sampling_rate):
            if rate is not None and rate != self.sampling_rate:
                raise ValueError(
                    f"sampling_rate is {rate} Hz but the model was trained at {self.sampling_rate} "
                    f"Hz; resample the clip first, e.g. torchaudio.functional.resample(clip, "
                    f"{rate}, {self.sampling_rate})"
                )
        return given or sampling_rate

    def _waveform(self, clip: Any, index: int, copy: bool = True) -> Tensor:
        """One checked clip as a float32 tensor (S,); without `copy` it may share an array's memory.

        What lies on a GPU is not checked for NaN yet.
        """
        x = _as_tensor(_audio(clip), index, copy)
        if x.ndim == 2 and x.shape[0] == 1:
            x = x[0]  # (S,): torchaudio's and soundfile's mono with its channel axis
        shape = tuple(x.shape)
        if x.ndim != 1:
            raise ValueError(
                f"clip {index} has shape {shape} but must be mono, (samples,); mix stereo "
                f"down first, e.g. clip.mean(axis) over its channel axis"
            )
        x = _scaled(x, f"clip {index} holds")
        shortest = frame_samples(self.sampling_rate)
        if len(x) < shortest:
            what = "is empty" if len(x) == 0 else f"has {len(x)} samples"
            raise ValueError(
                f"clip {index} {what} but one window needs {shortest} samples (25 ms at "
                f"{self.sampling_rate} Hz); drop it or pad it with zeros"
            )
        if x.is_cpu:
            _check_finite(x, index)
        return x

    def _batch_length(
        self, samples: list[int], padding: str, max_length: int, truncation: bool | None
    ) -> int:
        """Frames T of a batch of clips with so many samples each."""
        if truncation is None:
            truncation = padding == "max_length"
        if padding == "longest":
            # 100 for each second: one or two more than the whole windows that Kaldi counts.
            hop = hop_samples(self.sampling_rate)
            counts = [self.min_length, *(count // hop for count in samples)]
        else:
            counts = [count_frames(count, self.sampling_rate) for count in samples]
            counts.append(max_length)
        return min(max(counts), max_length) if truncation else max(counts)

    def _samples_seen(self, length: int) -> int:
        """Samples that the first `length` frames see."""
        return (length - 1) * hop_samples(self.sampling_rate) + frame_samples(self.sampling_rate)

    def _features(
        self, waveforms: list[Tensor], length: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """`input_values` (B, T, F) and `attention_mask` (B, T) on `device`."""
        come_from_cpu = all(waveform.is_cpu for waveform in waveforms)
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in waveforms)
        if device.type == "cpu" and come_from_cpu and not differentiable:
            return self._clip_by_clip(waveforms, length)
        samples = torch.tensor([len(waveform) for waveform in waveforms])  # (B,)
        padded = sent_together(waveforms, device)  # (B, S)
        result = self._together(padded, sent(samples, device), length)
        # What was on a GPU is checked once for all, and last: the host waits for the answer.
        if not come_from_cpu and not _sum_is_finite(padded):
            for index, waveform in enumerate(waveforms):
                _check_finite(waveform, index)
        return result

    def _clip_by_clip(self, waveforms: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
        """The fast way on a CPU."""
        rate, seen = self.sampling_rate, self._samples_seen(length)
        waveforms = [waveform[:seen] for waveform in waveforms]
        counts = [count_frames(len(waveform), rate) for waveform in waveforms]
        finish = self.normalize if self.do_normalize else None
        values = waveforms[0].new_empty(len(waveforms), length, self.num_mel_bins)  # (B, T, F)
        outputs = [clip_values[:count] for clip_values, count in zip(values, counts)]
        write_fbank(waveforms, outputs, rate, finish)
        padding = values.new_zeros(self.num_mel_bins)  # (F,)
        padding = padding if finish is None else finish(padding)
        for clip_values, count in zip(values, counts):
            clip_values[count:] = padding
        mask = frame_mask([len(waveform) for waveform in waveforms], length, rate)  # (B, T)
        return values, mask.long()

    def _together(
        self, waveforms: Tensor, num_samples: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """All clips in one pass: the first `num_samples` (B,) of each of the waveforms (B, S).

        A frame that ends within the clip has seen nothing else; the others become padding. Nothing
        here reads a value from the device, which would halt the host until it is computed.
        """
        rate, seen = self.sampling_rate, self._samples_seen(length)
        x = fbank(waveforms[:, :seen], self.num_mel_bins, rate)  # (B, frames, F)
        x = F.pad(x, (0, 0, 0, length - x.shape[1]))  # (B, T, F)
        starts = torch.arange(length, device=x.device) * hop_samples(rate)  # (T,)
        is_real = starts + frame_samples(rate) <= num_samples.unsqueeze(1)  # (B, T)
        x = x.masked_fill(~is_real.unsqueeze(-1), 0.0)
        return self.normalize(x) if self.do_normalize else x, is_real.long()


def _padding_name(padding: str | bool) -> str:
    name = "longest" if padding is True else getattr(padding, "value", padding)
    if name not in PADDINGS:
        raise ValueError(
            f'padding is {padding!r}; it must be "max_length" (cut or pad to max_length frames) or '
            f'"longest" (pad to the longest clip of the batch)'
        )
    return name


def _split_batch(raw_speech: Any) -> list[Any]:
    """One entry for each clip, as it came."""
    if isinstance(raw_speech, Tensor | np.ndarray):
        if raw_speech.ndim == 2 and raw_speech.shape[1] <= 8 < raw_speech.shape[0]:
            raise ValueError(
                f"the array has shape {tuple(raw_speech.shape)}, which looks like (samples, "
                f"channels) but must be (clips, samples); mix it down first: array.mean(1)"
            )
        return list(raw_speech) if raw_speech.ndim > 1 else [raw_speech]
    if isinstance(raw_speech, Mapping):
        return [raw_speech]
    if not isinstance(raw_speech, list | tuple):
        raise TypeError(
            f"got {type(raw_speech).__name__}; pass an array, a tensor, a list of them or a dict "
            f'{{"array": ..., "sampling_rate": ...}}; read files first, e.g. with soundfile.read'
        )
    if not raw_speech:
        raise ValueError("the list of clips is empty; pass at least one clip")
    first = raw_speech[0]
    is_batch = isinstance(first, Mapping | list | tuple) or getattr(first, "ndim", 0) > 0
    return list(raw_speech) if is_batch else [raw_speech]


def _audio(clip: Any) -> Any:
    """The samples themselves, out of a dict of `datasets` ("array") or of a pipeline ("raw")."""
    if not isinstance(clip, Mapping):
        return clip
    for key in ("array", "raw"):
        if clip.get(key) is not None:
            return clip[key]
    raise ValueError(f'the dict has the keys {sorted(clip)} but must have "array", the samples')


def _as_tensor(audio: Any, index: int, copy: bool) -> Tensor:
    if isinstance(audio, Tensor):
        return audio
    try:
        array = np.asarray(audio)
        if isinstance(audio, list | tuple) and array.dtype == np.float64:
            array = array.astype(np.float32)
        # torch knows neither other byte orders nor negative strides nor read-only memory.
        copy = copy or not array.flags.writeable
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=copy)
        return torch.from_numpy(native)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"clip {index} is a {type(audio).__name__} that holds no numbers ({error}); pass mono "
            f"audio as an array, a tensor or a list of floats"
        ) from error


def _scaled(x: Tensor, what: str) -> Tensor:
    """Samples as float32, those of PCM brought to [-1, 1]."""
    if x.dtype in PCM_SCALES:
        return x.float() / PCM_SCALES[x.dtype]
    if not x.is_floating_point():
        raise ValueError(
            f"{what} {x.dtype} values, whose scale is unknown; pass floats in [-1, 1] or int16 or "
            f"int32 PCM"
        )
    return x.float()


def _check_finite(x: Tensor, index: int) -> None:
    if _sum_is_finite(x):
        return
    bad = int((~torch.isfinite(x)).sum())
    if bad > 0:
        raise ValueError(
            f"clip {index} holds NaN or infinity in {bad} of {len(x)} samples; all samples "
            f"must be finite, so repair or drop the clip"
        )


def _sum_is_finite(x: Tensor) -> bool:
    """Then all samples are. Otherwise they may still be, near float32's limit."""
    return math.isfinite(x.sum().item())


def _existing(device: str | torch.device | int) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        count = 0 if accelerator is None else torch.accelerator.device_count()
        there = ", ".join(["cpu", *(f"{accelerator.type}:{index}" for index in range(count))])
        raise ValueError(
            f"device is {str(device)!r} but torch finds only these here: {there}; pass one of them "
            f"as device=... or set extractor.device ({str(error).splitlines()[0]})"
        ) from error


def _convert(data: dict[str, Tensor], return_tensors: str | None) -> dict[str, Any]:
    if return_tensors == "pt":
        return data
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in data.items()}
    return arrays if return_tensors == "np" else {name: list(a) for name, a in arrays.items()}


__all__ = ["ASTFeatureExtractor"]
