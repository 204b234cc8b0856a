"""transformers' Auto classes give ours, without the price of importing them.

The modules of the Auto classes take a third of a second to import and `PreTrainedModel` takes some
more: what only reads or decodes audio, or forks many workers, should not wait for them. So each of
these modules is told of our classes when it has been imported, by whoever does it, and of the
models by name only: their file is imported when an Auto class is asked for one.
"""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .configuration_ast import ASTConfig
from .feature_extraction_ast import ASTFeatureExtractor


def register_auto_classes() -> None:
    """Registers with the modules that are imported already; with the others once they are."""
    for name, register in (
        ("transformers.models.auto.configuration_auto", _register_config),
        ("transformers.models.auto.feature_extraction_auto", _register_feature_extractor),
        ("transformers.models.auto.modeling_auto", _register_models),
    ):
        if name in sys.modules:
            register(import_module(name))  # waits, should another thread be at it
        else:
            sys.meta_path.insert(0, _AfterImport(name, register))


def _register_config(module: ModuleType) -> None:
    module.AutoConfig.register(ASTConfig.model_type, ASTConfig, exist_ok=True)


def _register_feature_extractor(module: ModuleType) -> None:
    module.AutoFeatureExtractor.register(ASTConfig, ASTFeatureExtractor, exist_ok=True)
    # A preprocessor_config.json that names "ASTFeatureExtractor" is resolved by that name, first in
    # this table of transformers' own classes.
    module.FEATURE_EXTRACTOR_MAPPING_NAMES.pop(ASTConfig.model_type, None)


def _register_models(module: ModuleType) -> None:
    # Not the classes: this may run in the midst of an import that their file needs itself.
    for auto, name in (
        (module.AutoModel, "ASTModel"),
        (module.AutoModelForAudioClassification, "ASTForAudioClassification"),
    ):
        mapping = auto._model_mapping
        mapping._extra_content = _ModelsByName(mapping._extra_content)
        auto.register(ASTConfig, name, exist_ok=True)


class _ModelsByName(UserDict):
    """Registered models, where a name stands for the class of that name in our modeling_ast.py."""

    def __getitem__(self, key: type):
        value = super().__getitem__(key)
        if isinstance(value, str):
            return getattr(import_module(".modeling_ast", __package__), value)
        return value


class _AfterImport(MetaPathFinder):
    """Leaves a module to the other finders, and calls `then` with it as soon as it has run."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]):
        self.name, self.then = name, then

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.then(module)

            # The loader stays what it was, with its sources: nobody who looks sees another.
            spec.loader.exec_module = exec_module
        return spec


__all__ = ["register_auto_classes"]
