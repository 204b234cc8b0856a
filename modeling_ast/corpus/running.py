"""A whole run: a corpus -> shards and their manifest; started again, it does what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import one_line
from .shards import Manifest, write_shard
from .sources import FILES, Source

logger = logging.get_logger(__name__)

# Rows of a shard. With more rows a kill costs more, and progress is shown less often. The number is
# a multiple of the sizes of blocks, because the rest of a block would be a small shard of its own.
SHARD_ROWS = 1024
# How many bad clips an error names; it also names the file that lists them all.
NAMED_CLIPS = 5


class TooManyBadError(ValueError):
    """More clips are bad than the caller allows."""


@dataclass
class Job:
    """The work on a corpus.

    Args:
        stages: Rows of a source -> rows that have file, seconds and error among their columns.
        model: Name of the model.
        settings: The settings that decide a row besides the model.
        flags: The flag that sets each of them, as in `Journal`.
        defaults: Settings of earlier rows that do not state them.
    """

    stages: Callable[[Dataset], Dataset]
    model: str
    settings: Mapping[str, Any]
    flags: Mapping[str, str]
    defaults: Mapping[str, str] | None = None


def run_job(
    job: Job,
    source: Source,
    output: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    most_bad: float = 1.0,
) -> Manifest:
    """Does the missing part of a job, with a progress bar; Ray must be connected.

    Args:
        job: The stages and their settings.
        source: The corpus.
        output: A directory that all machines see; it is made if it is missing.
        shard_rows: The most rows of a shard.
        most_bad: The run stops when a larger share of all its rows is bad.
    Returns:
        The manifest of all finished shards.
    Raises:
        ValueError: The directory cannot be written, holds something else, or rows of another model
            or other settings; another run is writing there; a shard is missing.
        TooManyBadError: As `most_bad` says. What was done stays done.
        RuntimeError: A stage failed; the message is one sentence.
        OSError: The directory cannot be written any more.
    """
    manifest = _opened(job, output)
    context = DataContext.get_current()
    # Ray's progress bars would hide ours, and its own exception would hide the reason.
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    dataset = source.dataset(manifest.keys())
    if dataset is not None:
        rows = job.stages(dataset)
        # Ray's type hints do not allow arguments besides the batch.
        write: Any = write_shard
        # `repartition` is not used: it passes nothing on before the last row has come.
        reports = rows.map_batches(
            write,
            batch_size=shard_rows,
            batch_format="pyarrow",
            fn_kwargs={"folder": str(output.resolve())},
        )
        total = len(source.names) if source.kind == FILES else None
        _follow(reports, manifest, total, most_bad)
        manifest.remove_others()
    if manifest.num_bad:
        manifest.write_bad_list()
    if more := manifest.num_rows - len(manifest.keys()):
        logger.warning(
            f"{more} rows have the key of another row, and a run that resumes may do only one of "
            f"them; name a column of distinct values with --key-column"
        )
    return manifest


def _opened(job: Job, output: Path) -> Manifest:
    try:
        output.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(output, job.model, job.flags, job.defaults)
        manifest.use(**job.settings)
        manifest.remove_others()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot go on with {output}: {one_line(error)}") from error
    return manifest


def _follow(reports: Dataset, manifest: Manifest, total: int | None, most_bad: float) -> None:
    """Adds each finished shard to the manifest."""
    begin, before = time.monotonic(), manifest.seconds
    with tqdm(total=total, initial=manifest.num_rows, unit="clip") as bar:
        for report in _reports(reports):
            manifest.add(report)
            minutes = max(time.monotonic() - begin, 1e-9) / 60
            hours = (manifest.seconds - before) / 3600
            bar.set_postfix_str(
                f"{hours / minutes:.2f} audio-h/min, {manifest.num_bad} bad", refresh=False
            )
            bar.update(report["rows"])
            if manifest.num_bad > most_bad * manifest.num_rows:
                _stop(manifest, most_bad)


def _reports(reports: Dataset) -> Iterator[dict[str, Any]]:
    try:
        tables: Iterable[Any] = reports.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        for table in tables:
            yield from table.to_pylist()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RuntimeError(f"a stage of the run failed: {one_line(cause)}") from error


def _stop(manifest: Manifest, most_bad: float) -> None:
    path = manifest.write_bad_list()
    some = ", ".join(row["file"] for row in islice(manifest.bad_rows(), NAMED_CLIPS))
    raise TooManyBadError(
        f"{manifest.num_bad} of {manifest.num_rows} clips are bad, more than {most_bad:g} of them "
        f"({some}, ...; all with their reasons in {path}); repair or remove them, or allow more "
        f"with --most-bad"
    )


__all__ = ["SHARD_ROWS", "Job", "TooManyBadError", "run_job"]
