"""Tries thousands of hostile files, damaged checkpoints and kills; prints what was lost.

    python -m tests.robustness --files 5000 --kills 40

Makes odd, damaged and hostile audio files (audio_files.py), tags them under a memory limit, kills
runs of tag, finetune and convert-deit at every stage and resumes them, and gives every command
damaged model folders (checkpoints.py). The exit status is 0 if no clip was lost or doubled, no
command hung and none printed a traceback. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.robustness.cases import (
    Tally,
    check_checkpoints,
    check_files,
    check_kills,
    check_labels,
)

MOST_BYTES = 2 * 2**30


def main() -> int:
    """Runs all cases and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--files", type=int, default=5000, help="audio files (5000)")
    parser.add_argument("--kills", type=int, default=40, help="killed runs (40)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="commands at a time (one for each CPU)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random (0)")
    options = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        for check, count in (
            (check_files, options.files),
            (check_kills, options.kills),
            (check_checkpoints, 0),
            (check_labels, 0),
        ):
            place = Path(folder) / check.__name__
            place.mkdir()
            check(place, count, options.seed, options.jobs, tally)
            sys.stderr.write(f"after {check.__name__}:\n{tally.table()}\n")
    sys.stdout.write(tally.table())
    return 0 if tally.is_clean(MOST_BYTES) else 1


if __name__ == "__main__":
    sys.exit(main())
