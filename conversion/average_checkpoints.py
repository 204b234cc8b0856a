"""Averages the weights of several AST checkpoints: epochs of one run, or several seeds.

    python conversion/average_checkpoints.py run/checkpoint-1 run/checkpoint-2 --output my-ast

One checkpoint is read at a time, tensor by tensor: memory holds the sum and one of them. Follows
the authors' egs/audioset/run.sh, which averages the last epochs before the evaluation.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from architecture import need
from checkpoint_files import read_json, read_source
from deit_to_ast import fit_positions
from delivery import Origin, add_output_flags, check_output, deliver, exit_code
from key_maps import (
    AST_HEAD,
    KERNEL,
    POSITIONS,
    ConversionError,
    Weights,
    check_finite,
    rename,
)
from result import Conversion, build_config, complete
from torch import Tensor

from modeling_ast import ASTConfig, ASTFeatureExtractor

# What must be equal and no shape shows.
SAME_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "num_mel_bins")
GRID_FIELDS = ("max_length", "frequency_stride", "time_stride")


def average(state_dicts: Iterable[Mapping[str, Tensor]], shares: Sequence[float]) -> Weights:
    """The weighted mean of state dicts, in float32.

    Args:
        state_dicts: Of equal names and shapes; taken one at a time, and let go.
        shares: One for each, which add up to 1.
    Raises:
        ConversionError: Names or shapes differ.
    """
    state_dicts = iter(state_dicts)
    total: Weights = {}
    for number, share in enumerate(shares, 1):
        weights = next(state_dicts)
        if total:
            _check_same_tensors(total, weights, number)
        for name, tensor in weights.items():
            if name in total:
                total[name].add_(tensor.float(), alpha=share)
            else:
                total[name] = tensor.float() * share
        # Otherwise this one would stay in memory while the next is read.
        del weights, tensor
    return total


def read_checkpoints(
    checkpoints: Sequence[Path], configs: Sequence[ASTConfig]
) -> Iterator[Weights]:
    """The weights of each under our names, with the position grid of the first.

    Raises:
        ConversionError: One cannot be read, or holds NaN.
    """
    grid = configs[0].patch_grid()
    for checkpoint, config in zip(checkpoints, configs):
        weights, _ = rename(read_source(str(checkpoint)).weights, AST_HEAD)
        check_finite(weights)
        table = need(weights, POSITIONS, 3)
        if config.patch_grid() != grid:
            weights[POSITIONS] = fit_positions(table, config.patch_grid(), grid)
        yield weights
        del weights, table


def outline(checkpoint: Path) -> Weights:
    """The shapes of a checkpoint, and of its tensors only what the picture shows."""
    weights, _ = rename(read_source(str(checkpoint)).weights, AST_HEAD)
    shown = {
        name: need(weights, name, ndim).clone() for name, ndim in ((KERNEL, 4), (POSITIONS, 3))
    }
    return {name: tensor.to("meta") for name, tensor in weights.items()} | shown


def convert(
    checkpoints: Sequence[Path], weights: Sequence[float] | None = None, refit_grid: bool = False
) -> Conversion:
    """The mean of AST directories.

    Args:
        checkpoints: Directories as save_pretrained writes them.
        weights: One for each; equal by default.
        refit_grid: Whether grids that differ are fitted to the first one's.
    Raises:
        ConversionError: They differ in more than their weights, or one cannot be read.
    """
    if len(checkpoints) < 2:
        raise ConversionError(f"there is 1 checkpoint, {checkpoints[0]}; give at least 2")
    shares = read_shares(weights, len(checkpoints))
    configs = [read_config(checkpoint) for checkpoint in checkpoints]
    check_same_models(checkpoints, configs, refit_grid)
    extractor = read_extractor(checkpoints)
    before = outline(checkpoints[0])
    after = average(read_checkpoints(checkpoints, configs), shares)
    grid = configs[0].patch_grid()
    return complete(configs[0], before, after, {}, grid, extractor, same="averaged")


def _check_same_tensors(total: Weights, weights: Mapping[str, Tensor], number: int) -> None:
    for name in sorted(total.keys() ^ weights.keys()):
        where = "no" if name in total else "an unknown"
        raise ConversionError(f"checkpoint {number} has {where} {name}; average one architecture")
    for name, tensor in weights.items():
        if tensor.shape != total[name].shape:
            raise ConversionError(
                f"{name} is {tuple(tensor.shape)} in checkpoint {number} but "
                f"{tuple(total[name].shape)} in the first; average checkpoints of one size"
            )


def read_shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights -> shares of 1.

    Raises:
        ConversionError: There are not `count`, or one is negative or not finite, or all are 0.
    """
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count:
        raise ConversionError(
            f"--weights has {len(weights)} numbers but there are {count} checkpoints; give one each"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise ConversionError(f"--weights is {weights}; all must be 0 or more, and one above 0")
    return [weight / sum(weights) for weight in weights]


def read_config(checkpoint: Path) -> ASTConfig:
    """config.json of an AST directory.

    Raises:
        ConversionError: There is none, or it is of another model.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ConversionError(f"{checkpoint} has no config.json; give directories of AST models")
    fields = read_json(path)
    if fields.get("model_type") != ASTConfig.model_type:
        raise ConversionError(
            f"{checkpoint} is a {fields.get('model_type')!r} but must be an "
            f"{ASTConfig.model_type!r}; average AST models only"
        )
    return build_config(**fields)


def check_same_models(
    checkpoints: Sequence[Path], configs: Sequence[ASTConfig], refit_grid: bool
) -> None:
    """Refuses, by name, checkpoints that differ from the first in more than their weights.

    Raises:
        ConversionError: Labels, a field or the grid differ; the latter unless `refit_grid`.
    """
    first = configs[0]
    for checkpoint, config in zip(checkpoints[1:], configs[1:]):
        _check_same_labels(checkpoints[0], first, checkpoint, config)
        fields = SAME_FIELDS + (() if refit_grid else GRID_FIELDS)
        for name in fields:
            if getattr(config, name) != getattr(first, name):
                hint = (
                    "refit the grids with --refit-grid" if name in GRID_FIELDS else "leave it out"
                )
                raise ConversionError(
                    f"{name} is {getattr(config, name)} in {checkpoint} but {getattr(first, name)} "
                    f"in {checkpoints[0]}; {hint}"
                )


def _check_same_labels(first: Path, wanted: ASTConfig, other: Path, given: ASTConfig) -> None:
    if given.num_labels != wanted.num_labels:
        raise ConversionError(
            f"{other} has {given.num_labels} labels but {first} has {wanted.num_labels}; average "
            f"models of one data set"
        )
    for index, name in wanted.id2label.items():
        if given.id2label.get(index) != name:
            raise ConversionError(
                f"label {index} is {given.id2label.get(index)!r} in {other} but {name!r} in "
                f"{first}; average models of one data set"
            )


def read_extractor(checkpoints: Sequence[Path]) -> ASTFeatureExtractor | None:
    """The extractor of the first checkpoint that has one.

    Raises:
        ConversionError: Two of them would show the model different numbers for a clip.
    """
    names = ("sampling_rate", "num_mel_bins", "do_normalize", "mean", "std")
    first: tuple[Path, dict[str, Any]] | None = None
    for checkpoint in checkpoints:
        path = checkpoint / "preprocessor_config.json"
        if not path.is_file():
            continue
        fields = read_json(path)
        first = first or (checkpoint, fields)
        for name in names:
            if fields.get(name) != first[1].get(name):
                raise ConversionError(
                    f"{name} of the extractor is {fields.get(name)} in {checkpoint} but "
                    f"{first[1].get(name)} in {first[0]}; average models trained on equal input"
                )
    return ASTFeatureExtractor.from_pretrained(first[0]) if first else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Averages the weights of AST checkpoints (directories of one architecture).",
        epilog="example: python conversion/average_checkpoints.py run/checkpoint-100 "
        "run/checkpoint-200 --output my-ast",
    )
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="directory of an AST")
    add("--output", type=Path, required=True, metavar="DIR", help="new directory for the mean")
    add("--weights", type=float, nargs="+", metavar="W", help="one each (default: equal)")
    add("--refit-grid", action="store_true", help="fit other grids to the first checkpoint's")
    add_output_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_output(args, args.output, args.checkpoints)
    conversion = convert(args.checkpoints, args.weights, args.refit_grid)
    card = read_source(str(args.checkpoints[0])).card
    origin = Origin(
        name=f"{len(args.checkpoints)} checkpoints",
        base_model=card.get("base_model"),
        license=card.get("license", "other"),
        how=f"The mean of the weights of {', '.join(c.name for c in args.checkpoints)}.",
    )
    deliver(conversion, origin, args.output, args)


if __name__ == "__main__":
    sys.exit(exit_code(main))
