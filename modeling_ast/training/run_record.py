"""The record of a run's arguments in its output directory: it resumes only with the same ones."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import TrainingArguments

from ..errors import one_line
from ..modeling_ast import ASTForAudioClassification
from ..strict_json import to_json
from .arguments import METRICS_FILE, RUN_FILE, Arguments
from .checkpoints import find_damage, last_whole_checkpoint
from .data_report import REPORT_FILE
from .trainer import output_folder

if TYPE_CHECKING:
    from .adapted_model import AdaptedAST

# Words in torch's errors about files that it cannot write; it has no exception type for them.
_WRITING = ("PytorchStreamWriter", "Parent directory", "unexpected pos")
CLIPS = "clips"  # the fingerprint of the clips in run.json
# Arguments that may change when a run resumes, as they only decide how clips are read, where
# features are computed and in which form the result is saved.
MAY_CHANGE = ("max_bad_share", "shuffle_buffer", "features", "merge")


def deciding_arguments(arguments: Arguments) -> dict[str, Any]:
    """The arguments that decide what a run learns, with values as in a JSON file."""
    chosen = (
        arguments.model,
        arguments.data,
        arguments.augmentation,
        arguments.optimizer,
        arguments.cheap,
    )
    given = {name: value for kind in chosen for name, value in asdict(kind).items()}
    given |= asdict(arguments.sampling)
    given |= {name: getattr(arguments.training, name) for name in ("learning_rate", "seed")}
    return json.loads(to_json({name: given[name] for name in given if name not in MAY_CHANGE}))


def check_same_run(
    folder: Path,
    deciding: dict[str, Any],
    chosen: Collection[str] = (),
    num_files: int | None = None,
) -> None:
    """Refuses to resume a run with other arguments.

    Its card and its extractor would have values that the weights were not trained with.

    Args:
        folder: The output directory.
        deciding: From `deciding_arguments`, with the fingerprint of the clips if it is known.
        chosen: Names of the arguments that `--auto` chose from the data.
        num_files: Number of files or rows of the data, as `DataReport.found` counts them.
    Raises:
        ValueError: An argument differs from that of the run in `folder`, or its clips do.
    """
    file = folder / RUN_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # Arguments of the user come first, as they explain more than those that follow from the data.
    from_data = {CLIPS, *chosen}
    for name, value in sorted(deciding.items(), key=lambda pair: pair[0] in from_data):
        if before.get(name, value) != value:
            if name in from_data:
                _refuse_other_data(folder, num_files)
            if name == CLIPS:
                raise ValueError(
                    f"the clips or their labels have changed since the run in {folder}; give "
                    f"another --output-dir, so that the model is trained with those of today"
                )
            flag = f"--{name.replace('_', '-')}"
            if name in chosen:
                raise ValueError(
                    f"{folder} holds a run for which {flag} {before[name]} was chosen, and now "
                    f"{value} is chosen: the data or other arguments, such as --max-steps or "
                    f"--num-train-epochs, have changed; give another --output-dir, or the same "
                    f"arguments to resume it"
                )
            raise ValueError(
                f"{folder} holds a run with {flag} {before[name]}, not {value}; give another "
                f"--output-dir, or the same arguments to resume it"
            )


@contextmanager
def recorded(folder: Path, deciding: dict[str, Any], writes: bool = True) -> Iterator[None]:
    """Writes the deciding arguments into a folder, and removes them if the run is refused.

    A run that fails before it has written anything else leaves no run.json, so that the corrected
    command is not refused for its other arguments.

    Args:
        folder: The output directory, which exists.
        deciding: From `deciding_arguments`.
        writes: Whether this process writes.
    Raises:
        ValueError: As `check_same_run`.
    """
    check_same_run(folder, deciding)
    file = folder / RUN_FILE
    is_new = writes and not file.exists()
    if writes:
        file.write_text(to_json(deciding) + "\n", encoding="utf-8")
    try:
        yield
    except BaseException:
        if is_new and list(folder.iterdir()) == [file]:
            file.unlink()
        raise


def _refuse_other_data(folder: Path, num_files: int | None) -> None:
    """Raises an error if the number of files differs from that of the run in a folder."""
    file = folder / REPORT_FILE
    before = json.loads(file.read_text(encoding="utf-8")).get("found") if file.is_file() else None
    if None not in (before, num_files) and before != num_files:
        raise ValueError(
            f"the data has changed since the run in {folder}: it had {before} clips, and now has "
            f"{num_files}; give another --output-dir"
        )


def check_not_ended(folder: Path) -> None:
    """Refuses to replace the model of a run that has ended.

    Raises:
        ValueError: The folder has the results of a run; without a checkpoint, it cannot resume.
    """
    if has_ended(folder):
        raise ValueError(
            f"{folder} holds the model of a run that has ended, without the checkpoints that it "
            f"could go on from; give another --output-dir, or move that folder away"
        )


def has_ended(folder: Path) -> bool:
    """Whether the run in an output directory has written its results.

    `evaluate` writes metrics, too, but no record of a run.
    """
    return (folder / METRICS_FILE).is_file() and (folder / RUN_FILE).is_file()


def find_resumed(
    training: TrainingArguments, model: ASTForAudioClassification | AdaptedAST
) -> str | None:
    """The checkpoint to resume from: the given one, or else the newest undamaged one.

    Raises:
        ValueError: The given checkpoint is damaged.
    """
    kind = (training.world_size, training.save_only_model, model)
    given = training.resume_from_checkpoint
    if given is None:
        return last_whole_checkpoint(output_folder(training), *kind)
    damage = find_damage(Path(given), *kind)
    if damage is not None:
        raise ValueError(
            f"cannot resume from {given}: {damage}; leave out --resume-from-checkpoint to resume "
            f"from the newest undamaged checkpoint in {training.output_dir}"
        )
    return given


@contextmanager
def naming_unwritable(folder: Path) -> Iterator[None]:
    """Adds the output directory to errors about writing, because libraries' messages lack it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if isinstance(error, SafetensorError) and "deserializ" in text:
            raise OSError(
                f"a file of weights in {folder} is damaged ({one_line(error)}); delete its folder "
                f"and run the same command again"
            ) from error
        by_torch = any(words in text for words in _WRITING)
        if isinstance(error, RuntimeError) and not by_torch:
            raise
        if isinstance(error, OSError) and error.errno != errno.ENOSPC and not _is_in(error, folder):
            raise
        raise OSError(
            f"cannot write into {folder} ({one_line(error)}); make space or repair the directory, "
            f"then run the same command again: it resumes from the newest undamaged checkpoint"
        ) from error


def _is_in(error: OSError, folder: Path) -> bool:
    """Whether the error is about a file of this folder, or the folder itself."""
    files = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return any(
        Path(os.path.abspath(os.fsdecode(name))).is_relative_to(folder.absolute()) for name in files
    )


__all__ = [
    "CLIPS",
    "check_not_ended",
    "check_same_run",
    "deciding_arguments",
    "find_resumed",
    "has_ended",
    "naming_unwritable",
    "recorded",
]
