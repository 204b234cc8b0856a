"""20,000 small clips on Ray: no process grows; `tests/benchmarks/corpus.py` has 100,000."""

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

from tests.benchmarks.corpus import run

pytestmark = pytest.mark.ray

CLIPS = 20_000
# Bytes that the allocators of a process may keep or give back between two measurements.
SLACK_MB = 60


def test_memory_stays_flat(tmp_path):
    """The largest process of each kind, in the middle of the run and in its last quarter."""
    middle, last = {}, {}
    for done, memory in run(tmp_path, CLIPS, every=1.0):
        when = middle if CLIPS // 4 <= done < CLIPS * 3 // 4 else last
        if done >= CLIPS // 4:
            for kind, sizes in memory.items():
                when[kind] = max(*sizes, when.get(kind, 0), 0)
    assert {"driver", "model", "decoding", "raylet"} <= middle.keys()
    for kind in middle.keys() & last.keys():
        assert last[kind] < middle[kind] + SLACK_MB, (kind, middle, last)
