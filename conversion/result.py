"""The converted AST, checked against the model and the config it is for, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from key_maps import (
    KERNEL,
    POSITIONS,
    ConversionError,
    Weights,
    load_exactly,
    one_line,
    prefix_encoder,
)
from report import PatchPart, Row, describe
from torch import Tensor

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification


class Conversion(NamedTuple):
    """What a script made: nothing is on disk yet."""

    config: ASTConfig
    weights: Weights  # of ASTForAudioClassification
    rows: list[Row]
    before: PatchPart
    after: PatchPart
    extractor: ASTFeatureExtractor


def build_config(**fields) -> ASTConfig:
    """ASTConfig of these fields.

    Raises:
        ConversionError: They describe no possible network.
    """
    try:
        return ASTConfig(**fields)
    except StrictDataclassError as error:
        raise ConversionError(one_line(error.__cause__ or error)) from error


def build_model(config: ASTConfig, weights: Weights) -> ASTForAudioClassification:
    """The model that holds exactly `weights`, which it shares."""
    with torch.device("meta"):
        model = ASTForAudioClassification(config)
    load_exactly(model, weights)
    return model.eval()


def complete(
    config: ASTConfig,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    dropped: Mapping[str, Tensor],
    old_grid: tuple[int, int],
    extractor: ASTFeatureExtractor | None = None,
    same: str = "carried",
) -> Conversion:
    """Checks that `after` is exactly what the model of `config` needs, and describes it.

    Args:
        before, after, dropped, same: See `report.describe`.
        old_grid: (Gf, Gt) of the source's position table.
        extractor: By default the one that matches `config`.
    Raises:
        ConversionError: A parameter is missing, unknown, or of another shape.
    """
    weights = prefix_encoder(after)
    build_model(config, weights)
    return Conversion(
        config=config,
        weights=weights,
        rows=describe(before, after, dropped, same),
        before=PatchPart(before[KERNEL], before[POSITIONS], old_grid),
        after=PatchPart(after[KERNEL], after[POSITIONS], config.patch_grid()),
        extractor=extractor or ASTFeatureExtractor.from_config(config),
    )


def save(conversion: Conversion, folder: Path, card: str = "") -> None:
    """Writes config.json, model.safetensors, preprocessor_config.json and README.md."""
    build_model(conversion.config, conversion.weights).save_pretrained(folder)
    conversion.extractor.save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(card, "utf-8")
