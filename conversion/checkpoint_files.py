"""A path or a Hub id -> what its checkpoint holds: weights and config, read raw and safely.

No model class is built. Pickles are read with weights_only=True, so that a file cannot run code.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
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
from key_maps import ConversionError, Weights, one_line, unwrap
from safetensors import SafetensorError
from safetensors.torch import load_file

# In the order of preference: safetensors can do no harm and is read without a copy.
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
    repo: str | None = None  # the Hub id, if it came from there
    card: Mapping[str, Any] = MappingProxyType({})  # metadata of its README.md


def read_source(source: str) -> Source:
    """Reads a file, a directory of transformers or timm, or a model on the Hub.

    Args:
        source: Path of a directory, of a .safetensors or of a PyTorch file, or a Hub id such as
            facebook/deit-base-distilled-patch16-384.
    Raises:
        ConversionError: There is no such thing, it cannot be read, or it is no checkpoint.
    """
    path, hub_id = Path(source), _HUB_ID.fullmatch(source)
    if path.is_file():
        return Source(read_weights(path), {})
    if path.is_dir():
        return _read_folder(source, lambda name: path / name if (path / name).is_file() else None)
    if not hub_id:
        raise ConversionError(
            f"there is no {source}; give a checkpoint file, a directory with config.json, or a Hub "
            f"id such as facebook/deit-base-distilled-patch16-384"
        )
    repo = hub_id["repo"]
    found = _read_folder(repo, lambda name: download(repo, name))
    return found._replace(repo=repo)


def download(repo: str, name: str, repo_type: str = "model") -> Path | None:
    """A file of the Hub, or None where the repository has no such file.

    Raises:
        ConversionError: The Hub cannot be reached, or has no such repository for this user.
    """
    try:
        return Path(hf_hub_download(repo, name, repo_type=repo_type))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        # Offline, only the cache knows whether the file exists at all.
        if try_to_load_from_cache(repo, name, repo_type=repo_type) is _CACHED_NO_EXIST:
            return None
        raise ConversionError(
            f"cannot get {name} of {repo} from the Hub: {_why(error)}; check the name, the network "
            f"and `hf auth whoami`, or give a local directory"
        ) from error


def read_weights(path: Path) -> Weights:
    """The state dict in a .safetensors or PyTorch file.

    Raises:
        ConversionError: It is damaged, no checkpoint, or a pickle that wants to run code.
    """
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
        return unwrap_file(path, _load_safetensors(path))
    if path.suffix not in PICKLES:
        raise ConversionError(
            f"{path} ends in {path.suffix or 'nothing'} but a checkpoint ends in .safetensors or "
            f"one of {', '.join(PICKLES)}; rename it if it is one"
        )
    return unwrap_file(path, _load_pickle(path))


def unwrap_file(path: Path, checkpoint: Any) -> Weights:
    """As `unwrap`, with the file's name in the message."""
    try:
        return unwrap(checkpoint)
    except ConversionError as error:
        raise ConversionError(f"{path} is no checkpoint: {error}") from error


def _read_folder(name: str, find: Callable[[str], Path | None]) -> Source:
    """`find` gives the path of a file by its name, or None."""
    config_file = find("config.json")
    weights_file = next((path for path in map(find, WEIGHT_FILES) if path is not None), None)
    if weights_file is None:
        raise ConversionError(
            f"{name} holds none of {', '.join(WEIGHT_FILES)}; give a directory or model with "
            f"weights for PyTorch"
        )
    config = read_json(config_file) if config_file else {}
    if weights_file.suffix != ".json":
        return Source(read_weights(weights_file), config, None, _card(find))
    weight_map = read_json(weights_file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConversionError(f"{weights_file} has no weight_map; restore it")
    weights: Weights = {}
    for shard in sorted(set(weight_map.values())):
        path = find(shard)
        if path is None:
            raise ConversionError(f"{name} has no {shard}, which {weights_file.name} lists")
        weights |= read_weights(path)
    return Source(weights, config, None, _card(find))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ConversionError: It does not.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is no JSON ({one_line(error)}); restore it") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__} but must hold an object")
    return content


def _why(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "it is gated, so ask for access on its page"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, LocalEntryNotFoundError):
        return "it is out of reach (offline?) and not in the cache"
    return one_line(error)


def _load_safetensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} is truncated or no safetensors file ({one_line(error)}); get it again"
        ) from error


def _load_pickle(path: Path) -> Any:
    try:
        # Memory-mapped, as far as the format (a zip since PyTorch 1.6) allows it.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ConversionError(
                f"{path} was refused: it wants to run {wanted[1]}, which no weights need; if "
                f"you trust it, load it elsewhere, save its state dict alone and convert that"
            ) from error
        raise _damaged(path, error) from error
    # A damaged pickle raises anything: IndexError, AssertionError, AttributeError, ...
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConversionError:
    return ConversionError(
        f"{path} is truncated or no PyTorch checkpoint ({one_line(error)}); get it again"
    )


def _card(find: Callable[[str], Path | None]) -> Mapping[str, Any]:
    """The metadata of the model card, as far as it is within reach and readable."""
    try:
        card = find("README.md")
        return (metadata_load(card) if card else None) or {}
    except (ConversionError, ValueError, yaml.YAMLError):
        return {}
