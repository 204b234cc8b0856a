"""A recording of a day, read block by block: does memory stay flat?

    python -m tests.benchmarks.day [--hours 24]

A stereo file at 8 kHz is written (WAV: 2.8 GB for 24 hours) and read by `stream_audio` at 16 kHz in
blocks of 10 s. Prints Markdown: the resident memory of this process every three hours, the number
of samples, and how much faster than its playing time the file is read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from modeling_ast import stream_audio
from tests.benchmarks.memory import resident_mb

STORED_RATE, RATE, EVERY_HOURS = 8000, 16000, 3


def write_hours(path: Path, hours: int) -> None:
    """The same minute of noise again and again."""
    minute = 0.1 * np.random.default_rng(0).standard_normal((60 * STORED_RATE, 2))
    with soundfile.SoundFile(path, "w", STORED_RATE, 2) as file:
        for _ in range(60 * hours):
            file.write(minute)


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch the memory while a day of audio is read.")
    parser.add_argument("--hours", type=int, default=24, metavar="N")
    options = parser.parse_args()
    print("| file | hours | resident, MB | times real time |\n| --- | --: | --: | --: |")
    for suffix in ("wav", "flac"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"day.{suffix}"
            write_hours(path, options.hours)
            begin, done = time.perf_counter(), 0
            for block in stream_audio(path, RATE):
                before, done = done // (3600 * RATE), done + len(block)
                hours = done // (3600 * RATE)
                if hours > before and hours % EVERY_HOURS == 0:
                    speed = done / RATE / (time.perf_counter() - begin)
                    print(
                        f"| {suffix} | {hours} | {resident_mb():.1f} | {speed:,.0f} |", flush=True
                    )
            assert done == 3600 * options.hours * RATE, done


if __name__ == "__main__":
    main()
