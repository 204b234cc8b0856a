"""Loading: from_pretrained with another patch grid, of adapters, and in either key layout.

Files on the Hub have the layout of transformers 4 (`encoder.layer.0.attention.attention.query`);
modules have that of transformers 5 (`layers.0.attention.q_proj`).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import Filter, LogRecord
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import CONFIG_NAME, cached_file, logging

from .adapters import (
    HEAD,
    HUB_ARGUMENTS,
    WEIGHT_FILES,
    Adapter,
    file_of,
    find_adapter,
    merge_adapter,
)
from .configuration_ast import ASTConfig
from .errors import one_line
from .position import NUM_PREFIX_TOKENS, resize_position_grid

logger = logging.get_logger(__name__)

# Fields that from_pretrained may change. The grid then differs, and the position table is refitted.
GRID_FIELDS = ("max_length", "num_mel_bins", "frequency_stride", "time_stride")
# A config of fewer weights than this is not checked: its network takes 400 MB at most.
FEW_WEIGHTS = 10**8


class LoadableModel(PreTrainedModel):
    """A PreTrainedModel whose checkpoints may have another patch grid or the other key layout.

    The model itself, or its base model, has an attribute `embeddings` as in `modeling_ast.py`.
    """

    config: ASTConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers, and `max_length`, `num_mel_bins`, `frequency_stride` and
        `time_stride` may differ from the checkpoint's: its position grid is refitted. An adapter
        is merged with its base model.

        Raises:
            MissingExtra: It is an adapter, and peft is not installed.
            OSError, ValueError: It is an adapter whose base model is not there, or does not fit.
            ValueError: config.json describes many more weights than the files can hold.

        Source: Gong et al. 2021, section 2.2 ("cut and bilinear interpolate").
        """
        load = super().from_pretrained
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        # For an adapter on the Hub, the Auto classes pass the name of its base model.
        auto = dict(kwargs.get("adapter_kwargs") or {})
        source = auto.pop("_adapter_model_path", pretrained_model_name_or_path)
        if (adapter := find_adapter(source, **hub | auto)) is not None:
            merged, config, others = cls._merged(adapter, config, kwargs, hub | auto)
            loaded = load(None, config=config, state_dict=merged.state_dict(), **others)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.name_or_path = model.config.name_or_path = adapter.source
            return loaded
        stored = _stored_config(pretrained_model_name_or_path, kwargs)
        _check_size(stored, pretrained_model_name_or_path, kwargs)
        wanted = _wanted_grid(stored, config, kwargs)
        if wanted is None:
            return load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            for name in GRID_FIELDS:
                setattr(config, name, getattr(stored, name))
        kwargs = {name: value for name, value in kwargs.items() if name not in GRID_FIELDS}
        loaded: Any = load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.resize_grid(**wanted)
        return loaded

    @classmethod
    def _merged(
        cls, adapter: Adapter, config, kwargs: dict, hub: dict
    ) -> tuple[LoadableModel, PreTrainedConfig, dict]:
        """An adapter's whole model; the requested config; the keywords that are left.

        The model already has the grid of that config.
        """
        own = _config_of(adapter, hub)
        merged: Any = merge_adapter(cls._base_of(adapter, own, hub), adapter, **hub)
        others = {
            name: value
            for name, value in kwargs.items()
            if name not in HUB_ARGUMENTS and name != "adapter_kwargs"
        }
        # The Auto classes pass the base model's config, which lacks the adapter's labels.
        if isinstance(config, PreTrainedConfig) and config.name_or_path != adapter.base:
            wanted = copy.deepcopy(config)
        else:
            # The dtype is left to from_pretrained, because a config does not accept "auto".
            dtype = {name: others.pop(name) for name in ("dtype", "torch_dtype") if name in others}
            wanted, others = ASTConfig.from_dict(own.to_dict(), return_unused_kwargs=True, **others)
            others |= dtype
        grid = _wanted_grid(own, wanted, {})
        if grid is not None:
            merged.resize_grid(**grid)
        return merged, wanted, others

    @classmethod
    def _base_of(cls, adapter: Adapter, config: ASTConfig, hub: dict) -> LoadableModel:
        """An adapter's base model with the adapter's config, and a fresh head if that differs."""
        with quiet_loading():
            loaded: Any = cls.from_pretrained(
                adapter.base,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_elsewhere(hub),
            )
        model, info = loaded
        other = info["missing_keys"] | info["unexpected_keys"]
        other |= {name for name, *_ in info["mismatched_keys"]}
        if body := sorted(name for name in other if not name.startswith(HEAD)):
            raise ValueError(
                f"it is an adapter whose base model {adapter.base} has other weights than it was "
                f"trained on: {len(body)} differ in name or shape, such as {body[0]}; name the "
                f"right base model in its adapter_config.json"
            )
        return model

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in torch, and also in the key layout of saved files.

        When Trainer resumes or loads its best model, it passes a file's content unchanged
        (transformers issue 43701). Without this method no layer would be restored, and only a
        warning would say so.
        """
        own = self.own_names(state_dict)
        renamed = {own[name]: tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict=strict, assign=assign)

    def own_names(self, names: Iterable[str]) -> dict[str, str]:
        """The name that each parameter of a file, in either key layout, has in this model."""
        own = self.state_dict().keys()
        transforms = get_model_conversion_mapping(self)
        found = {}
        for name in names:
            new_name = name
            if name not in own:
                for transform in transforms:
                    new_name, _ = transform.rename_source_key(new_name)
            found[name] = new_name
        return found

    @torch.no_grad()
    def resize_grid(
        self,
        max_length: int | None = None,
        num_mel_bins: int | None = None,
        frequency_stride: int | None = None,
        time_stride: int | None = None,
    ) -> None:
        """Changes the input size or the strides in place and refits the position table.

        Args:
            max_length: Frames that the position table is for.
            num_mel_bins: Mel bins of the input; build the matching extractor with
                `ASTFeatureExtractor.from_config(model.config)`.
            frequency_stride, time_stride: From one patch to the next, in mel bins and frames.

        Raises:
            StrictDataclassError: The values describe no possible grid.

        Source: Gong et al. 2021, section 2.2; see `resize_position_grid`.
        """
        given = (max_length, num_mel_bins, frequency_stride, time_stride)
        changes = {name: value for name, value in zip(GRID_FIELDS, given) if value is not None}
        new_config = ASTConfig.from_dict({**self.config.to_dict(), **changes})
        old, new = self.config.patch_grid(), new_config.patch_grid()
        for name, value in changes.items():
            setattr(self.config, name, value)
        embeddings: Any = self.base_model.embeddings
        strides = (self.config.frequency_stride, self.config.time_stride)
        embeddings.patch_embeddings.projection.stride = strides
        if new == old:
            return
        table = embeddings.position_embeddings
        prefix, patches = table[:, :NUM_PREFIX_TOKENS], table[:, NUM_PREFIX_TOKENS:]
        table.data = torch.cat((prefix, resize_position_grid(patches, old, new)), dim=1)
        logger.warning(
            f"the position grid was refitted from {old[0]} x {old[1]} to {new[0]} x {new[1]} "
            f"patches (frequency x time) for {changes}; fine-tune before you trust the scores"
        )


def register_key_layout(class_name: str) -> None:
    """Makes a class of ours load and save the key layout of the Hub, as transformers' own does.

    Call it in the file that defines the class and not in the package's `__init__.py`, because that
    file also runs alone, as code that is saved with a checkpoint.

    Args:
        class_name: A name for which transformers has a layout, such as "ASTModel".
    """
    layout = get_checkpoint_conversion_mapping(class_name)
    register_checkpoint_conversion_mapping(class_name, layout, overwrite=True)


def _stored_config(name_or_path, kwargs: dict) -> ASTConfig | None:
    """The checkpoint's own config, or None if there is none (a later step reports that)."""
    if name_or_path is None:
        return None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    try:
        return ASTConfig.from_pretrained(name_or_path, **hub)
    except OSError:
        return None


def _config_of(adapter: Adapter, hub: dict) -> ASTConfig:
    """The config of an adapter's whole model: its own, or else its base model's.

    Raises:
        OSError, ValueError: The base model is not there, or another kind of model.
    """
    try:
        fields, _ = PreTrainedConfig.get_config_dict(adapter.base, **_elsewhere(hub))
    except OSError as error:
        raise OSError(
            f"it is an adapter whose base model {adapter.base!r} cannot be loaded: "
            f"{one_line(error)}"
        ) from error
    if fields.get("model_type") != ASTConfig.model_type:
        raise ValueError(
            f"it is an adapter of another kind of model: the model_type of its base model "
            f"{adapter.base!r} is {fields.get('model_type')!r}, not {ASTConfig.model_type!r}"
        )
    if file_of(adapter.source, CONFIG_NAME, **hub) is not None:
        return ASTConfig.from_pretrained(adapter.source, **hub)
    return ASTConfig.from_pretrained(adapter.base, **_elsewhere(hub))


def _elsewhere(hub: dict) -> dict:
    """Those arguments about the Hub that are also valid for another model."""
    return {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hides progress bars and the warnings about fresh weights and a refitted grid."""
    # A filter is used, because with a log level of its own transformers reports on layers that no
    # other machine holds.
    loggers = [logging.get_logger(name) for name in ("transformers.modeling_utils", __name__)]
    bars, only_errors = logging.is_progress_bar_enabled(), _OnlyErrors()
    for each in loggers:
        each.addFilter(only_errors)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(only_errors)
        if bars:
            logging.enable_progress_bar()


class _OnlyErrors(Filter):
    def filter(self, record: LogRecord) -> bool:
        return record.levelno >= logging.ERROR


def _check_size(stored: ASTConfig | None, name_or_path, kwargs: dict) -> None:
    """Refuses a config of many more weights than the files hold, before it costs any memory.

    A weight takes at least one byte. A fresh head of usual size is far below `FEW_WEIGHTS`.
    """
    if stored is None or stored.num_weights() <= FEW_WEIGHTS:
        return
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    for file in WEIGHT_FILES:
        path = cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        size = os.path.getsize(path)
        if path.endswith(".json"):
            with open(path, encoding="utf-8") as index:
                size = json.load(index)["metadata"]["total_size"]
        if stored.num_weights() > max(size, FEW_WEIGHTS):
            raise ValueError(
                f"the config.json of {name_or_path} describes {stored.num_weights()} weights but "
                f"its files hold {size} bytes; one of the two is damaged, get them again"
            )
        return


def _wanted_grid(stored: ASTConfig | None, config, kwargs: dict) -> dict[str, int] | None:
    """The requested grid fields, if they differ from the checkpoint's."""
    if stored is None:
        return None
    if isinstance(config, PreTrainedConfig):
        wanted = {name: getattr(config, name) for name in GRID_FIELDS}
    elif config is None:
        wanted = {name: kwargs[name] for name in GRID_FIELDS if name in kwargs}
    else:
        return None
    # Refuses impossible values now, before any weight is read.
    ASTConfig.from_dict({**stored.to_dict(), **wanted})
    differs = any(getattr(stored, name) != value for name, value in wanted.items())
    return wanted if differs else None


__all__ = ["GRID_FIELDS", "LoadableModel", "quiet_loading", "register_key_layout"]
