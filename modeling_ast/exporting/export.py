"""A checkpoint -> a folder with its checked ONNX files, which appears complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..calibration import CALIBRATION_FILE
from ..conversion.checkpoint_files import find_file
from ..conversion.output_folder import OUR_FILES, check_target, whole_or_nothing
from ..tagging import AudioTagger
from .checking import FileReport, check_files
from .onnx_files import FILES, FOLDER, OPSET, OPTIONAL, OnnxFile, check_opset, write_file

# Copied if the checkpoint has them.
COPIED_FILES = ("README.md", CALIBRATION_FILE)
EXPORTED_FILES = OUR_FILES | {file.path for file in FILES} | set(COPIED_FILES)

Judge = Callable[[Mapping[OnnxFile, Path], AudioTagger], dict[str, dict[str, float]]]


class Export(NamedTuple):
    """What an export wrote, and how good it is."""

    files: list[FileReport]
    torch_ms_per_clip: float  # for the same clip, in torch
    metrics: dict[str, dict[str, float]]  # file, or "torch" -> its metrics; empty without data


def export_model(
    model: str | Path,
    target: str | Path,
    judge: Judge | None = None,
    opset: int = OPSET,
    force: bool = False,
    leave_out: Collection[str] = (),
) -> Export:
    """Writes a folder that transformers, transformers.js and ONNX runtimes can read.

    It holds config.json, model.safetensors, preprocessor_config.json and the folder `onnx` with the
    files of `onnx_files.FILES`. Every file is compared with torch before the folder gets its name.

    Args:
        model: Name on the Hub, or a directory.
        target: A new directory.
        judge: Computes the metrics of the files, as `judging.judge_files` does.
        opset: Version of ONNX's operators, from 18 to 22.
        force: Whether an older export may be replaced.
        leave_out: Precisions that get no files: "float16", "int8" or both.
    Raises:
        ConversionError: `target` cannot be written or must not be replaced, or the error of a
            file exceeds its limit.
        OSError, ValueError: The model cannot be loaded, `opset` cannot be written, or a precision
            of `leave_out` is none that can be left out.
    """
    check_opset(opset)
    if unknown := sorted(set(leave_out) - set(OPTIONAL)):
        raise ValueError(f"leave_out has {unknown[0]!r}; give some of {', '.join(OPTIONAL)}")
    wanted = [file for file in FILES if file.precision not in leave_out]
    target = Path(target)
    check_target(target, force, [Path(model)], EXPORTED_FILES)
    tagger = load_for_export(model)
    with whole_or_nothing(target, force, [Path(model)], EXPORTED_FILES) as folder:
        tagger.model.save_pretrained(folder)
        tagger.extractor.save_pretrained(folder)
        for name in COPIED_FILES:
            if (source := find_file(model, name)) is not None:
                shutil.copyfile(source, folder / name)
        paths = write_files(wanted, folder, tagger, opset)
        reports, torch_ms = check_files(paths, tagger)
        metrics = {} if judge is None else judge(paths, tagger)
    return Export(reports, torch_ms, metrics)


def load_for_export(model: str | Path) -> AudioTagger:
    """The model and its extractor as graphs need them: as saved, in float32, on the CPU."""
    return AudioTagger.from_pretrained(model, "cpu", "float32", num_workers=0)


def write_files(
    files: Iterable[OnnxFile], folder: Path, tagger: AudioTagger, opset: int = OPSET
) -> dict[OnnxFile, Path]:
    """Writes files into the folder `onnx` of `folder`, and returns their paths.

    Args:
        files: In the order of `FILES`: a float32 file comes before those that are made from it.
    """
    (folder / FOLDER).mkdir()
    paths = {}
    for file in tqdm(list(files), "Writing ONNX files", leave=False):
        write_file(file, folder, tagger, opset)
        paths[file] = folder / file.path
    return paths


def as_rows(export: Export) -> list[dict[str, Any]]:
    """A row for each file, then one for torch, with the metrics if there are any."""
    rows = [report._asdict() for report in export.files]
    nothing = dict.fromkeys(FileReport._fields)
    rows.append(nothing | {"file": "torch", "ms_per_clip": export.torch_ms_per_clip})
    return [row | export.metrics.get(row["file"], {}) for row in rows]


__all__ = ["Export", "as_rows", "export_model", "load_for_export", "write_files"]
