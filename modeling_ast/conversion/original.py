"""Converts a checkpoint of the authors' own AST code: state dict in, state dict out.

The shapes decide strides, frames, statistics and labels, unless the caller gives them. The names of
weights are those of https://github.com/YuanGongND/ast, src/models/ast_models.py, and the numbers
are from its egs/*/run*.sh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers.utils import logging

from ..configuration_ast import ASTConfig
from .architecture import need, read_architecture
from .key_maps import (
    AUTHORS_HEAD,
    KERNEL,
    POSITIONS,
    ConversionError,
    Renamed,
    Weights,
    check_finite,
    refuse_other_families,
    rename,
    unwrap,
)
from .label_names import describe_labels, fetch_label_names
from .result import Conversion, build_config, complete

logger = logging.get_logger(__name__)

# Strides that are tried.
STRIDES = (10, 12, 14, 16)


class DataSet(NamedTuple):
    """The input of the authors' models of one data set, and its labels."""

    max_length: int
    mean: float
    std: float
    label_file: str | None  # a file of huggingface/label-files on the Hub


# Number of labels -> the data set: AudioSet, Speech Commands v2, and ESC-50, whose models were not
# released.
DATA_SETS = {
    527: DataSet(1024, -4.2677393, 4.5689974, "audioset-id2label.json"),
    35: DataSet(128, -6.845978, 5.5654526, "speech-commands-v2-id2label.json"),
    50: DataSet(512, -6.6268077, 5.358466, None),
}
LENGTHS = tuple(data_set.max_length for data_set in DATA_SETS.values())


class FrontEnd(NamedTuple):
    """The fields of a config that decide the patch grid."""

    frequency_stride: int
    time_stride: int
    max_length: int


def convert_original(
    weights: Mapping[str, Tensor] | Renamed, config: ASTConfig | None = None
) -> Weights:
    """Turns the authors' state dict into ours.

        weights = torch.load("audioset_10_10_0.4593.pth", map_location="cpu")
        config = original_config(weights)
        model = ASTForAudioClassification(config)
        model.load_state_dict(convert_original(weights, config))

    Args:
        weights: The weights of the authors' ASTModel, as `torch.load` or `read_weights` returns
            them; or the result of `rename_original`.
        config: The config of the AST; by default `original_config(weights)`.
    Returns:
        The state dict of `ASTForAudioClassification(config)`, in float32; tensors that did not
        change share the memory of `weights`.
    Raises:
        ConversionError: The model is not an AST of the authors, is incomplete, or does not fit
            `config`.
    Source: https://github.com/YuanGongND/ast, src/models/ast_models.py.
    """
    return original_conversion(weights, config).weights


def original_config(
    weights: Mapping[str, Tensor] | Renamed,
    *,
    labels: Mapping[int, str] | None = None,
    num_mel_bins: int = ASTConfig.num_mel_bins,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    max_length: int | None = None,
    mean: float | None = None,
    std: float | None = None,
    num_attention_heads: int | None = None,
) -> ASTConfig:
    """The config of one of the authors' checkpoints.

    Args:
        weights: See `convert_original`.
        labels: Index -> name, see `fetch_original_labels`; by default LABEL_0, LABEL_1, ...
        num_mel_bins: Number of mel bins of the input.
        frequency_stride, time_stride, max_length: Needed if several values fit the shapes.
        mean, std: Mean and standard deviation of the data set's log-mel values; not needed for the
            data sets of the paper.
        num_attention_heads: Needed for a width that no published DeiT or ViT has.
    Raises:
        ConversionError: The model is not an AST of the authors, or its shapes do not decide all
            fields.
    """
    ours = rename_original(weights).weights
    num_labels = count_labels(ours)
    check_labels(labels, num_labels)
    patch_bins, patch_frames = need(ours, KERNEL, 4).shape[2:]
    patch = (patch_bins, patch_frames)
    front_end = find_front_end(
        num_patches=need(ours, POSITIONS, 3).shape[1] - 2,
        num_labels=num_labels,
        patch=patch,
        num_mel_bins=num_mel_bins,
        given=(frequency_stride, time_stride, max_length),
    )
    mean, std = find_statistics(num_labels, mean, std)
    return build_config(
        **read_architecture(ours, {}, num_attention_heads),
        **front_end._asdict(),
        **describe_labels(labels or num_labels),
        patch_size=patch,
        num_mel_bins=num_mel_bins,
        mean=mean,
        std=std,
    )


def original_conversion(
    weights: Mapping[str, Tensor] | Renamed, config: ASTConfig | None = None
) -> Conversion:
    """As `convert_original`, with everything that the table, the picture and the card show.

    Args:
        weights, config: See `convert_original`.
    Raises:
        ConversionError: See `convert_original`.
    """
    source = rename_original(weights)
    check_finite(source.weights)
    config = config or original_config(source)
    after = {name: tensor.float() for name, tensor in source.weights.items()}
    return complete(config, source.weights, after, source.dropped, config.patch_grid())


def rename_original(weights: Mapping[str, Tensor] | Renamed) -> Renamed:
    """The authors' AST under our names, with qkv split: the first step of the functions above.

    They accept its result instead of `weights`, so that several of them can share this step.

    Raises:
        ConversionError: The model is not an AST of the authors, or has an unknown parameter.
    """
    if isinstance(weights, Renamed):
        return weights
    weights = unwrap(weights)
    if not any(name.endswith("mlp_head.1.weight") for name in weights):
        raise ConversionError(
            "the checkpoint has no mlp_head.1.weight, so it is not an AST of the authors; convert "
            "a DeiT or ViT with convert_deit (modeling-ast convert-deit)"
        )
    refuse_other_families(weights)
    return rename(weights, AUTHORS_HEAD)


def find_front_end(
    num_patches: int,
    num_labels: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    given: tuple[int | None, int | None, int | None],
) -> FrontEnd:
    """The strides and the number of frames that a position table was learned for.

    A stride fits if its number of rows of patches divides the number of patches. Then a range of
    frames fits, and the number that the authors used is taken from it.

    Args:
        num_patches: Number of patches of the table, without the prefix tokens.
        num_labels: Number of labels of the head, which shows the data set.
        patch: (frequency, time).
        num_mel_bins: Number of mel bins of the input.
        given: Frequency stride, time stride and frames; None if unknown.
    Raises:
        ConversionError: Nothing fits, or several combinations fit.
    """
    for name, value in zip(FrontEnd._fields, given):
        if value is not None and value < 1:
            raise ConversionError(f"{name} is {value}; it must be 1 or more")
    fitting: Mapping[tuple[int, int], Sequence[int]]
    fitting = _fitting_strides(num_patches, patch, num_mel_bins, given)
    known = DATA_SETS.get(num_labels)
    if given[2] is None and known:
        of_data_set = {s: [known.max_length] for s, f in fitting.items() if known.max_length in f}
        fitting = of_data_set or fitting
    if len(fitting) == 1:
        strides, frames = next(iter(fitting.items()))
        standard = [length for length in LENGTHS if length in frames]
        if given[2] or len(standard) == 1:
            return FrontEnd(*strides, given[2] or standard[0])
    choices = "; ".join(
        f"strides {s[0]} {s[1]} with {f[0]}-{f[-1]} frames" for s, f in fitting.items()
    )
    raise ConversionError(
        f"the position table has {num_patches} patches, which fit {choices or 'no usual stride'}; "
        f"give those of frequency_stride, time_stride, max_length and num_mel_bins that are needed "
        f"(--frequency-stride N, ...)"
    )


def _fitting_strides(
    num_patches: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    given: tuple[int | None, int | None, int | None],
) -> dict[tuple[int, int], range]:
    """(frequency stride, time stride) -> the numbers of frames that give `num_patches`."""
    frequency_stride, time_stride, max_length = given
    fitting = {}
    for stride in STRIDES:
        pair = (frequency_stride or stride, time_stride or stride)
        rows = 1 + (num_mel_bins - patch[0]) // pair[0]
        if rows < 1 or num_patches % rows:
            continue
        shortest = patch[1] + (num_patches // rows - 1) * pair[1]
        frames = range(shortest, shortest + pair[1])
        if max_length is None or max_length in frames:
            fitting[pair] = frames
    return fitting


def find_statistics(num_labels: int, mean: float | None, std: float | None) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel values that the model was trained on.

    Raises:
        ConversionError: They were not given and the data set is not one of the paper's, or only one
            of the two was given.
    """
    if mean is not None and std is not None:
        return mean, std
    both = "give both mean and std, e.g. AudioSet's: --mean -4.2677393 --std 4.5689974"
    if (mean, std) != (None, None):
        raise ConversionError(f"mean is {mean} and std is {std}; {both}")
    known = DATA_SETS.get(num_labels)
    if known is None:
        raise ConversionError(
            f"no data set of the paper has {num_labels} labels, so the statistics of this model's "
            f"data set are unknown; {both}"
        )
    return known.mean, known.std


def count_labels(ours: Mapping[str, Tensor]) -> int:
    """The number of labels of the head; `ours` has our names."""
    return need(ours, "classifier.dense.weight", 2).shape[0]


def check_labels(labels: Mapping[int, str] | None, num_labels: int) -> None:
    """Refuses names whose number differs from the number of the head's labels.

    Raises:
        ConversionError: The numbers differ.
    """
    if labels is not None and len(labels) != num_labels:
        raise ConversionError(
            f"there are {len(labels)} label names but the checkpoint's head has {num_labels} "
            f"labels; give the names that it was trained with (--label-csv FILE)"
        )


def fetch_original_labels(weights: Mapping[str, Tensor] | Renamed) -> dict[int, str] | None:
    """The names of a released checkpoint's labels, from the Hub.

    Args:
        weights: See `convert_original`.
    Returns:
        Index -> name; or None, with a warning, if the Hub has no names or cannot be reached.
    Raises:
        ConversionError: The model is not an AST of the authors.
    """
    known = DATA_SETS.get(count_labels(rename_original(weights).weights))
    if known and known.label_file:
        try:
            return fetch_label_names(known.label_file)
        except ConversionError:
            logger.warning(f"{known.label_file} cannot be fetched from the Hub")
    logger.warning(
        "the labels are named LABEL_0, LABEL_1, ...; give their names as --label-csv FILE"
    )
    return None


__all__ = [
    "convert_original",
    "fetch_original_labels",
    "find_front_end",
    "find_statistics",
    "original_config",
    "original_conversion",
    "rename_original",
]
