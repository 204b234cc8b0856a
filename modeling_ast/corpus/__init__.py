"""A corpus of any size on Ray Data (extra `ray`): tagged, detected or embedded on many machines.

`tag_dataset` and `detect_dataset` are stages for a pipeline of your own; `find_source` and
`run_job` are what `modeling-ast tag --engine ray` does with them. Ray moves, repeats and schedules.
"""

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
