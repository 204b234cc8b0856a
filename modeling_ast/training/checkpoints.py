"""Finds the newest checkpoint of a run that is complete and undamaged.

A run may be killed at any moment, also while it saves, and a disk may be full or damaged. Trainer
resumes from the checkpoint with the highest number, even if it is damaged. Here each of its files
is checked first, without reading tensors: the length and the names of the weights, the keys of the
states of optimiser, schedule and random generators, and `trainer_state.json`.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..errors import one_line
from ..loading import LoadableModel

if TYPE_CHECKING:
    from .adapted_model import AdaptedAST

logger = logging.get_logger(__name__)

PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
STATE_FILE = "trainer_state.json"
# Files that Trainer needs for a resume besides the weights, and the keys that each must hold.
OPTIMIZER_PARTS = {"optimizer.pt": ("state", "param_groups"), "scheduler.pt": ("last_epoch",)}
FSDP_OPTIMIZER = "optimizer.bin"
# How the names of FSDP's and DeepSpeed's folders of shards begin.
SHARDED = ("pytorch_model", "optimizer", "global_step")
RANDOM_STATE, RANDOM_KEYS = "rng_state", ("python", "numpy", "cpu")
# The types of the fields of trainer_state.json that a resume uses.
NUMBERS, MAYBE_TEXT = (int, float), (str, type(None))
STATE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "num_train_epochs", "total_flos"), NUMBERS),
    **dict.fromkeys(("global_step", "max_steps"), (int,)),
    "log_history": (list,),
    "best_metric": (*NUMBERS, type(None)),
    "best_global_step": (int, type(None)),
    "best_model_checkpoint": MAYBE_TEXT,
    "stateful_callbacks": (dict, type(None)),
}


def last_whole_checkpoint(
    folder: str | Path,
    num_processes: int = 1,
    only_model: bool = False,
    model: LoadableModel | AdaptedAST | None = None,
) -> str | None:
    """The newest checkpoint that a run can resume from, for `resume_from_checkpoint`.

    A warning names newer checkpoints that are damaged.

    Args:
        folder: A run's output directory; it need not exist.
        num_processes: Number of processes of the run; each writes its own random state.
        only_model: Whether checkpoints hold no optimiser (`save_only_model` of TrainingArguments).
        model: The model of the run; a checkpoint must hold all its weights. By default the names
            of the weights are not checked.
    Returns:
        The path of the checkpoint, or None if there is none.
    """
    paths = [path for path in Path(folder).glob(f"{PREFIX}*") if _number(path).isdecimal()]
    paths = sorted(paths, key=lambda path: int(_number(path)))
    while paths:
        checkpoint = paths.pop()
        damage = find_damage(checkpoint, num_processes, only_model, model)
        # Each file of an older checkpoint must be in this one, too, such as the sum of the averaged
        # weights.
        if damage is None and (lost := _lasting_files(*paths) - _lasting_files(checkpoint)):
            damage = f"{min(lost)} is missing"
        if damage is None:
            return str(checkpoint)
        logger.warning(f"skipped the checkpoint {checkpoint}, which is damaged: {damage}")
    return None


def find_damage(
    checkpoint: Path,
    num_processes: int = 1,
    only_model: bool = False,
    model: LoadableModel | AdaptedAST | None = None,
) -> str | None:
    """Why a run cannot resume from a checkpoint, or None if it can.

    Args:
        checkpoint: Its directory.
        num_processes, only_model, model: See `last_whole_checkpoint`.
    """
    try:
        return next(_damages(checkpoint, num_processes, only_model, model), None)
    except OSError as error:
        return one_line(error)


def _damages(
    checkpoint: Path, num_processes: int, only_model: bool, model: LoadableModel | AdaptedAST | None
) -> Iterator[str]:
    yield from _damages_of_state(checkpoint / STATE_FILE)
    parts = {} if only_model else dict(OPTIMIZER_PARTS)
    # FSDP that saves whole tensors gives the optimiser's file another name.
    if (checkpoint / FSDP_OPTIMIZER).is_file():
        parts[FSDP_OPTIMIZER] = parts.pop("optimizer.pt", ())
    # FSDP and DeepSpeed save weights and optimiser as folders of shards, in formats of their own.
    if any(path.is_dir() and path.name.startswith(SHARDED) for path in checkpoint.iterdir()):
        parts = {}
    else:
        yield from _damages_of_weights(checkpoint, model)
    if not only_model:
        ranks = [f"_{rank}" for rank in range(num_processes)] if num_processes > 1 else [""]
        parts |= {f"{RANDOM_STATE}{rank}.pth": RANDOM_KEYS for rank in ranks}
    if (checkpoint / "scaler.pt").exists():  # written with float16 only
        parts["scaler.pt"] = ()
    for name, keys in parts.items():
        try_out = _set_random_states if name.startswith(RANDOM_STATE) else None
        yield from _damages_of_pickle(checkpoint / name, keys, try_out)


def _damages_of_state(file: Path) -> Iterator[str]:
    if not file.is_file():
        yield f"{file.name} is missing"
        return
    try:
        state = TrainerState.load_from_json(str(file))
    # TrainerState does not check what the JSON holds, so that damage raises any of these.
    except (AttributeError, TypeError, ValueError) as error:
        yield f"{file.name} is cut or damaged ({one_line(error)})"
        return
    for name, kinds in STATE_TYPES.items():
        value = getattr(state, name)
        is_negative = isinstance(value, NUMBERS) and value < 0 and name != "best_metric"
        if is_negative or not isinstance(value, kinds):
            yield f"{file.name} is damaged ({name} is {str(value)[:40]})"
    if not all(isinstance(row, dict) for row in state.log_history):
        yield f"{file.name} is damaged (log_history)"


def _damages_of_weights(
    checkpoint: Path, model: LoadableModel | AdaptedAST | None
) -> Iterator[str]:
    names: dict[str, set[str]] = {}
    for path in checkpoint.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as content:  # refuses a wrong length
                names[path.name] = set(content.keys())
        except SafetensorError as error:
            yield f"{path.name} is cut or damaged ({one_line(error)})"
    starts = ("model", "adapter_model")
    stored = set().union(*(names[file] for file in names if file.startswith(starts)))
    pickles = list(checkpoint.glob("pytorch_model*.bin"))
    for path in pickles:
        yield from _damages_of_pickle(path, ())
    if not stored and not pickles:
        yield "it has no weights"
    if model is None or not stored:
        return
    if isinstance(model, LoadableModel):
        lost = model.state_dict().keys() - model.own_names(stored).values()
    else:
        lost = model.saved_names() - stored
    if lost:
        yield f"its weights lack {min(lost)}"


def _damages_of_pickle(
    file: Path, keys: tuple[str, ...], try_out: Callable[[Any], None] | None = None
) -> Iterator[str]:
    if not file.is_file():
        yield f"{file.name} is missing"
        return
    try:
        with safe_globals():
            # Memory-mapped, so that tensors are not read.
            mapped = zipfile.is_zipfile(file)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    # A damaged pickle raises any exception: EOFError, IndexError, AttributeError, ...
    except Exception as error:
        yield f"{file.name} is cut or damaged ({one_line(error)})"
        return
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        yield f"{file.name} lacks {' and '.join(keys)}"
        return
    if try_out is not None:
        try:
            try_out(content)
        # Generators refuse a state with various errors.
        except (IndexError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            yield f"{file.name} is damaged ({one_line(error)})"


def _set_random_states(content: dict[str, Any]) -> None:
    """Sets the states in generators that nothing uses; raises their errors."""
    random.Random().setstate(content["python"])
    np.random.RandomState().set_state(content["numpy"])
    torch.Generator().set_state(content["cpu"])


def _lasting_files(*checkpoints: Path) -> set[str]:
    """Names of the files that every later checkpoint of the run has, too."""
    patterns = ("*.safetensors", "*.pt")
    return {
        path.name
        for checkpoint in checkpoints
        for pattern in patterns
        for path in checkpoint.glob(pattern)
    }


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(PREFIX)


__all__ = ["find_damage", "last_whole_checkpoint"]
