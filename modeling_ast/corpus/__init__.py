"""A corpus of any size on Ray Data (extra `ray`): tagged, detected or embedded on many machines.

`tag_dataset` and `detect_dataset` are stages for a pipeline of your own. With `find_source` and
`run_job`, `modeling-ast tag --engine ray` makes a whole run of them. Ray moves the data, schedules
the tasks and repeats those that were lost.

Names are imported at first use: each process of the cluster imports this package, and those that
read, decode or write do not need the model, whose import takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cluster import connected
    from .keys import KeySet
    from .running import SHARD_ROWS, Job, TooManyBadError, run_job
    from .shards import MANIFEST, Manifest, write_shard
    from .sources import Source, find_source
    from .stages import Resources, detect_dataset, tag_dataset

__all__ = [
    "MANIFEST",
    "SHARD_ROWS",
    "Job",
    "KeySet",
    "Manifest",
    "Resources",
    "Source",
    "TooManyBadError",
    "connected",
    "detect_dataset",
    "find_source",
    "run_job",
    "tag_dataset",
    "write_shard",
]
# Public name -> the file that is imported at its first use.
_LATER = {
    "MANIFEST": "shards",
    "SHARD_ROWS": "running",
    "Job": "running",
    "KeySet": "keys",
    "Manifest": "shards",
    "Resources": "stages",
    "Source": "sources",
    "TooManyBadError": "running",
    "connected": "cluster",
    "detect_dataset": "stages",
    "find_source": "sources",
    "run_job": "running",
    "tag_dataset": "stages",
    "write_shard": "shards",
}


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
