"""The newest checkpoint of a run that may have been killed at any moment, also while it saved one.

Trainer writes a checkpoint's files one after the other and `trainer_state.json` last, but resumes
from the highest number, whole or not.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
STATE_FILE = "trainer_state.json"


def last_whole_checkpoint(folder: str | Path, num_processes: int = 1) -> str | None:
    """The newest checkpoint that was written to its end, for `resume_from_checkpoint`.

    Args:
        folder: A run's output directory; it need not exist.
        num_processes: Of the run: each writes its own random state.
    Returns:
        Its path, or None if there is none.
    """
    paths = [path for path in Path(folder).glob(f"{PREFIX}*") if _number(path).isdecimal()]
    for checkpoint in sorted(paths, key=lambda path: int(_number(path)), reverse=True):
        if _is_whole(checkpoint, num_processes):
            return str(checkpoint)
    return None


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(PREFIX)


def _is_whole(checkpoint: Path, num_processes: int) -> bool:
    ranks = range(num_processes) if num_processes > 1 else ()
    if not all((checkpoint / f"rng_state_{rank}.pth").is_file() for rank in ranks):
        return False
    try:
        TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    except (OSError, json.JSONDecodeError):
        return False
    return True


__all__ = ["last_whole_checkpoint"]
