"""Short clips: the quickstart's model with and without --min-length, evaluated at each length.

    python -m tests.benchmarks.short_clips OUT --model AST [--seeds 0 1 2] [--ways whole short]

AST is the untrained model of examples/quickstart.py, quickstart/ast. It is trained with the recipe
`demo` on the embedded data at 2 s; a run takes minutes. Each finished run is a row of OUT/runs.json
and is not run again. At the end a table in Markdown is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from torch import Tensor

from examples.embedded_data import write_data_set
from modeling_ast.padding import PADDINGS
from modeling_ast.tagging import AudioTagger
from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.held_out import HeldOut, columns_of, judge, read_held_out
from modeling_ast.training.random_lengths import loudest_part

# The arguments of a run in addition to the recipe's.
WAYS = {"whole": [], "short": ["--min-length", "50"]}
SECONDS = (0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0)
# The recipe's model is that of the last epoch; `average` is the mean of the last six epochs.
MODELS = {"last": ".", "average": "average"}


def part(waveform: Tensor, seconds: float, place: str, rate: int) -> Tensor:
    """The middle or the loudest part of a clip."""
    length = min(round(seconds * rate), len(waveform))
    if place == "loudest":
        return loudest_part(waveform, length // 160, 160)
    start = (len(waveform) - length) // 2
    return waveform[start : start + length]


def judge_cut(folder: Path, held_out: HeldOut) -> dict[str, list[float]]:
    """The mAP at each of `SECONDS`, by padding and place."""
    curves = {}
    waveforms = [held_out.reader(row) for row in held_out.clips]
    for padding in PADDINGS:
        tagger = AudioTagger.from_pretrained(folder, num_workers=0, padding=padding)
        tagger.hint_at_padding = False
        own = columns_of(tagger.model.config, held_out.classes)
        for place in ("middle", "loudest"):
            curves[f"{padding} {place}"] = [
                judge(
                    np.stack(
                        [
                            result.scores[own]
                            for result in tagger(part(x, seconds, place, 16_000) for x in waveforms)
                        ]
                    ),
                    held_out,
                )["mAP"]
                for seconds in SECONDS
            ]
    return curves


def train(way: str, seed: int, model: Path, data: Path, folder: Path) -> None:
    """Runs the command once; an interrupted run resumes."""
    command = [sys.executable, "-m", "modeling_ast", "finetune", "--recipe", "demo"]
    command += ["--model", model, "--data", data, "--output-dir", folder, "--seed", seed]
    # Only the last epoch and the average are evaluated, and no worker processes use the cores.
    command += ["--eval-strategy", "no", "--length-clips", 0, "--dataloader-num-workers", 0]
    subprocess.run([*map(str, command), *WAYS[way]], check=True, stdout=subprocess.DEVNULL)


def table(runs: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """A table of the seeds' mean mAP, with a row for each way, model, place and padding."""
    heads = " | ".join(f"{seconds:g} s" for seconds in SECONDS)
    lines = [f"| trained on | model | cut | padding | {heads} |"]
    lines.append("| --- | --- | --- | --- |" + " ---: |" * len(SECONDS))
    for way in WAYS:
        chosen = [run for name, run in runs.items() if name.startswith(f"{way} ")]
        for model in MODELS if chosen else ():
            for name in chosen[0][model]:
                padding, place = name.split()
                values = zip(*(run[model][name] for run in chosen))
                numbers = " | ".join(f"{statistics.fmean(column):.3f}" for column in values)
                lines.append(
                    f"| {way} ({len(chosen)}) | {model} | {place} | {padding} | {numbers} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge a training on random lengths.")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    data, file = options.out / "data", options.out / "runs.json"
    if not (data / "README.md").exists():
        write_data_set(data)
    runs = json.loads(file.read_text()) if file.exists() else {}
    held_out = read_held_out(DataArguments(data=str(data)))
    for seed in options.seeds:
        for way in options.ways:
            name = f"{way} {seed}"
            if name in runs:
                continue
            folder = options.out / name.replace(" ", "_")
            train(way, seed, options.model, data, folder)
            runs[name] = {
                model: judge_cut(folder / inside, held_out) for model, inside in MODELS.items()
            }
            file.write_text(json.dumps(runs, indent=1))
            print(table(runs), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
