"""The converted AST, checked against the model that it is for, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_ast import ASTConfig
from ..errors import one_line
from ..feature_extraction_ast import ASTFeatureExtractor
from ..modeling_ast import ASTForAudioClassification
from .key_maps import KERNEL, POSITIONS, ConversionError, Weights, load_exactly, prefix_encoder
from .report import PatchPart, Row, describe


class Conversion(NamedTuple):
    """A converted AST with all that its report and its card need; nothing is on disk yet."""

    config: ASTConfig
    weights: Weights  # the state dict of ASTForAudioClassification(config)
    rows: list[Row]  # of the table, see `format_table`
    before: PatchPart  # of the picture, see `draw`
    after: PatchPart
    extractor: ASTFeatureExtractor

    def build_model(self) -> ASTForAudioClassification:
        """The model that holds `weights`, which it shares, in evaluation mode."""
        return _build_model(self.config, self.weights)

    def save(self, folder: str | Path, card: str = "") -> None:
        """Writes config.json, model.safetensors and preprocessor_config.json.

        Args:
            folder: Is created if it is missing; files in it are replaced.
            card: The text of README.md, which is not written without it.
        """
        self.build_model().save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        if card:
            Path(folder, "README.md").write_text(card, "utf-8")


def build_config(**fields) -> ASTConfig:
    """ASTConfig of these fields.

    Raises:
        ConversionError: They describe no possible network.
    """
    try:
        return ASTConfig(**fields)
    except StrictDataclassError as error:
        raise ConversionError(one_line(error.__cause__ or error)) from error


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
        config: Of the AST.
        before, after, dropped, same: See `report.describe`.
        old_grid: (Gf, Gt) of the source's position table.
        extractor: By default the one that matches `config`.
    Raises:
        ConversionError: A parameter is missing, unknown, or of another shape.
    """
    weights = prefix_encoder(after)
    _build_model(config, weights)
    return Conversion(
        config=config,
        weights=weights,
        rows=describe(before, after, dropped, same),
        before=PatchPart(before[KERNEL], before[POSITIONS], old_grid),
        after=PatchPart(after[KERNEL], after[POSITIONS], config.patch_grid()),
        extractor=extractor or ASTFeatureExtractor.from_config(config),
    )


def _build_model(config: ASTConfig, weights: Weights) -> ASTForAudioClassification:
    with torch.device("meta"):
        model = ASTForAudioClassification(config)
    load_exactly(model, weights)
    return model.eval()


__all__ = ["Conversion", "build_config", "complete"]
