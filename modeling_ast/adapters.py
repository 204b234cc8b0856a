"""The folder of an adapter (LoRA and its like, trained with peft) and its base model -> one model.

An adapter holds what was learned on top of a base model: a few small matrices for each layer, and
the head. Its folder names the base model. This file merges the two into one model of plain weights,
which is as fast as the base model and which every tool accepts (extra `lora`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from .errors import need_extra, one_line

# The form of a model's name on the Hub.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
ADAPTER_FILES = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
HEAD = "classifier."
# The beginning of the names of an adapter's weights.
_PEFT_PREFIX = "base_model.model."


class Adapter(NamedTuple):
    """An adapter as it was found."""

    source: str  # its folder, or its name on the Hub
    base: str  # the folder of its base model, or that one's name on the Hub
    settings: dict[str, Any]  # adapter_config.json


def find_adapter(source: str | Path | None, **hub) -> Adapter | None:
    """The adapter of a folder or of a name on the Hub.

    Args:
        source: A folder, or a name on the Hub.
        hub: Arguments of `from_pretrained` about the Hub, such as `revision`.
    Returns:
        None if there is no adapter, or if the weights of a whole model are in the same place.
    Raises:
        ValueError: adapter_config.json is damaged, or its base model is not there.
    """
    if source is None or (file := file_of(source, ADAPTER_CONFIG_NAME, **hub)) is None:
        return None
    if any(file_of(source, name, **hub) for name in WEIGHT_FILES):
        return None
    try:
        settings = json.loads(file.read_text("utf-8"))
        base = settings["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"its {ADAPTER_CONFIG_NAME} is damaged or names no base_model_name_or_path "
            f"({one_line(error)}); get it again"
        ) from error
    return Adapter(str(source), _existing_base(source, base), settings)


def _existing_base(source: str | Path, base: Any) -> str:
    """The base model's folder, as named or relative to the adapter's, or its name on the Hub."""
    mend = f"correct base_model_name_or_path in its {ADAPTER_CONFIG_NAME}"
    if not isinstance(base, str) or not base:
        raise ValueError(f"it is an adapter whose base model is {base!r}; {mend}")
    for folder in (Path(base), Path(source) / base):
        if folder.is_dir():
            if Path(source).is_dir() and os.path.samefile(folder, source):
                raise ValueError(f"it is an adapter that names itself as its base model; {mend}")
            return str(folder)
    if not HUB_NAME.fullmatch(base):
        raise ValueError(
            f"it is an adapter, and its base model {base!r} is not there; put it there, or {mend}"
        )
    return base


def file_of(source: str | Path, name: str, **hub) -> Path | None:
    """A file of a folder or of a model on the Hub; None if it is missing or cannot be reached."""
    folder = Path(source)
    if not folder.is_dir() and (folder.exists() or not HUB_NAME.fullmatch(str(source))):
        return None
    found = cached_file(
        str(source),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if found is None else Path(found)


def holder_of(source: str | Path, name: str) -> str | Path:
    """Where a file of a model is: an adapter takes the files that it lacks from its base model.

    Args:
        source: A folder, or a name on the Hub.
        name: Of the file.
    Returns:
        `source`, or the base model.
    Raises:
        ValueError: As `find_adapter`.
    """
    if file_of(source, name) is not None or (adapter := find_adapter(source)) is None:
        return source
    return holder_of(adapter.base, name)


def merge_adapter(model: PreTrainedModel, adapter: Adapter, **hub) -> PreTrainedModel:
    """The model with the adapter's weights added to its own.

    Args:
        model: The base model, in float32, with a head of the adapter's size. If it has no head, the
            adapter's head is left out.
        adapter: From `find_adapter`.
        hub: As there.
    Returns:
        A model of the same class.
    Raises:
        MissingExtra: peft is not installed.
        ValueError: The adapter's weights are not there, or do not fit the model.
    """
    file = file_of(adapter.source, ADAPTER_SAFE_WEIGHTS_NAME, **hub)
    if file is None:
        raise ValueError(
            f"it is an adapter without {ADAPTER_SAFE_WEIGHTS_NAME}; get it again, or save it with "
            f"safe_serialization=True"
        )
    peft = need_peft(f"the adapter {adapter.source}")
    weights = load_file(file)
    if not hasattr(model, HEAD.removesuffix(".")):
        weights = _of_the_body(weights, model.base_model_prefix)
    settings = _settings_of(adapter, peft, has_head=any(map(_is_of_head, weights)))
    try:
        with quiet_peft():
            adapted = peft.PeftModel(model, settings)
    except (TypeError, ValueError) as error:
        reason = one_line(error).partition(". ")[0]
        raise ValueError(f"it is an adapter of another kind of model ({reason})") from error
    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _check_weights(weights, expected, adapter)
    peft.set_peft_model_state_dict(adapted, weights)
    return adapted.merge_and_unload()


def _settings_of(adapter: Adapter, peft: ModuleType, has_head: bool) -> Any:
    """peft's own config of the adapter."""
    try:
        with quiet_peft():
            settings = peft.PeftConfig.from_peft_type(**adapter.settings)
    # peft gets the content of the file unchecked, and may raise anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"its {ADAPTER_CONFIG_NAME} is damaged ({reason})") from error
    if settings.is_prompt_learning:
        raise ValueError(
            f"it is an adapter of the kind {adapter.settings['peft_type']!r}, which adds tokens "
            f"of text; give one whose weights can be merged, such as LORA"
        )
    settings.inference_mode = True
    if not has_head:
        settings.modules_to_save = None
    return settings


def _is_of_head(name: str) -> bool:
    return name.removeprefix(_PEFT_PREFIX).startswith(HEAD)


def _of_the_body(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights for a model without a head, with the names that they have in it."""
    start = f"{_PEFT_PREFIX}{prefix}."
    return {
        _PEFT_PREFIX + name.removeprefix(start): tensor
        for name, tensor in weights.items()
        if name.startswith(start)
    }


def _check_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], adapter: Adapter
) -> None:
    """Refuses missing or unexpected weights and shapes: peft only warns, or lists hundreds."""
    for name in sorted(weights.keys() | expected.keys()):
        found = {
            "the adapter": weights[name].shape if name in weights else None,
            f"the base model {adapter.base}": expected[name].shape if name in expected else None,
        }
        if len(set(found.values())) == 1:
            continue
        (first, shape), (second, other) = found.items()
        sizes = [f"{tuple(size)}" if size is not None else "missing" for size in (shape, other)]
        raise ValueError(
            f"it is an adapter that does not fit: {name.removeprefix(_PEFT_PREFIX)} is "
            f"{sizes[0]} in {first} and {sizes[1]} for {second}; get it again, or name the base "
            f"model that it was trained on in its {ADAPTER_CONFIG_NAME}"
        )


def need_peft(purpose: str) -> ModuleType:
    """peft itself, if it is installed.

    Args:
        purpose: What needs it, as the subject of a message.
    Raises:
        MissingExtra: It is not installed.
    """
    with quiet_peft():
        return need_extra("peft", "lora", purpose)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides peft's warnings about other libraries, also those during its import."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # peft imports torchao if that is installed, and torch then logs a deprecation.
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


__all__ = [
    "ADAPTER_FILES",
    "HEAD",
    "HUB_ARGUMENTS",
    "HUB_NAME",
    "WEIGHT_FILES",
    "Adapter",
    "file_of",
    "find_adapter",
    "holder_of",
    "merge_adapter",
    "need_peft",
    "quiet_peft",
]
