"""Loading: from_pretrained with another patch grid, and the two key layouts of AST checkpoints.

Files on the Hub have the layout of transformers 4 (`encoder.layer.0.attention.attention.query`),
modules that of transformers 5 (`layers.0.attention.q_proj`).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)

from .configuration_ast import ASTConfig
from .position import NUM_PREFIX_TOKENS, resize_position_grid

logger = logging.get_logger(__name__)

# Fields that from_pretrained may change. The grid then differs, and the position table is refitted.
GRID_FIELDS = ("max_length", "num_mel_bins", "frequency_stride", "time_stride")
# A config of fewer weights than this is believed: its network takes 400 MB at most.
FEW_WEIGHTS = 10**8
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


class LoadableModel(PreTrainedModel):
    """A PreTrainedModel whose checkpoints may have another patch grid or the other key layout.

    The model itself, or its base model, has an attribute `embeddings` as in `modeling_ast.py`.
    """

    config: ASTConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers, and `max_length`, `num_mel_bins`, `frequency_stride` and
        `time_stride` may differ from the checkpoint's: its position grid is refitted.

        Raises:
            ValueError: config.json describes many more weights than the files can hold.

        Source: Gong et al. 2021, section 2.2 ("cut and bilinear interpolate").
        """
        load = super().from_pretrained
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

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As in torch, and also in the key layout of saved files.

        Trainer resumes, and loads its best model, by handing over a file's content as it is
        (transformers issue 43701): without this no layer would be restored, with a mere warning.
        """
        own = self.own_names(state_dict)
        renamed = {own[name]: tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(renamed, strict=strict, assign=assign)

    def own_names(self, names: Iterable[str]) -> dict[str, str]:
        """The name in this model of each parameter of a file, in either key layout."""
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
            max_length: Frames the position table is for.
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
    """Has a class of ours loaded from, and saved in, the key layout of the Hub, like transformers'.

    To be called where the class is defined and not in the package's `__init__.py`, because the
    file also runs alone, as code that travels with a checkpoint.

    Args:
        class_name: A name for which transformers has a layout too, as "ASTModel".
    """
    layout = get_checkpoint_conversion_mapping(class_name)
    register_checkpoint_conversion_mapping(class_name, layout, overwrite=True)


def _stored_config(name_or_path, kwargs: dict) -> ASTConfig | None:
    """The checkpoint's own config, or None where there is none (its absence is reported later)."""
    if name_or_path is None:
        return None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    try:
        return ASTConfig.from_pretrained(name_or_path, **hub)
    except OSError:
        return None


def _check_size(stored: ASTConfig | None, name_or_path, kwargs: dict) -> None:
    """Refuses a config of many more weights than the files hold, before memory is taken for them.

    A weight takes a byte or more. A fresh head of a usual size is far below `FEW_WEIGHTS`.
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
    """The grid fields asked for, if they differ from the checkpoint's."""
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


__all__ = ["GRID_FIELDS", "LoadableModel", "register_key_layout"]
