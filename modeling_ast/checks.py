"""Checks the shapes of the model's inputs and labels; a wrong shape is an error of one sentence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


def checked_input(
    input_values: Tensor | None, attention_mask: Tensor | None, num_mel_bins: int
) -> Tensor:
    """Returns `input_values` after a check of their shape and of the mask's.

    Args:
        input_values: Must have the shape (B, T, F).
        attention_mask: None, or of the shape (B, T); it may have fewer frames.
        num_mel_bins: F.
    Raises:
        ValueError: They have other shapes, or there are no `input_values`.
    """
    if input_values is None:
        raise ValueError("input_values is None; pass what ASTFeatureExtractor returns")
    if input_values.ndim != 3 or input_values.shape[2] != num_mel_bins:
        raise ValueError(
            f"input_values has shape {tuple(input_values.shape)} but must be (clips, frames, "
            f"{num_mel_bins} mel bins); ASTFeatureExtractor.from_config(model.config) makes these"
        )
    if attention_mask is None:
        return input_values
    clips, frames, _ = input_values.shape
    fits = attention_mask.ndim == 2 and attention_mask.shape[0] == clips
    if not fits or attention_mask.shape[1] > frames:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} but must be (clips, "
            f"frames), here {(clips, frames)}; pass the extractor's mask"
        )
    return input_values


def checked_labels(labels: Tensor, logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Checks the shape of labels and returns them in the type that the loss needs.

    `config.problem_type` says which problem it is. If it is None, it is derived from the labels and
    written into the config: "regression" for a model of one label; "multi_label_classification" for
    labels (B, C), integers too; otherwise "single_label_classification" for integers.

    Args:
        labels: (B,) class indices, (B, C) zeros, ones or shares, or numbers.
        logits: (B, C).
    Returns:
        The labels; with one class for each clip they may be shares, see `are_shares`.
    Raises:
        ValueError: The labels have another shape than the problem needs.
    """
    clips, classes = logits.shape
    problem = config.problem_type or _problem_type(labels, logits)
    several = problem == "multi_label_classification" or (problem == "regression" and classes > 1)
    if are_shares(labels, logits, problem):
        return labels.to(logits.dtype)
    fits = labels.shape == logits.shape if several else labels.numel() == clips
    if not fits:
        wanted = (clips, classes) if several else (clips,)
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype} but problem_type "
            f'"{problem}" of a model of {classes} labels needs {tuple(wanted)}; set '
            f'config.problem_type to "single_label_classification" for integers (clips,), to '
            f'"multi_label_classification" for zeros and ones (clips, labels), or to "regression"'
        )
    if config.problem_type is None:
        config.problem_type = problem
    return labels if problem == "single_label_classification" else labels.to(logits.dtype)


def are_shares(labels: Tensor, logits: Tensor, problem_type: str | None) -> bool:
    """Whether labels (B, C) are shares of the classes, in a problem with one class for each clip.

    Mixup and label smoothing make such labels, and the cross entropy accepts them directly.
    """
    one_class = problem_type == "single_label_classification" and logits.shape[1] > 1
    return one_class and labels.is_floating_point() and labels.shape == logits.shape


def _problem_type(labels: Tensor, logits: Tensor) -> ProblemType:
    if logits.shape[1] == 1:
        return "regression"
    is_index = labels.dtype in (torch.long, torch.int) and labels.shape != logits.shape
    return "single_label_classification" if is_index else "multi_label_classification"


__all__ = ["are_shares", "checked_input", "checked_labels"]
