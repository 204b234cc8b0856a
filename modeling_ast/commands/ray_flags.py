"""`--engine ray`: the flags of a run on many machines, and the run, for tag and detect."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..audio_files import by_reason
from ..errors import MissingExtra, need_extra, one_line
from .output import fail, print_json, print_report

if TYPE_CHECKING:
    from ..corpus import Job, Manifest, Resources, Source

LOCAL, RAY = "local", "ray"
# Flags that are only for --engine ray.
FLAGS = ("address", "shard_rows", "models", "cpus_per_model", "most_bad", "key_column")


def add_ray_flags(parser: argparse.ArgumentParser) -> None:
    """--engine, and the flags that only `--engine ray` has."""
    group = parser.add_argument_group(
        "many machines", "With --engine ray (extra ray); docs/many_machines.md."
    )
    group.add_argument(
        "--engine",
        choices=(LOCAL, RAY),
        default=LOCAL,
        help="ray: run on a Ray cluster; --output is then a folder that all machines see, which "
        "gets Parquet shards and manifest.jsonl",
    )
    group.add_argument(
        "--address",
        help="of the cluster: auto for that of this machine, or HOST:PORT (default: Ray is started "
        "on this machine, for this run)",
    )
    group.add_argument("--shard-rows", type=int, metavar="N", help="rows of a shard (1024)")
    group.add_argument(
        "--models",
        type=int,
        metavar="N",
        help="copies of the model (default: one for each GPU; without GPUs, as many as three "
        "quarters of the CPUs)",
    )
    group.add_argument(
        "--cpus-per-model", type=int, metavar="N", help="CPUs of each copy, and its threads (1)"
    )
    group.add_argument(
        "--most-bad",
        type=float,
        metavar="SHARE",
        help="stop when more than this share of the clips is bad, from 0 to 1 (1: never)",
    )
    group.add_argument(
        "--key-column", metavar="NAME", help="column of Parquet files that names the clips"
    )


def check_ray_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with wrong usage where values are impossible or contradict each other."""
    given = [name for name in FLAGS if getattr(options, name) is not None]
    if options.engine == LOCAL:
        if given:
            parser.error(f"--{given[0].replace('_', '-')} is for --engine ray; add that")
        return
    for name in ("shard_rows", "models", "cpus_per_model"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; give at least 1")
    if options.most_bad is not None and not 0 <= options.most_bad <= 1:
        parser.error(f"--most-bad is {options.most_bad}; give a share from 0 to 1")
    if options.device not in (None, "cpu", "cuda"):
        parser.error(f"--device is {options.device!r}; with --engine ray give cpu or cuda")
    if options.output is None:
        parser.error("--engine ray writes a folder of shards; name it with --output")
    if options.output.is_file() or options.output.suffix in (".jsonl", ".parquet", ".csv"):
        parser.error(
            f"--output is {str(options.output)!r}; with --engine ray name a folder, which gets "
            f"Parquet shards"
        )


def run_on_ray(
    options: argparse.Namespace,
    source: str,
    job_of: Callable[[Resources], Job],
    whole_keys: bool = False,
) -> int:
    """Does a job on Ray; returns the exit status.

    Args:
        source: As in `corpus.find_source`.
        job_of: Makes the job, for the part of the cluster that the models take.
        whole_keys: As in `corpus.find_source`.
    """
    try:
        need_extra("ray", "ray", "--engine ray")
        need_extra("pyarrow", "ray", "--engine ray")
        need_extra("pandas", "ray", "--engine ray")
        from .. import corpus

        found = corpus.find_source(source, options.key_column, whole_keys)
        for error in found.errors:
            sys.stderr.write(f"error: cannot list {error.filename!r}: {error.strerror}\n")
        with corpus.connected(options.address):
            device = "cpu" if options.int8 else options.device
            resources = corpus.Resources.of_cluster(device, options.models, options.cpus_per_model)
            # The model is loaded here, and the actors move it to their device.
            options.device = "cpu"
            manifest = corpus.run_job(
                job_of(resources),
                found,
                options.output,
                shard_rows=options.shard_rows or corpus.SHARD_ROWS,
                most_bad=1.0 if options.most_bad is None else options.most_bad,
            )
    except MissingExtra as error:
        return fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to resume from the last shard\n")
        return 1
    except torch.OutOfMemoryError as error:
        return fail(f"{one_line(error)}; run it again with a smaller --batch-frames to resume")
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return fail(error)
    _report(options, found, manifest)
    return 1 if manifest.num_bad or found.errors else 0


def _report(options: argparse.Namespace, source: Source, manifest: Manifest) -> None:
    output = os.fsencode(options.output).decode(errors="replace")
    hours = manifest.seconds / 3600
    if options.json:
        counts = {"files": manifest.num_rows, "bad": manifest.num_bad, "hours": hours}
        left_out = [entry._asdict() for entry in source.skipped]
        shards = {"shards": len(manifest.done), "manifest": str(manifest.path)}
        return print_json({"output": output, **counts, **shards, "skipped": left_out})
    sys.stdout.write(
        f"{output}: {manifest.num_rows} files, {manifest.num_bad} of them bad, {hours:.2f} hours "
        f"of audio, in {len(manifest.done)} shards\n"
    )
    print_report(by_reason(source.skipped))
    if manifest.num_bad:
        sys.stderr.write(f"error: {manifest.num_bad} files are bad; bad.jsonl has their reasons\n")


__all__ = ["LOCAL", "RAY", "add_ray_flags", "check_ray_flags", "run_on_ray"]
