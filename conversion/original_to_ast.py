"""Converts a checkpoint of the authors' own AST code, a .pth file.

    python conversion/original_to_ast.py audioset_10_10_0.4593.pth my-ast

Strides, frames, statistics and labels are worked out from the shapes, or asked for. Follows the
names of https://github.com/YuanGongND/ast, src/models/ast_models.py and egs/*/run*.sh.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from architecture import need, read_architecture
from checkpoint_files import read_weights
from delivery import Origin, add_output_flags, check_output, deliver, exit_code
from key_maps import (
    AUTHORS_HEAD,
    KERNEL,
    POSITIONS,
    ConversionError,
    check_finite,
    refuse_other_families,
    rename,
    split_qkv,
)
from label_names import describe_labels, fetch_label_names, read_label_csv
from result import Conversion, build_config, complete
from torch import Tensor
from transformers.utils import logging

from modeling_ast import ASTConfig

logger = logging.get_logger(__name__)

STRIDES = (10, 12, 14, 16)


class DataSet(NamedTuple):
    """What the authors trained with on one data set."""

    max_length: int
    mean: float
    std: float
    label_file: str | None  # in the Hub's huggingface/label-files


# By the number of labels: AudioSet, Speech Commands v2, ESC-50 (whose models are not released).
DATA_SETS = {
    527: DataSet(1024, -4.2677393, 4.5689974, "audioset-id2label.json"),
    35: DataSet(128, -6.845978, 5.5654526, "speech-commands-v2-id2label.json"),
    50: DataSet(512, -6.6268077, 5.358466, None),
}
LENGTHS = tuple(data_set.max_length for data_set in DATA_SETS.values())


class FrontEnd(NamedTuple):
    """The patch grid's side of a config."""

    frequency_stride: int
    time_stride: int
    max_length: int


def convert(
    weights: Mapping[str, Tensor],
    *,
    labels: dict[int, str] | None = None,
    num_mel_bins: int = ASTConfig.num_mel_bins,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
    max_length: int | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Conversion:
    """Turns the authors' state dict into ours.

    Args:
        weights: Of the authors' ASTModel, without DataParallel's "module.".
        labels: Names; LABEL_0, ... by default.
        num_mel_bins: Mel bins of the input.
        frequency_stride, time_stride, max_length: Where the shapes do not tell them.
        mean, std: Of the data set's log-mel values; known for those of the paper.
    Raises:
        ConversionError: It is no AST of the authors, or its shapes leave something open.
    """
    if not any(name.endswith("mlp_head.1.weight") for name in weights):
        raise ConversionError(
            "the checkpoint has no mlp_head.1.weight, so it is no AST of the authors; convert a "
            "DeiT or ViT with conversion/deit_to_ast.py"
        )
    refuse_other_families(weights)
    before, dropped = rename(weights, AUTHORS_HEAD)
    before = split_qkv(before)
    check_finite(before)
    num_labels = need(before, "classifier.dense.weight", 2).shape[0]
    check_labels(labels, num_labels)
    patch = tuple(need(before, KERNEL, 4).shape[2:])
    front_end = find_front_end(
        num_patches=need(before, POSITIONS, 3).shape[1] - 2,
        num_labels=num_labels,
        patch=patch,
        num_mel_bins=num_mel_bins,
        given=(frequency_stride, time_stride, max_length),
    )
    mean, std = find_statistics(num_labels, mean, std)
    config = build_config(
        **read_architecture(before, {}),
        **front_end._asdict(),
        **describe_labels(labels or num_labels),
        patch_size=patch,
        num_mel_bins=num_mel_bins,
        mean=mean,
        std=std,
    )
    after = {name: tensor.float() for name, tensor in before.items()}
    return complete(config, before, after, dropped, config.patch_grid())


def find_front_end(
    num_patches: int,
    num_labels: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    given: tuple[int | None, int | None, int | None],
) -> FrontEnd:
    """The strides and frames of a position table.

    A stride fits if it cuts the mel bins into a number of rows that divides the patches; then a
    whole range of frames fits, of which the one that the authors used is taken.

    Args:
        given: Frequency stride, time stride and frames, None where unknown.
    Raises:
        ConversionError: Nothing fits, or more than one thing does.
    """
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
        f"say --frequency-stride, --time-stride, --max-length and --num-mel-bins as far as needed"
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
    """Mean and standard deviation of the log-mel values the model was trained on.

    Raises:
        ConversionError: The data set is none of the paper's and they were not given.
    """
    if mean is not None and std is not None:
        return mean, std
    known = DATA_SETS.get(num_labels)
    if known is None or (mean, std) != (None, None):
        raise ConversionError(
            f"a head of {num_labels} labels is none of the paper's, so its data set's statistics "
            f"are unknown; say both, e.g. AudioSet's: --mean -4.2677393 --std 4.5689974"
        )
    return known.mean, known.std


def check_labels(labels: dict[int, str] | None, num_labels: int) -> None:
    """Refuses another number of names than the head has labels."""
    if labels is not None and len(labels) != num_labels:
        raise ConversionError(
            f"the label file has {len(labels)} labels but the checkpoint's head has {num_labels}; "
            f"give the label file it was trained with"
        )


def find_labels(path: Path | None, weights: Mapping[str, Tensor]) -> dict[int, str] | None:
    """Names from a label file, or from the Hub if it is within reach; else None, with a warning."""
    if path is not None:
        return read_label_csv(path)
    heads = [tensor for name, tensor in weights.items() if name.endswith("mlp_head.1.weight")]
    known = DATA_SETS.get(len(heads[0])) if heads else None
    if known and known.label_file:
        try:
            return fetch_label_names(known.label_file)
        except ConversionError:
            logger.warning(f"the Hub's {known.label_file} is out of reach")
    logger.warning("the labels are called LABEL_0, LABEL_1, ...; name them with --label-csv FILE")
    return None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Converts a checkpoint of the authors' own AST code (a .pth file).",
        epilog="example: python conversion/original_to_ast.py audioset_10_10_0.4593.pth my-ast "
        "--label-csv class_labels_indices.csv",
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    add("source", type=Path, help="the authors' .pth file")
    add("output_dir", type=Path, help="new directory for the AST")
    add("--label-csv", type=Path, metavar="FILE", help="default: the list on the Hub")
    add("--frequency-stride", **number, help="where the shapes do not tell it")
    add("--time-stride", **number, help="where the shapes do not tell it")
    add("--max-length", **number, help="frames, where the shapes do not tell them")
    add("--num-mel-bins", **number, default=ASTConfig.num_mel_bins, help="default 128")
    add("--mean", type=float, metavar="X", help="of log-mel values, if not of a known data set")
    add("--std", type=float, metavar="X", help="their standard deviation")
    add_output_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_output(args, args.output_dir, [args.source])
    weights = read_weights(args.source)
    conversion = convert(
        weights,
        labels=find_labels(args.label_csv, weights),
        num_mel_bins=args.num_mel_bins,
        frequency_stride=args.frequency_stride,
        time_stride=args.time_stride,
        max_length=args.max_length,
        mean=args.mean,
        std=args.std,
    )
    origin = Origin(
        name=args.source.name,
        base_model=None,
        license="bsd-3-clause",
        how="A checkpoint of the authors' code (https://github.com/YuanGongND/ast), head included.",
    )
    deliver(conversion, origin, args.output_dir, args)


if __name__ == "__main__":
    sys.exit(exit_code(main))
