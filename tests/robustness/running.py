"""Runs a command in a process group, measures its memory, and kills it if it hangs or if told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Memory limit of one process, so that a command that needs too much fails, and not the machine.
MEMORY_LIMIT = 6 * 2**30
LOOK_SECONDS = 0.05
# Summing the memory of all processes costs some 10 ms of CPU.
MEMORY_SECONDS = 0.5


@dataclass
class Run:
    """How a command ended."""

    status: int
    output: str
    errors: str
    peak_bytes: int  # of all its processes together; shared memory counts once
    hung: bool = False

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.errors


def memory_of(group: int) -> int:
    """Memory of the processes of a group in bytes; shared memory counts once (PSS)."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) != group:
                    continue
                for line in (folder / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
            except (OSError, ValueError):  # the process has ended
                continue
    return total


def run(
    arguments: Sequence[str | os.PathLike],
    folder: Path,
    timeout_seconds: float,
    kill_when: Callable[[], bool] | None = None,
) -> Run:
    """Runs `modeling-ast` with these arguments in `folder`.

    Args:
        kill_when: Called repeatedly; when it returns true, all processes are killed at once.
    """
    outputs = [folder / "stdout.txt", folder / "stderr.txt"]
    with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "modeling_ast", *arguments],
            cwd=folder,
            stdout=out,
            stderr=err,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        # Set from here: a function of `preexec_fn` may deadlock when this process has threads.
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
        begin, looked, peak, hung = time.monotonic(), 0.0, 0, False
        while process.poll() is None:
            now = time.monotonic()
            if now - looked > MEMORY_SECONDS:
                peak, looked = max(peak, memory_of(process.pid)), now
            hung = now - begin > timeout_seconds
            if hung or (kill_when is not None and kill_when()):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(LOOK_SECONDS)
        status = process.wait()
    texts = [path.read_bytes().decode(errors="replace") for path in outputs]
    return Run(status, *texts, peak, hung)
