"""The cost of tagging a corpus on Ray: the rates of its stages, and the memory of each process.

    python -m tests.benchmarks.corpus rates
    python -m tests.benchmarks.corpus run [--clips 100000] [--every 10]

`rates` prints CPU seconds per clip of 10 s, not time on the clock, so that other work on the
machine changes little. `run` tags many small clips (links to twenty WAVs) with a tiny model on this
machine, by the command, and prints the private memory of each kind of process as the run goes on.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import soundfile
from pyarrow import parquet

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.corpus.decoding import Decoder
from modeling_ast.corpus.keys import KeySet
from modeling_ast.corpus.reading import ROWS, read_parquet, read_tar
from modeling_ast.corpus.shards import write_shard
from modeling_ast.tag_rows import tag_row, tag_schema, tag_table
from modeling_ast.tagging import ClipTags
from tests.benchmarks.memory import TINY, files

RATE = 16000
SECONDS = 10
# The operating system counts CPU time in hundredths of a second.
LEAST_SECONDS = 0.5
KINDS = {
    "TagActor": "model",
    "Decoder": "decoding",
    "write_shard": "writing",
    "IDLE": "idle worker",
    "raylet/raylet": "raylet",
    "gcs_server": "gcs",
    "modeling_ast tag": "driver",
}


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measured(title: str, count: int, work: Callable[[], object]) -> None:
    """Prints a row: milliseconds of CPU per clip, and clips per second of a core."""
    work()
    before, done, spent = cpu_seconds(), 0, 0.0
    while spent < LEAST_SECONDS:
        work()
        done, spent = done + count, cpu_seconds() - before
    each = spent / done
    print(f"| {title} | {1000 * each:.2f} | {1 / each:,.0f} |", flush=True)


def flac(rate: int, channels: int, seed: int = 0) -> bytes:
    """10 s of noise whose power falls with frequency, like music."""
    rng = np.random.default_rng(seed)
    samples = np.cumsum(rng.standard_normal((SECONDS * rate, channels)), 0)
    samples -= np.linspace(samples[0], samples[-1], len(samples))
    content = io.BytesIO()
    soundfile.write(content, 0.3 * samples / np.abs(samples).max(), rate, format="FLAC")
    return content.getvalue()


def shard_of(path: Path) -> pa.Table:
    nothing = [None]
    return pa.table([[path.name], nothing, [os.fsencode(path)], nothing], schema=ROWS)


def rates(folder: Path, count: int = 40) -> None:
    """Prints the cost of each stage except the model, whose cost is in README.md."""
    print("| stage | CPU ms/clip | clips/s of a core |\n| --- | --: | --: |")
    none = [KeySet()]
    for name, rate, channels in (("48 kHz stereo", 48000, 2), ("16 kHz mono", RATE, 1)):
        clips = [flac(rate, channels, seed) for seed in range(4)] * (count // 4)
        size = sum(map(len, clips)) / len(clips) / 1e6
        nothing = [None] * count
        keys = [str(number) for number in range(count)]
        rows = pa.table([keys, clips, nothing, nothing], schema=ROWS)
        decoder = Decoder(RATE, 400)
        title = f"decoding FLAC, {name} ({size:.2f} MB)"
        measured(title, count, lambda rows=rows, run=decoder: list(run(rows)))
        path = folder / f"{rate}.tar"
        with tarfile.open(path, "w") as shard:
            for number, content in enumerate(clips):
                info = tarfile.TarInfo(f"{number}.flac")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
        title = f"reading a tar shard, {name}"
        measured(title, count, lambda path=path: list(read_tar(shard_of(path), none)))
        audio = [{"bytes": content, "path": None} for content in clips]
        path = folder / f"{rate}.parquet"
        parquet.write_table(pa.table({"video_id": keys, "audio": audio}), path)
        title = f"reading Parquet, {name}"
        measured(title, count, lambda path=path: list(read_parquet(shard_of(path), none)))
    for embeddings in ("none", "pooled"):
        table = rows_of_tags(1000, embeddings)
        title = f"writing shards of 1,000 rows, embeddings {embeddings}"
        measured(title, 1000, lambda table=table: write_shard(table, str(folder)))
    newest = sorted(folder.glob("shard-*"), key=lambda path: path.stat().st_size)
    print("\nbytes a row: " + ", ".join(f"{path.stat().st_size / 1000:.0f}" for path in newest))
    keys = [f"shard-{number // 1000:06d}.tar/{number}.flac" for number in range(300_000)]
    measured(
        "keys of finished clips, in and asked", len(keys), lambda: KeySet([keys]).missing(keys)
    )


def rows_of_tags(count: int, embeddings: str) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        labels = {f"Label number {index}": float(rng.random()) for index in rng.integers(0, 527, 5)}
        vectors = rng.standard_normal((1, 768)).astype(np.float32)
        tags = ClipTags(f"{number}.flac", 10.0, labels, embeddings=vectors)
        settings = {"model": "MIT/ast-finetuned-audioset-10-10-0.4593", "padding": "max_length"}
        rows.append({**tag_row(tags.name, tags, embeddings), **settings})
    return tag_table(rows, tag_schema(embeddings))


def private_mb(driver: int) -> dict[str, list[float]]:
    """Kind of process -> private memory of each process, for a driver and all its descendants."""
    found = defaultdict(list)
    for process in (psutil.Process(driver), *psutil.Process(driver).children(recursive=True)):
        with suppress(psutil.Error):
            line, memory = " ".join(process.cmdline()), process.memory_info()
            kind = next((kind for part, kind in KINDS.items() if part in line), None)
            if kind is not None:
                found[kind].append((memory.rss - memory.shared) / 1e6)
    return found


def run(folder: Path, count: int, every: float) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """Yields (clips done, memory) at regular times during a run of the command."""
    config = ASTConfig(**TINY)
    ASTForAudioClassification(config).save_pretrained(folder / "model")
    extractor = ASTFeatureExtractor.from_config(config, padding="longest")
    extractor.save_pretrained(folder / "model")
    (folder / "clips").mkdir()
    for _ in files(count, folder / "clips"):
        pass  # the writer does its work while it is iterated
    command = [sys.executable, "-m", "modeling_ast", "tag", folder / "model", folder / "clips"]
    command += ["--engine", "ray", "--output", folder / "out"]
    manifest = folder / "out" / "manifest.jsonl"
    process = subprocess.Popen(list(map(str, command)))
    while process.poll() is None:
        time.sleep(every)
        done = 1024 * manifest.read_bytes().count(b"\n") if manifest.exists() else 0
        with suppress(psutil.NoSuchProcess):  # the process has just ended
            yield min(done, count), private_mb(process.pid)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")


def main() -> None:
    """Runs the chosen benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rates", "run"))
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "rates":
            return rates(Path(folder))
        kinds = list(KINDS.values())
        print(f"| clips | {' | '.join(f'{kind}, MB' for kind in kinds)} |")
        print("| --: |" + " --: |" * len(kinds))
        for done, memory in run(Path(folder), options.clips, options.every):
            cells = (" + ".join(f"{size:.0f}" for size in sorted(memory[kind])) for kind in kinds)
            print(f"| {done:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
