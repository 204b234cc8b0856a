"""A path or a Hub id -> the weights and the config.json of its checkpoint, as they are stored.

No model class is built. Pickles are read with weights_only=True, so that a file cannot run code.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import (
    _CACHED_NO_EXIST,
    hf_hub_download,
    metadata_load,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import one_line
from ..hub_lookup import hub_lookup
from .key_maps import ConversionError, Weights, unwrap

# In the order of preference: safetensors cannot run code and is read without copying.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_HUB_ID = re.compile(r"(hf[-_]hub:)?(?P<repo>[\w.-]+/[\w.-]+)")


class Source(NamedTuple):
    """A checkpoint as it was found."""

    weights: Weights
    config: dict[str, Any]  # config.json, empty for a single file
    repo: str | None = None  # the Hub id, if it came from the Hub
    card: Mapping[str, Any] = MappingProxyType({})  # metadata of its README.md


def read_source(source: str | Path) -> Source:
    """Reads a file, a directory of transformers or timm, or a model on the Hub.

    Args:
        source: Path of a directory, of a .safetensors or of a PyTorch file, or a Hub id such as
            facebook/deit-base-distilled-patch16-384.
    Raises:
        ConversionError: The source does not exist, cannot be read, or is not a checkpoint.
    """
    path = Path(source)
    if path.is_file():
        return Source(read_weights(path), {})
    config_file = find_file(source, "config.json")
    config = read_json(config_file) if config_file else {}
    repo = None if path.is_dir() else _hub_id(source)
    return Source(_read_folder(source), config, repo, read_card(source))


def find_file(source: str | Path, name: str) -> Path | None:
    """The path of a file in a directory or in a model on the Hub, or None if it does not exist.

    Args:
        source: Path of a directory, or a Hub id.
        name: Name of the file.
    Raises:
        ConversionError: There is no such directory or model, or the Hub cannot be reached.
    """
    if not Path(source).is_dir():
        return download(_hub_id(source), name)
    path = Path(source, name)
    return path if path.is_file() else None


def read_card(source: str | Path) -> Mapping[str, Any]:
    """The metadata of a model card; empty if there is no card, or it cannot be read."""
    try:
        card = find_file(source, "README.md")
        return (metadata_load(card) if card else None) or {}
    except (ConversionError, ValueError, yaml.YAMLError):
        return {}


def download(repo: str, name: str, repo_type: str = "model") -> Path | None:
    """The local path of a file of the Hub, or None if the repository has no such file.

    Raises:
        ConversionError: The Hub cannot be reached, or has no such repository that this user may
            read.
    """
    try:
        with hub_lookup():
            return Path(hf_hub_download(repo, name, repo_type=repo_type))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        # Without a connection, only the cache knows whether the file exists.
        if try_to_load_from_cache(repo, name, repo_type=repo_type) is _CACHED_NO_EXIST:
            return None
        raise ConversionError(
            f"cannot get {name} of {repo} from the Hub: {_why(error)}; check the name, the network "
            f"and `hf auth whoami`, or give a local directory"
        ) from error


def read_weights(path: str | Path) -> Weights:
    """The state dict in a .safetensors or PyTorch file.

    Raises:
        ConversionError: The file is damaged, is not a checkpoint, or is a pickle that would run
            code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ConversionError(
            f"cannot read {path} ({error.strerror}); give another file"
        ) from error
    if start.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    if path.suffix == ".safetensors":
        return _unwrap_file(path, _load_safetensors(path))
    if path.suffix not in PICKLES:
        raise ConversionError(
            f"{path} ends in {path.suffix or 'nothing'} but a checkpoint ends in .safetensors or "
            f"one of {', '.join(PICKLES)}; rename it if it is one"
        )
    return _unwrap_file(path, _load_pickle(path))


def _unwrap_file(path: Path, checkpoint: Any) -> Weights:
    try:
        return unwrap(checkpoint)
    except ConversionError as error:
        raise ConversionError(f"{path} is not a checkpoint: {error}") from error


def _hub_id(source: str | Path) -> str:
    match = _HUB_ID.fullmatch(str(source))
    if not match:
        raise ConversionError(
            f"there is no {source}; give a checkpoint file, a directory with config.json, or a Hub "
            f"id such as facebook/deit-base-distilled-patch16-384"
        )
    return match["repo"]


def _read_folder(source: str | Path) -> Weights:
    """The weights of a directory or of a model on the Hub, in one file or in several."""
    found = (find_file(source, name) for name in WEIGHT_FILES)
    weights_file = next((path for path in found if path is not None), None)
    if weights_file is None:
        raise ConversionError(
            f"{source} holds none of {', '.join(WEIGHT_FILES)}; give a directory or model with "
            f"weights for PyTorch"
        )
    if weights_file.suffix != ".json":
        return read_weights(weights_file)
    weight_map = read_json(weights_file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConversionError(f"{weights_file} has no weight_map; get the file again")
    weights: Weights = {}
    for shard in sorted(set(weight_map.values())):
        path = find_file(source, shard)
        if path is None:
            raise ConversionError(
                f"{source} has no {shard}, which {weights_file.name} lists; get this file again"
            )
        weights |= read_weights(path)
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: The file cannot be read, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} is not valid JSON ({one_line(error)}); get the file again"
        ) from error
    if not isinstance(content, dict):
        raise ConversionError(
            f"{path} holds a {type(content).__name__} but must hold an object; get the file again"
        )
    return content


def _why(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "it is gated, so ask for access on its page"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, LocalEntryNotFoundError):
        return "it cannot be reached (offline?) and is not in the cache"
    return one_line(error)


def _load_safetensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} is truncated or not a safetensors file ({one_line(error)}); get it again"
        ) from error


def _load_pickle(path: Path) -> Any:
    try:
        # Memory-mapped if the format allows it (a zip file, since PyTorch 1.6).
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ConversionError(
                f"{path} was refused, because it would run {wanted[1]}, which weights do not need; "
                f"if you trust the file, load it yourself, save only its state dict and convert "
                f"that"
            ) from error
        raise _damaged(path, error) from error
    # A damaged pickle raises any exception: IndexError, AssertionError, AttributeError, ...
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConversionError:
    # With the class of the error, because the message of a KeyError is only the key.
    reason = f"{type(error).__name__}: {one_line(error)}"
    return ConversionError(
        f"{path} is truncated or not a PyTorch checkpoint ({reason}); get it again"
    )


__all__ = [
    "Source",
    "download",
    "find_file",
    "read_card",
    "read_json",
    "read_source",
    "read_weights",
]
