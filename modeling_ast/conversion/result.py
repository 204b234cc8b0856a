"""The converted AST, checked against the model class, and saved."""

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
    """A converted AST with everything that its report and its card need; not yet on disk."""

    config: ASTConfig
    weights: Weights  # the state dict of ASTForAudioClassification(config)
    rows: list[Row]  # rows of the table, see `format_table`
    before: PatchPart  # for the picture, see `draw`
    after: PatchPart
    extractor: ASTFeatureExtractor

    def build_model(self) -> ASTForAudioClassification:
        """The model in evaluation mode; it shares the memory of `weights`."""
        return _build_model(self.config, self.weights)

    def save(self, folder: str | Path, card: str = "") -> None:
        """Writes config.json, model.safetensors and preprocessor_config.json.

        Args:
            folder: Created if it does not exist; files in it are replaced.
            card: The text of README.md; if it is empty, README.md is not written.
        """
        self.build_model().save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        if card:
            Path(folder, "README.md").write_text(card, "utf-8")


def build_config(**fields) -> ASTConfig:
    """ASTConfig of these fields.

    Raises:
        ConversionError: No network can have these fields.
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
        config: The config of the AST.
        before, after, dropped, same: See `report.describe`.
        old_grid: (Gf, Gt) of the source's position table.
        extractor: By default the extractor that matches `config`.
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
