"""The mean of the weights of several AST checkpoints: epochs of one run, or several seeds.

Only the sum and one checkpoint are in memory at a time. Follows Gong et al. 2021, section 3.1, and
the authors' egs/audioset/run.sh, which averages the last epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..configuration_ast import ASTConfig
from ..feature_extraction_ast import ASTFeatureExtractor
from .architecture import need
from .checkpoint_files import find_file, read_json, read_source
from .deit import fit_positions
from .key_maps import (
    AST_HEAD,
    KERNEL,
    POSITIONS,
    ConversionError,
    Weights,
    check_finite,
    compare_shapes,
    rename,
)
from .result import Conversion, build_config, complete

# Fields that must be equal in all configs, because no tensor's shape shows them.
SAME_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "num_mel_bins")
GRID_FIELDS = ("max_length", "frequency_stride", "time_stride")
# Fields that must be equal in all extractors -> the value of an extractor that does not state it.
EXTRACTOR_FIELDS = {
    **dict.fromkeys(("sampling_rate", "num_mel_bins", "do_normalize", "mean", "std")),
    "padding": "max_length",
}


class WeightMean:
    """The mean of state dicts, which are added one after the other to save memory.

    Floating-point values are summed in float32 on the CPU. Other values (counters) are not
    averaged: those of the last state dict are kept.
    """

    def __init__(self):
        self.count = 0
        self._sum_of_shares = 0.0
        self._sums: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Adds a state dict.

        Args:
            weights: With the names and shapes of the first state dict.
            share: Its weight in the mean, relative to the others.
        Raises:
            ValueError: Names or shapes differ, or `share` is negative or not finite.
        """
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"share is {share}; it must be a finite number of 0 or more")
        if self.count == 0:
            self._dtypes = {name: tensor.dtype for name, tensor in weights.items()}
            self._sums = {name: _zeros(tensor) for name, tensor in weights.items()}
        if difference := compare_shapes(weights, self._sums):
            raise ValueError(
                f"the weights differ from those averaged before ({difference}); average "
                f"checkpoints of one architecture only"
            )
        for name, total in self._sums.items():
            value = weights[name]
            # A tensor sharded by FSDP is gathered from all processes.
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            if total.is_floating_point():
                total.add_(value.to(total), alpha=share)
            else:
                total.copy_(value)
        self.count += 1
        self._sum_of_shares += share

    def mean(self, dtype: torch.dtype | None = None) -> Weights:
        """The mean, on the CPU.

        Args:
            dtype: Type of floating-point values; by default that of the first state dict.
        Raises:
            ValueError: Nothing was added, or all shares are 0.
        """
        if self._sum_of_shares == 0:
            raise ValueError("there are no weights to average; add a state dict first")
        return {
            name: (total / self._sum_of_shares).to(dtype or self._dtypes[name])
            if total.is_floating_point()
            else total.clone()
            for name, total in self._sums.items()
        }

    def save(self, file: str | Path) -> None:
        """Writes the sums, so that more state dicts can be added later."""
        types = {name: str(dtype).removeprefix("torch.") for name, dtype in self._dtypes.items()}
        sums = {name: total.contiguous() for name, total in self._sums.items()}
        numbers = {"count": str(self.count), "sum_of_shares": repr(self._sum_of_shares)}
        save_file(sums, file, metadata={**types, **numbers})

    @classmethod
    def load(cls, file: str | Path) -> WeightMean:
        """Reads what `save` wrote."""
        loaded = cls()
        with safe_open(file, "pt") as content:
            types = content.metadata()
            loaded.count = int(types.pop("count"))
            # Files of version 0.1.0 have no shares; each state dict had the share 1.
            loaded._sum_of_shares = float(types.pop("sum_of_shares", loaded.count))
            names = content.keys()
            loaded._sums = {name: content.get_tensor(name) for name in names}
        loaded._dtypes = {name: getattr(torch, types[name]) for name in loaded._sums}
        return loaded


def _zeros(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.zeros(tuple(tensor.shape), dtype=dtype)


def average_checkpoints(
    checkpoints: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    refit_grid: bool = False,
) -> Conversion:
    """The mean of AST checkpoints.

        model = average_checkpoints(["run/checkpoint-100", "run/checkpoint-200"]).build_model()

    Args:
        checkpoints: Directories as save_pretrained writes them, or Hub ids; at least two.
        weights: Weight of each checkpoint in the mean; equal by default.
        refit_grid: Whether position tables of other grids are fitted to the first one's grid.
    Returns:
        The mean in float32, with the config of the first checkpoint and the extractor of the first
        checkpoint that has one. `build_model()` builds the model, and `save(folder)` writes it.
    Raises:
        ConversionError: The checkpoints differ in more than their weights, or one cannot be read.
    Source: the authors' src/traintest.py (`validate_wa`).
    """
    if len(checkpoints) < 2:
        raise ConversionError(
            f"the number of checkpoints is {len(checkpoints)} but a mean needs at least 2; add more"
        )
    shares = read_shares(weights, len(checkpoints))
    configs = [read_config(checkpoint) for checkpoint in checkpoints]
    check_same_models(checkpoints, configs, refit_grid)
    extractor = read_extractor(checkpoints)
    grid = configs[0].patch_grid()
    mean = WeightMean()
    before: Weights = {}
    for checkpoint, config, share in zip(checkpoints, configs, shares):
        state_dict = _read(checkpoint, config, grid)
        before = before or _outline(state_dict)
        try:
            mean.add(state_dict, share)
        except ValueError as error:
            raise ConversionError(f"{checkpoint} does not fit {checkpoints[0]}: {error}") from error
        # Otherwise it would stay in memory while the next one is read.
        del state_dict
    after = mean.mean(torch.float32)
    return complete(configs[0], before, after, {}, grid, extractor, same="averaged")


def _read(checkpoint: str | Path, config: ASTConfig, grid: tuple[int, int]) -> Weights:
    """The weights of a checkpoint under our names, its positions fitted to `grid`."""
    weights = read_source(checkpoint).weights
    try:
        weights = rename(weights, AST_HEAD).weights
        check_finite(weights)
        table = need(weights, POSITIONS, 3)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint} cannot be averaged: {error}") from error
    if config.patch_grid() != grid:
        weights[POSITIONS] = fit_positions(table.float(), config.patch_grid(), grid)
    return weights


def _outline(weights: Weights) -> Weights:
    """The shapes of a checkpoint, and the values of only those tensors that the picture shows."""
    shown = {
        name: need(weights, name, ndim).clone() for name, ndim in ((KERNEL, 4), (POSITIONS, 3))
    }
    return {name: tensor.to("meta") for name, tensor in weights.items()} | shown


def read_shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights -> shares that add up to 1.

    Raises:
        ConversionError: The number is not `count`, one is negative or not finite, or all are 0.
    """
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count:
        raise ConversionError(
            f"there are {len(weights)} weights (--weights) but {count} checkpoints; give one for "
            f"each"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise ConversionError(
            f"the weights (--weights) are {weights}; all must be 0 or more, and one above 0"
        )
    return [weight / sum(weights) for weight in weights]


def read_config(checkpoint: str | Path) -> ASTConfig:
    """The config.json of an AST.

    Args:
        checkpoint: A directory or a Hub id.
    Raises:
        ConversionError: There is no config.json, or it is of another kind of model.
    """
    path = find_file(checkpoint, "config.json")
    if path is None:
        raise ConversionError(
            f"{checkpoint} has no config.json; give directories or Hub ids of AST models"
        )
    fields = read_json(path)
    if fields.get("model_type") != ASTConfig.model_type:
        raise ConversionError(
            f"{checkpoint} is a {fields.get('model_type')!r} but must be an "
            f"{ASTConfig.model_type!r}; average AST models only"
        )
    return build_config(**fields)


def check_same_models(
    checkpoints: Sequence[str | Path], configs: Sequence[ASTConfig], refit_grid: bool
) -> None:
    """Refuses, by name, checkpoints that differ from the first in more than their weights.

    Raises:
        ConversionError: Labels, a field or the grid differ; other grids are allowed if
            `refit_grid`.
    """
    first = configs[0]
    for checkpoint, config in zip(checkpoints[1:], configs[1:]):
        _check_same_labels(checkpoints[0], first, checkpoint, config)
        for name in SAME_FIELDS if refit_grid else SAME_FIELDS + GRID_FIELDS:
            if getattr(config, name) != getattr(first, name):
                hint = (
                    "fit its positions with refit_grid (--refit-grid)"
                    if name in GRID_FIELDS
                    else "leave it out"
                )
                raise ConversionError(
                    f"{name} is {getattr(config, name)} in {checkpoint} but {getattr(first, name)} "
                    f"in {checkpoints[0]}; {hint}"
                )


def _check_same_labels(
    first: str | Path, wanted: ASTConfig, other: str | Path, given: ASTConfig
) -> None:
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


def read_extractor(checkpoints: Sequence[str | Path]) -> ASTFeatureExtractor | None:
    """The extractor of the first checkpoint that has one.

    Raises:
        ConversionError: Two extractors would give the model different features of a clip.
    """
    first: tuple[str | Path, Path, dict[str, Any]] | None = None
    for checkpoint in checkpoints:
        path = find_file(checkpoint, "preprocessor_config.json")
        if path is None:
            continue
        fields = read_json(path)
        first = first or (checkpoint, path, fields)
        for name, default in EXTRACTOR_FIELDS.items():
            given, wanted = (other.get(name, default) for other in (fields, first[2]))
            if given != wanted:
                raise ConversionError(
                    f"{name} of the extractor is {given} in {checkpoint} but {wanted} in "
                    f"{first[0]}; average models that were trained on the same features"
                )
    return ASTFeatureExtractor.from_pretrained(first[1].parent) if first else None


__all__ = ["WeightMean", "average_checkpoints"]
