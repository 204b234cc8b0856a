"""A checkpoint on disk or on the Hub -> its config, model and extractor: all of it, or an error.

transformers draws the weights that a checkpoint lacks at random and only logs it, and for damaged
files it raises errors of many libraries. Here both raise an error of one sentence that names the
checkpoint. Every command, and `AudioTagger`, loads models with this file.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from .adapters import HEAD, HUB_NAME, holder_of
from .checks import ProblemType
from .configuration_ast import ASTConfig
from .errors import one_line
from .feature_extraction_ast import ASTFeatureExtractor
from .hub_lookup import hub_lookup
from .modeling_ast import ASTForAudioClassification

CONFIG_FILE, EXTRACTOR_FILE = "config.json", "preprocessor_config.json"
EXTRACTOR_TYPE = "ASTFeatureExtractor"
LFS_POINTER = b"version https://git-lfs"
# Names of weights that are numbers; a foreign model may have counters beside them.
PARAMETER = re.compile(r"(weight|bias|token|embeddings)$")
# Types of safetensors.
FLOATING = ("F64", "F32", "F16", "BF16")
# How many weights a message names; the others are counted.
NAMED = 3


def load_config(name: str | Path, **changes) -> ASTConfig:
    """The config of an AST.

    Args:
        name: A directory, or a name on the Hub. An adapter has the config of its whole model.
        changes: Fields that replace those of the checkpoint.
    Raises:
        OSError: There is no such checkpoint, or the Hub cannot be reached.
        ValueError: It is that of another model, damaged, or describes no possible network.
    """
    with _named(name):
        name = holder_of(name, CONFIG_FILE)
        kind = _fields(name, CONFIG_FILE, ASTConfig.get_config_dict).get("model_type")
        if kind != ASTConfig.model_type:
            raise ValueError(
                f"its model_type is {kind!r}, which is another kind of model; give an Audio "
                f"Spectrogram Transformer ({ASTConfig.model_type!r})"
            )
        config = ASTConfig.from_pretrained(name, **changes)
        if config.problem_type not in (None, *get_args(ProblemType)):
            raise ValueError(
                f"its problem_type is {config.problem_type!r}; it must be null or one of "
                f"{', '.join(get_args(ProblemType))}"
            )
        return config


def load_extractor(name: str | Path) -> ASTFeatureExtractor:
    """The extractor that is saved beside a model.

    Args:
        name: A directory, or a name on the Hub.
    Raises:
        OSError, ValueError: As `load_config`.
    """
    with _named(name):
        name = holder_of(name, EXTRACTOR_FILE)
        read = ASTFeatureExtractor.get_feature_extractor_dict
        fields = _fields(name, EXTRACTOR_FILE, read)
        kind = fields.get("feature_extractor_type", EXTRACTOR_TYPE)
        if kind != EXTRACTOR_TYPE:
            raise ValueError(
                f"its {EXTRACTOR_FILE} is that of a {kind!r}; save "
                f"ASTFeatureExtractor.from_config(model.config) in its place"
            )
        return ASTFeatureExtractor.from_pretrained(name)


def load_model(name: str | Path, fresh_head: bool = False, **kwargs) -> ASTForAudioClassification:
    """A classifier with all its weights, in evaluation mode; an adapter merged with its base model.

    Args:
        name: A directory, or a name on the Hub.
        fresh_head: Whether the head may be drawn at random if the checkpoint has none, or one of
            another size. The encoder's weights are required in any case.
        kwargs: Of `from_pretrained`: fields of the config, `dtype`.
    Raises:
        MissingExtra: It is an adapter, and peft is not installed.
        OSError: There is no such checkpoint, or the Hub cannot be reached.
        ValueError: It is that of another model, damaged, lacks weights, has encoder weights that
            its config does not describe, has no label, or holds NaN or infinity.
    """
    config = load_config(name)
    with _named(name):
        if fresh_head and config.int8_linear:
            raise ValueError(
                "its weights are 8-bit integers, which cannot be trained; give the model that it "
                "was made from"
            )
        if not config.int8_linear:
            _check_types(Path(name))
        loaded: Any = ASTForAudioClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if not fresh_head and model.config.num_labels == 0:
            raise ValueError(
                f"it has no label: id2label in its {CONFIG_FILE} is empty; fine-tune it first, or "
                f"give a model with labels"
            )
        absent = {weight: weight for weight in info["missing_keys"]}
        for weight, stored, wanted in info["mismatched_keys"]:
            absent[weight] = f"{weight} is {tuple(stored)} but must be {tuple(wanted)}"
        body = [weight for weight in absent if not weight.startswith(HEAD)]
        if lacking := sorted(absent[weight] for weight in (body if fresh_head else absent)):
            rest = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
            raise ValueError(
                f"it lacks {len(lacking)} of the weights that its {CONFIG_FILE} describes, which "
                f"would be random ({', '.join(lacking[:NAMED])}{rest}); "
                + ("get it again" if body else "fine-tune it first, or give a model with a head")
            )
        if surplus := sorted(filter(_encoder_weights(model), info["unexpected_keys"])):
            rest = f" and {len(surplus) - NAMED} more" if len(surplus) > NAMED else ""
            raise ValueError(
                f"it has encoder weights that its {CONFIG_FILE} does not describe "
                f"({', '.join(surplus[:NAMED])}{rest}), so that its scores would be wrong; get the "
                f"{CONFIG_FILE} of this model again"
            )
        for weight, values in model.named_parameters():
            if not torch.isfinite(values).all():
                raise ValueError(
                    f"its weight {weight} holds NaN or infinity, as after a training that "
                    f"diverged; give another checkpoint"
                )
    return model.eval()


def _encoder_weights(model: ASTForAudioClassification) -> Callable[[str], bool]:
    """Says of the name of a stored weight whether it belongs to the encoder.

    Other surplus weights, such as a teacher's head, do not change the scores.
    """
    # The names in a checkpoint of the encoder alone lack the prefix.
    parts = [f"{name}." for name, _ in model.base_model.named_children()]
    starts = (f"{model.base_model_prefix}.", *parts)
    return lambda weight: weight.startswith(starts)


def _fields(name: str | Path, file: str, read: Callable) -> Mapping[str, Any]:
    """The content of a JSON file of the checkpoint; for a name on the Hub, `read` fetches it."""
    folder = Path(name)
    if folder.is_file():
        raise ValueError("it is a file; give the directory of a model, as the first argument")
    if folder.is_dir():
        fields = _local_json(folder, file)
    elif HUB_NAME.fullmatch(str(name)):
        fields, _ = read(name)
    else:
        raise ValueError("there is no such directory; give one, or a name on the Hub")
    if not isinstance(fields, Mapping):
        raise ValueError(f"its {file} does not hold a JSON object; get it again")
    return fields


def _local_json(folder: Path, file: str) -> Any:
    path = folder / file
    if path.is_file():
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"its {file} is no JSON ({one_line(error)}); get it again") from error
    if file == EXTRACTOR_FILE and (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"it has no {file}; save ASTFeatureExtractor.from_config(model.config) there"
        )
    raise ValueError(f"the directory has no {file}; give one that a model was saved in")


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Turns any error about a checkpoint's files into one sentence with the checkpoint's name."""
    start = f"cannot load the model {str(name)!r}"
    try:
        with nullcontext() if os.path.exists(name) else hub_lookup():
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except OSError as error:
        # Not every message of the Hub's client says which name it looked for.
        where = f"there is no such folder in {os.getcwd()}, and from the Hub: "
        raise OSError(_once(start, error, "" if os.path.exists(name) else where)) from error
    except SafetensorError as error:
        reason = f"truncated or no safetensors file ({one_line(error)}); get them again"
        if _has_lfs_pointer(Path(name)):
            reason = "Git LFS pointers; run `git lfs pull`"
        raise ValueError(f"{start}: its weights are {reason}") from error
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it would run {wanted[1]}" if wanted else "it is damaged"
        raise ValueError(
            f"{start}: its pickle of weights was refused, because {reason}; give a checkpoint with "
            f"model.safetensors"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{start}: a JSON file of it is damaged ({one_line(error)}); get it again"
        ) from error
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(_once(start, error)) from error
    # For damaged files transformers and torch raise anything: TypeError, KeyError, EOFError, ...
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"{start}: one of its files is damaged ({reason}); get it again"
        ) from error


def _check_types(folder: Path) -> None:
    """Refuses weights that are no floating-point numbers, which would be converted silently."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in filter(PARAMETER.search, sorted(file.keys())):
                if (kind := file.get_slice(name).get_dtype()) not in FLOATING:
                    raise ValueError(
                        f"its weight {name} has the type {kind}, and not floating-point numbers; "
                        f"get {path.name} again"
                    )


def _once(start: str, error: Exception, where: str = "") -> str:
    said = one_line(error)
    return said if said.startswith(start) else f"{start}: {where}{said}"


def _has_lfs_pointer(folder: Path) -> bool:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return True
    return False


__all__ = ["load_config", "load_extractor", "load_model"]
