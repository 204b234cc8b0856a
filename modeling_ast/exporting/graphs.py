"""The computations of the ONNX files, as modules that torch.onnx can write, for any length.

- `FrameGraph`: input_values (B, T, F) -> logits.
- `MaskedFrameGraph`: the same with a mask over frames.
- `WaveformGraph`: samples -> frames, cut or padded as the saved extractor says, mask, network,
  logits and scores. Its DFT is a product with a matrix of cosines and sines, because OpenVINO
  crashes on ONNX's DFT, and a matrix product is fast everywhere.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ..calibration import Calibration
from ..configuration_ast import ASTConfig
from ..fbank import POWER_FLOOR, PREEMPHASIS, hann_window, mel_filters, num_fft_bins
from ..feature_extraction_ast import ASTFeatureExtractor
from ..labels import activation
from ..modeling_ast import ASTForAudioClassification


class Example(NamedTuple):
    """The inputs to trace a module with, which of their axes are dynamic, and names of outputs."""

    inputs: dict[str, Tensor]
    dynamic_shapes: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]


class FrameGraph(nn.Module):
    """input_values -> logits; both are float32, whatever type the weights have."""

    def __init__(self, model: ASTForAudioClassification):
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, F) and a mask (B, T), int64, 1 where a frame is audio -> (B, C)."""
        return self.model(input_values, attention_mask=attention_mask).logits.float()

    def example(self) -> Example:
        """Two clips; T may be anything from two columns of patches on.

        A size of 1 in the example would become a constant in torch's trace, so the example has two
        columns. The written graph also works with one column.
        """
        config = self.model.config
        batch, frames = Dim("batch"), Dim("frames", min=fewest_frames(config))
        num_frames = config.max_length - 1  # any number that differs from all other sizes
        values = torch.zeros(2, max(num_frames, fewest_frames(config)), config.num_mel_bins)
        return Example(
            {"input_values": values}, {"input_values": {0: batch, 1: frames}}, ("logits",)
        )


class MaskedFrameGraph(FrameGraph):
    """As `FrameGraph`, with a mask of padded frames, for batches of clips of unequal lengths."""

    def example(self) -> Example:
        """The example of `FrameGraph`, with a mask."""
        inputs, shapes, outputs = super().example()
        mask = torch.ones(inputs["input_values"].shape[:2], dtype=torch.long)
        shapes = shapes | {"attention_mask": shapes["input_values"]}
        return Example(inputs | {"attention_mask": mask}, shapes, outputs)


class WaveformGraph(nn.Module):
    """waveform, num_samples -> logits, scores: all that the package does with one part of a clip.

    Args:
        model: In evaluation mode, float32, on the CPU.
        extractor: The model's extractor; its saved padding is built in.
        calibration: The model's calibration, if it has one; it is applied to the scores.
    """

    slopes: Tensor
    intercepts: Tensor

    window: Tensor
    dft: Tensor
    filters: Tensor

    def __init__(
        self,
        model: ASTForAudioClassification,
        extractor: ASTFeatureExtractor,
        calibration: Calibration | None = None,
    ):
        super().__init__()
        self.model = model
        self.extractor = extractor
        window_samples = extractor.window_samples
        num_bins = num_fft_bins(window_samples)
        filters = mel_filters(extractor.num_mel_bins, num_bins, extractor.sampling_rate)
        window = hann_window(window_samples, torch.device("cpu"), torch.float32)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)  # (K, F)
        self.register_buffer("dft", dft_matrix(window_samples, num_bins), persistent=False)
        self.activation = activation("auto", model.config)
        self.is_calibrated = calibration is not None
        if calibration is not None:
            labels = calibration.labels.values()
            slopes = torch.tensor([label.slope for label in labels])  # (C,)
            intercepts = torch.tensor([label.intercept for label in labels])
            self.register_buffer("slopes", slopes, persistent=False)
            self.register_buffer("intercepts", intercepts, persistent=False)
        self.is_masked = extractor.padding == "longest" or extractor.return_attention_mask

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies one part of each clip.

        Args:
            waveform: (B, S), float32, in [-1, 1], at the extractor's rate; S is at most its
                `max_samples`.
            num_samples: (B,), int64: how many of the S samples are the clip's, without padding; at
                least the samples of one frame.
        Returns:
            Logits (B, C) and scores (B, C).
        """
        values, mask = self.features(waveform, num_samples)
        if self.is_masked:
            logits = self.model(values, attention_mask=mask).logits  # (B, C)
        else:
            logits = self.model(values).logits
        return logits, self.scores(logits)

    def features(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """`input_values` (B, T, F) and the mask (B, T), as `ASTFeatureExtractor` gives them.

        With padding "longest" T is the number of whole windows, plus the frames of one patch, which
        the mask hides. A clip shorter than a patch needs these frames; they are always added,
        because a T that depended on a comparison could not be traced.
        """
        extractor = self.extractor
        hop, window = extractor.hop_samples, extractor.window_samples
        num_frames = 1 + (waveform.shape[1] - window) // hop
        starts = torch.arange(num_frames) * hop  # (frames,)
        # Not unfold, which becomes a loop in ONNX.
        index = starts.unsqueeze(1) + torch.arange(window)  # (frames, window)
        frames = waveform.index_select(1, index.flatten())
        x = self.log_mel(frames.unflatten(1, (num_frames, window)))  # (B, frames, F)
        num_samples = num_samples.clamp(max=waveform.shape[1])
        is_real = starts + window <= num_samples.unsqueeze(1)  # (B, frames)
        x = x.masked_fill(~is_real.unsqueeze(-1), 0.0)
        missing = extractor.max_length - num_frames
        if extractor.padding == "longest":
            missing = extractor.min_length
        x = F.pad(x, (0, 0, 0, missing))  # (B, T, F)
        mask = F.pad(is_real.long(), (0, missing))  # (B, T)
        return extractor.normalize(x) if extractor.do_normalize else x, mask

    def log_mel(self, frames: Tensor) -> Tensor:
        """`fbank.fbank` after the framing, with a matrix product as FFT.

        (B, T, window) -> (B, T, F).
        """
        x = frames - frames.mean(-1, keepdim=True)
        before = torch.cat((x[..., :1], x[..., :-1]), dim=-1)
        x = (x - PREEMPHASIS * before) * self.window
        real, imaginary = (x @ self.dft).chunk(2, dim=-1)  # (B, T, K) each
        mel = (real * real + imaginary * imaginary) @ self.filters  # (B, T, F)
        return mel.clamp(min=POWER_FLOOR).log()

    def scores(self, logits: Tensor) -> Tensor:
        """(B, C), from 0 to 1, as `AudioTagger` gives them: activation, then calibration."""
        if self.activation == "sigmoid":
            if self.is_calibrated:
                logits = logits * self.slopes + self.intercepts
            return logits.sigmoid()
        if self.is_calibrated:
            # The softmax below gives p ** slope, divided by the sum over the labels.
            logits = logits.log_softmax(-1) * self.slopes
        return logits.softmax(-1)

    def example(self) -> Example:
        """Two clips of medium length; S may be from one frame's window to the longest input."""
        extractor = self.extractor
        shortest, longest = extractor.window_samples, extractor.max_samples
        batch, samples = Dim("batch"), Dim("samples", min=shortest, max=longest)
        num_samples = (shortest + longest) // 2
        inputs = {
            "waveform": torch.zeros(2, num_samples),
            "num_samples": torch.tensor([num_samples, shortest]),
        }
        shapes = {"waveform": {0: batch, 1: samples}, "num_samples": {0: batch}}
        return Example(inputs, shapes, ("logits", "scores"))


def fewest_frames(config: ASTConfig) -> int:
    """The number of frames of two columns of patches."""
    return config.patch_shape[1] + config.time_stride


def dft_matrix(window_samples: int, num_bins: int) -> Tensor:
    """The matrix (window_samples, 2K) of a DFT over 2K samples, without the Nyquist bin.

    The product of a frame and this matrix is the real parts of the K bins, then the imaginary ones.
    """
    # Angles are reduced to one turn first, because sines of large angles lose digits.
    samples, bins = torch.arange(window_samples), torch.arange(num_bins)
    steps = torch.outer(samples, bins) % (2 * num_bins)  # (window_samples, K)
    angles = steps.double() * (math.pi / num_bins)
    return torch.cat((angles.cos(), -angles.sin()), dim=1).float()


__all__ = ["Example", "FrameGraph", "MaskedFrameGraph", "WaveformGraph", "dft_matrix"]
