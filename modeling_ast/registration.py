"""Makes transformers' Auto classes return the classes of this package."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
)
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

from .configuration_ast import ASTConfig
from .feature_extraction_ast import ASTFeatureExtractor


def register_auto_classes() -> None:
    """Registers our classes for every AST checkpoint, the models by name.

    The file of the models needs `transformers.modeling_utils`, whose import takes seconds.
    Therefore it is imported only when an Auto class is asked for a model.
    """
    AutoConfig.register(ASTConfig.model_type, ASTConfig, exist_ok=True)
    AutoFeatureExtractor.register(ASTConfig, ASTFeatureExtractor, exist_ok=True)
    # The name "ASTFeatureExtractor" in a preprocessor_config.json is looked up in this table of
    # transformers' own classes first. Without its entry there, it is ours that is found.
    FEATURE_EXTRACTOR_MAPPING_NAMES.pop(ASTConfig.model_type, None)
    for auto_class, name in (
        (AutoModel, "ASTModel"),
        (AutoModelForAudioClassification, "ASTForAudioClassification"),
    ):
        mapping: Any = auto_class._model_mapping
        mapping._extra_content = _ModelsByName(mapping._extra_content)
        auto_class.register(ASTConfig, name, exist_ok=True)


class _ModelsByName(UserDict):
    """Registered models; a name stands for the class of that name in our modeling_ast.py."""

    def __getitem__(self, key: type):
        value = super().__getitem__(key)
        if isinstance(value, str):
            return getattr(import_module(".modeling_ast", __package__), value)
        return value


__all__ = ["register_auto_classes"]
