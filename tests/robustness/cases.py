"""The cases and how their faults are counted: files, kills, checkpoints, labels from a stranger."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from pyarrow import parquet

from tests.robustness import audio_files, checkpoints
from tests.robustness.running import Run, run

COLUMNS = ("cases", "lost", "doubled", "wrong", "tracebacks", "hangs")
# Allowed difference between decoded and written seconds, because MP3 and Opus add padding.
SECONDS_TOLERANCE = 0.15


@dataclass
class Tally:
    """Counts of cases and faults by kind, with a note on each fault."""

    counts: dict[str, Counter] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, note: str = "", **faults: int) -> None:
        """Counts a case and its faults; with `cases=0` only the faults."""
        self.counts.setdefault(kind, Counter()).update({"cases": 1, **faults})
        if note:
            self.notes.append(f"{kind}: {note}")

    def see(self, kind: str, outcome: Run, statuses: tuple[int, ...]) -> None:
        """Counts the faults in the way a command ended."""
        self.peaks[kind] = max(self.peaks.get(kind, 0), outcome.peak_bytes)
        if outcome.hung:
            self.add(kind, "hung", cases=0, hangs=1)
        if outcome.has_traceback:
            self.add(kind, outcome.errors[-1500:], cases=0, tracebacks=1)
        elif outcome.status not in statuses and not outcome.hung:
            note = f"status {outcome.status}: {outcome.errors[-500:]}"
            self.add(kind, note, cases=0, wrong=1)

    def join(self, other: Tally) -> None:
        """Adds what another one has counted."""
        for kind, counts in other.counts.items():
            self.counts.setdefault(kind, Counter()).update(counts)
        for kind, peak in other.peaks.items():
            self.peaks[kind] = max(self.peaks.get(kind, 0), peak)
        self.notes.extend(other.notes)

    def is_clean(self, most_bytes: int) -> bool:
        """Whether there was no fault, and the peak memory was not above this limit."""
        faults = (counts[name] for counts in self.counts.values() for name in COLUMNS[1:])
        return not any(faults) and all(peak < most_bytes for peak in self.peaks.values())

    def table(self) -> str:
        """The table in Markdown, then the notes."""
        lines = [f"| kind | {' | '.join(COLUMNS)} | peak, MB |", "| --- |" + " --: |" * 7]
        for kind, counts in self.counts.items():
            peak = f"{self.peaks[kind] / 2**20:.0f}" if kind in self.peaks else ""
            cells = " | ".join(str(counts[name]) for name in COLUMNS)
            lines.append(f"| {kind} | {cells} | {peak} |")
        total = sum(self.counts.values(), Counter())
        lines.append(f"| all | {' | '.join(str(total[name]) for name in COLUMNS)} | |")
        return "\n".join([*lines, "", *self.notes, ""])


def run_cases(cases: Sequence[Callable[[Tally], None]], jobs: int, tally: Tally) -> None:
    """Runs independent cases, `jobs` at a time, each with a tally of its own."""

    def counted(case: Callable[[Tally], None]) -> Tally:
        own = Tally()
        case(own)
        return own

    with ThreadPoolExecutor(jobs) as pool:
        for done, own in enumerate(pool.map(counted, cases), start=1):
            tally.join(own)
            if done % 10 == 0:
                sys.stderr.write(f"{done} of {len(cases)} cases\n")


def write_files(folder: Path, count: int, seed: int) -> dict[bytes, tuple[str, float | str]]:
    """Writes files of all kinds in turns; name -> (kind, expected result)."""
    folder.mkdir()
    written = {}
    kinds = list(audio_files.KINDS.items())
    for index in range(count):
        kind, make = kinds[index % len(kinds)]
        made = make(np.random.default_rng([seed, index]))
        name = b"%05d" % index
        if index % 10 == 0:
            name = audio_files.STRANGE_NAMES[index // 10 % len(audio_files.STRANGE_NAMES)] + name
        name = name[: 250 - len(made.suffix)] + made.suffix.encode()
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(made.content)
        written[name] = (kind, made.expected)
    return written


def write_unlisted(folder: Path) -> None:
    """Makes entries that are named like audio but are not: they must not stop or delay others."""
    (folder / "._0.wav").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(50))
    (folder / ".hidden.wav").write_bytes(b"RIFF")
    (folder / "dangling.wav").symlink_to(folder / "nowhere")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare_rows(
    rows: list[dict], written: dict[bytes, tuple[str, float | str]], tally: Tally
) -> None:
    """Counts files that are lost or doubled, or have an unexpected result."""
    seen = Counter(row["file"] for row in rows)
    by_name = {row["file"]: row for row in rows}
    for name, (kind, expected) in written.items():
        text = os.fsdecode(name)
        row = by_name.get(text)
        if row is None:
            tally.add(kind, f"{name!r} has no row", lost=1)
            continue
        tally.add(kind, doubled=int(seen[text] > 1))
        is_bad = row["error"] is not None
        if not is_bad and row["seconds"] is None:
            tally.add(kind, f"{name!r}: {row}", cases=0, wrong=1)
        if expected == audio_files.BAD and not is_bad:
            tally.add(kind, f"{name!r} is heard: {row['seconds']} s", cases=0, wrong=1)
        if isinstance(expected, float) and (
            is_bad or abs(row["seconds"] - expected) > SECONDS_TOLERANCE
        ):
            heard = row["error"] if is_bad else f"{row['seconds']} s"
            tally.add(kind, f"{name!r}: {heard}, not {expected} s", cases=0, wrong=1)


def check_files(place: Path, count: int, seed: int, jobs: int, tally: Tally) -> None:
    """Tags files of all kinds in one run, and classifies a few of them."""
    model, folder = place / "model", place / "files"
    checkpoints.whole_model(model)
    written = write_files(folder, count, seed)
    write_unlisted(folder)
    timeout = 120 + 0.5 * count
    outcome = run(["tag", model, folder, "--output", "tags.parquet"], place, timeout)
    tally.add("tag")
    tally.see("tag", outcome, (1,))
    if (place / "tags.jsonl").exists():
        compare_rows(rows_of(place / "tags.jsonl"), written, tally)
        rows = parquet.read_table(place / "tags.parquet").num_rows
        own = len(rows_of(place / "tags.jsonl"))
        tally.add("Parquet", lost=max(0, own - rows), doubled=max(0, rows - own))
    some = [b"files/" + name for name in written][: 3 * len(audio_files.KINDS)]
    outcome = run(["classify", model, "--json", "--", *some], place, timeout)
    tally.see("classify", outcome, (0, 1))
    try:
        found = len(json.loads(outcome.output))
    except ValueError:
        found = 0
    tally.add("classify", lost=len(some) - found)


def check_kills(place: Path, count: int, seed: int, jobs: int, tally: Tally) -> None:
    """Kills runs of tag, finetune and average at all stages, and resumes them."""
    checkpoints.whole_model(place / "model")
    files, sounds = place / "files", place / "sounds"
    written = {
        name: (f"killed tag, {kind}", expected)
        for name, (kind, expected) in write_files(files, 90, seed).items()
    }
    write_sounds(sounds)
    stages: list[Callable[[Path, float, Tally], None]] = [
        lambda out, share, tally: kill_tag(place, out, share, written, tally),
        lambda out, share, tally: kill_finetune(place, out, share, tally),
        lambda out, share, tally: kill_conversion(place, out, share, tally),
    ]

    def killed(index: int, tally: Tally) -> None:
        share = (index // len(stages)) / max(1, (count - 1) // len(stages))
        out = place / f"out{index}"
        out.mkdir()
        stages[index % len(stages)](out, share, tally)
        shutil.rmtree(out)

    run_cases([functools.partial(killed, index) for index in range(count)], jobs, tally)


def write_sounds(folder: Path, labels=checkpoints.LABELS, count: int = 8) -> None:
    """Writes a folder of clips for each label."""
    rng = np.random.default_rng(0)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            samples = audio_files.sound(rng, 0.6, 16000)
            soundfile.write(folder / label / f"{index}.wav", samples, 16000)


def kill_tag(place: Path, out: Path, share: float, written: dict, tally: Tally) -> None:
    """Kills a tagging after a share of the rows, and finally while it writes the Parquet file."""
    command = ["tag", place / "model", place / "files", "--output", out / "tags.parquet"]
    journal, partial = out / "tags.jsonl", out / "tags.parquet.partial"
    wanted = max(1, round(share * len(written)))

    def is_time() -> bool:
        if share == 1:
            return partial.exists() or (out / "tags.parquet").exists()
        return journal.exists() and journal.read_bytes().count(b"\n") >= wanted

    first = run(command, out, 300, is_time)
    again = run(command, out, 300)
    tally.see("tag, killed", first, (-9, 1))
    tally.see("tag, killed", again, (1,))
    tally.add("tag, killed", wrong=int(partial.exists()))
    if journal.exists():
        compare_rows(rows_of(journal), written, tally)


def kill_finetune(place: Path, out: Path, share: float, tally: Tally) -> None:
    """Kills a training at the start, in the middle, or when a checkpoint's folder appears."""
    target = out / "run"
    command = [
        *("finetune", "--model", place / "model", "--data", place / "sounds"),
        *("--output-dir", target, "--eval-share", "0.25", "--num-train-epochs", "3"),
        *("--per-device-train-batch-size", "8", "--save-strategy", "epoch", "--report-to", "none"),
    ]
    wanted = round(3 * share)
    begin = time.monotonic()

    def is_time() -> bool:
        if wanted == 0:
            return target.exists() or time.monotonic() - begin > 60
        return (
            len(list(target.glob("checkpoint-*"))) >= min(wanted, 2)
            or (target / "metrics.json").exists()
        )

    first = run(command, out, 300, is_time)
    again = run(command, out, 300)
    tally.see("finetune, killed", first, (-9, 0))
    tally.see("finetune, killed", again, (0,))
    whole = (target / "metrics.json").exists() and (target / "model.safetensors").exists()
    tally.add("finetune, killed", lost=int(not whole))


def kill_conversion(place: Path, out: Path, share: float, tally: Tally) -> None:
    """Kills a conversion before, during and after the writing of its folder."""
    model = place / "model"
    command = ["average", model, model, "--output-dir", out / "mean"]
    begin = time.monotonic()

    def is_time() -> bool:
        begun = [path for path in out.iterdir() if path.is_dir()]
        return bool(begun) if share > 0.3 else time.monotonic() - begin > 3 * share + 0.5

    first = run(command, out, 300, is_time)
    finished = (out / "mean").exists()
    again = run([*command, *(["--force"] if finished else [])], out, 300)
    tally.see("average, killed", first, (-9, 0))
    tally.see("average, killed", again, (0,))
    left = [path.name for path in out.iterdir() if path.is_dir() and path.name != "mean"]
    lost = not (out / "mean" / "model.safetensors").exists()
    tally.add("average, killed", str(left) if left else "", wrong=len(left), lost=int(lost))


# The commands that read a checkpoint, with their arguments.
def commands_on(model: Path, place: Path) -> dict[str, list]:
    sounds, clip = place / "sounds", place / "sounds" / "bark" / "0.wav"
    return {
        "classify": ["classify", model, clip],
        "tag": ["tag", model, sounds, "--output", model.parent / "tags.jsonl"],
        "evaluate": ["evaluate", model, "--data", sounds, "--eval-share", "0.25"],
        "average": ["average", model, model, "--output-dir", model.parent / "mean"],
        "stats": ["stats", model, "--data", sounds],
        "finetune": [
            *("finetune", "--model", model, "--data", sounds, "--eval-share", "0.25"),
            *("--output-dir", model.parent / "run", "--max-steps", "1", "--report-to", "none"),
        ],
    }


# Pairs of damage and command that may succeed, because the command does not read that part.
NOT_READ = {
    "stats": "weights|head|tensors|NaN|dtype|problem|hidden|layers|label|config",
    "finetune": "head missing|id2label|num_labels|problem",
    "average": "extractor|mean null|std|sampling|padding|id2label|num_labels|problem",
    "evaluate": "problem",
    "classify": "problem",
    "tag": "problem",
}


def check_checkpoints(place: Path, _count: int, seed: int, jobs: int, tally: Tally) -> None:
    """Gives each damage to each command, which must fail with one sentence and status 1."""
    write_sounds(place / "sounds")
    checkpoints.whole_model(place / "model")

    def damaged(kind: str, verb: str, tally: Tally) -> None:
        out = place / f"{kind}, {verb}"
        out.mkdir()
        shutil.copytree(place / "model", out / "model")
        checkpoints.DAMAGES[kind](out / "model")
        outcome = run(commands_on(out / "model", place)[verb], out, 120)
        may_pass = re.search(NOT_READ.get(verb, "^$"), kind) is not None
        name = f"checkpoint, {verb}"
        tally.add(name)
        tally.see(name, outcome, (0, 1) if may_pass else (1,))
        sentences = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
        if outcome.status == 1 and not sentences:
            tally.add(name, f"{kind}: {outcome.errors[-500:]!r}", cases=0, wrong=1)
        if (out / "pickle_ran").exists():
            tally.add(name, f"{kind}: the pickle's code ran", cases=0, wrong=1)
        shutil.rmtree(out)

    verbs = commands_on(place / "model", place)
    cases = [
        functools.partial(damaged, kind, verb) for kind in checkpoints.DAMAGES for verb in verbs
    ]
    run_cases(cases, jobs, tally)


def check_labels(place: Path, _count: int, seed: int, jobs: int, tally: Tally) -> None:
    """Runs the commands that print, draw or write labels with labels from a stranger."""
    out = place / "case"
    out.mkdir()
    checkpoints.with_strange_labels(out / "model")
    write_sounds(place / "sounds")
    clip = place / "sounds" / "bark" / "0.wav"
    count = len(checkpoints.STRANGE_LABELS)
    for verb, command in {
        "classify": ["classify", out / "model", clip, "--top-k", str(count), "--plot", "p.png"],
        "tag": ["tag", out / "model", place / "sounds", "--output", "tags.parquet"],
        "average": ["average", out / "model", out / "model", "--output-dir", "mean"],
    }.items():
        outcome = run(command, out, 120)
        name = f"strange labels, {verb}"
        tally.add(name)
        tally.see(name, outcome, (0,))
        if re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", outcome.output):
            tally.add(name, "control characters in the terminal", cases=0, wrong=1)
    if (out / "tags.jsonl").exists():
        few = [row for row in rows_of(out / "tags.jsonl") if len(row["labels"]) != 5]
        tally.add("strange labels, tag", cases=0, lost=len(few))
