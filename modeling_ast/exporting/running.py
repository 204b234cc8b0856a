"""Runs the ONNX files with onnxruntime: the inputs of each kind, and whole recordings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..calibration import logit, sigmoid
from ..clip_parts import equal_parts
from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from .onnx_files import OnnxFile, WaveformSettings


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session for a file on the CPU, with as many threads as this process may use.

    Raises:
        ValueError: onnxruntime cannot run the file.
    """
    options = onnxruntime.SessionOptions()
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # No busy waiting between calls, which would slow down torch and all other sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # onnxruntime's errors have no common class.
    except Exception as error:
        raise ValueError(
            f"cannot run {path} ({one_line(error)}); write it again with modeling-ast export"
        ) from error


def inputs_of(
    file: OnnxFile, waveforms: list[Tensor], extractor: ASTFeatureExtractor, padding: str
) -> dict[str, np.ndarray]:
    """The inputs of a file for clips (S,).

    Args:
        padding: For files that take frames; waveform.onnx pads the clips itself.
    """
    if file.graph == "waveform":
        waveform = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)  # (B, S)
        num_samples = np.array([len(clip) for clip in waveforms])  # (B,)
        return {"waveform": waveform.numpy(), "num_samples": num_samples}
    inputs = extractor.extract(waveforms, padding, return_attention_mask=file.graph == "masked")
    return {name: values.numpy() for name, values in inputs.items()}


class WaveformModel:
    """A file waveform.onnx: recordings of any length -> scores, without a model in torch.

    Args:
        path: Path of waveform.onnx or waveform_quantized.onnx.

    Raises:
        ValueError: The file is neither of these.

    Example:

    ```python
    >>> from modeling_ast import read_audio
    >>> from modeling_ast.exporting import WaveformModel
    >>> model = WaveformModel("my-ast/onnx/waveform.onnx")  # doctest: +SKIP
    >>> model.scores(read_audio("dog.wav", model.settings.sampling_rate))  # doctest: +SKIP
    ```
    """

    def __init__(self, path: str | Path):
        self.session = open_session(Path(path))
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.settings = WaveformSettings.of_metadata(metadata)
        except KeyError as error:
            raise ValueError(
                f"{path} has no {error.args[0]} in its metadata; give the waveform.onnx that "
                f"modeling-ast export wrote"
            ) from error

    def scores(self, waveform: np.ndarray) -> np.ndarray:
        """Scores a recording as `AudioTagger` does.

        Args:
            waveform: (S,), in [-1, 1], at `settings.sampling_rate`.
        Returns:
            (C,), float32, in the order of `settings.labels`.
        Raises:
            ValueError: The waveform is shorter than one window of 25 ms.
        """
        parts = self._parts(waveform)
        if len(parts) == 1:
            return self._run(waveform, "scores")
        # The calibration is applied to the mean of the parts' scores, not to each part.
        logits = np.stack([self._run(waveform[start:stop], "logits") for start, stop in parts])
        return self._calibrated(self._activated(logits.astype(np.float64)).mean(0))

    def part_scores(self, waveform: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Cuts a recording into equal parts, as `AudioTagger` does, and scores each.

        Args:
            waveform: As for `scores`.
        Returns:
            (start, stop) of the P parts, in samples, and their scores (P, C), float32.
        """
        parts = self._parts(waveform)
        return parts, np.stack([self._run(waveform[start:stop], "scores") for start, stop in parts])

    def _parts(self, waveform: np.ndarray) -> list[tuple[int, int]]:
        shortest = self.settings.min_samples
        if waveform.ndim != 1 or len(waveform) < shortest:
            raise ValueError(
                f"the waveform has shape {waveform.shape} but one clip of at least {shortest} "
                f"samples is needed; pad it with zeros or drop it"
            )
        return equal_parts(len(waveform), self.settings.max_samples)

    def _run(self, part: np.ndarray, output: str) -> np.ndarray:
        given = {
            "waveform": part[None].astype(np.float32),
            "num_samples": np.array([len(part)], np.int64),
        }
        (rows,) = self.session.run([output], given)
        return rows[0]

    def _activated(self, logits: np.ndarray) -> np.ndarray:
        """Logits (..., C) -> scores, without a calibration."""
        if self.settings.activation == "sigmoid":
            return sigmoid(logits)
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def _calibrated(self, scores: np.ndarray) -> np.ndarray:
        settings = self.settings
        if settings.slopes is None or settings.intercepts is None:
            return scores.astype(np.float32)
        if settings.activation == "softmax":
            powers = scores ** np.array(settings.slopes)
            return (powers / powers.sum()).astype(np.float32)
        moved = np.array(settings.slopes) * logit(scores) + np.array(settings.intercepts)
        return sigmoid(moved).astype(np.float32)


__all__ = ["WaveformModel", "inputs_of", "open_session"]
