"""Fine-tunings whose results are kept, so that a study can be cut at any time and goes on later."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import Any

from modeling_ast import ASTConfig, ASTFeatureExtractor
from modeling_ast.commands import main as modeling_ast

# What every run of a study has, so that only its own flags differ.
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "length_clips": 0,
}
# Runs without a recipe; a recipe may keep the weights of its best epoch.
UNSAVED = {"save_strategy": "no", "logging_steps": 1000}
# Of a run that tries the code out.
QUICK = {"max_steps": 2, "per_device_eval_batch_size": 14}
# The quickstart's size: 0.8 M parameters, patches of 16 x 16.
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "initializer_range": 0.05,
    "num_mel_bins": 64,
}


class Experiments:
    """A folder of runs; what is done is read from its file in `results/`.

    Args:
        folder: Created where it is missing.
        quick: Whether every fine-tuning takes two steps only.
    """

    def __init__(self, folder: str | Path, quick: bool = False):
        self.folder, self.quick = Path(folder), quick
        (self.folder / "results").mkdir(parents=True, exist_ok=True)

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `run` gave, now or at an earlier time, with its seconds and its day."""
        file = self.folder / "results" / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text())
        begin = time.perf_counter()
        result = {**run(), "day": str(date.today())}
        result["seconds"] = round(time.perf_counter() - begin, 1)
        # Under its own name only when it is whole.
        new = file.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(new, file)
        return result

    def make(self, name: str, write: Callable[[Path], object]) -> Path:
        """A folder, such as that of a data set, that `write` fills once."""
        folder = self.folder / name
        if not folder.exists():
            new = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            write(new)
            os.replace(new, folder)
        return folder

    def command(self, name: str, *words: object) -> str:
        """What a command of the package prints; what else it says goes to logs/NAME.txt.

        Raises:
            RuntimeError: It failed.
        """
        log, output = self.folder / "logs" / f"{name}.txt", self.folder / "logs" / f"{name}.out"
        log.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(redirect_stderr(stack.enter_context(open(log, "w"))))
            stack.enter_context(redirect_stdout(stack.enter_context(open(output, "w"))))
            try:
                status = modeling_ast([str(word) for word in words])
            except SystemExit as end:
                status = end.code
        if status:
            last = (log.read_text().strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{name} ended with status {status}: {last}; see {log}")
        return output.read_text()

    def model(self, name: str) -> Path:
        """Where the model of a fine-tuning is."""
        return self.folder / "models" / name

    def finetune(self, name: str, flags: Mapping[str, object]) -> dict[str, Any]:
        """The metrics of `modeling-ast finetune` with these flags, and the command."""

        def run() -> dict[str, Any]:
            words: list[object] = ["finetune", "--output-dir", self.model(name)]
            without = {} if "recipe" in flags else UNSAVED
            chosen = {**QUIET, **without, **flags, **(QUICK if self.quick else {})}
            if self.quick and "average_from" in chosen:
                chosen["average_from"] = 1
            for flag, value in chosen.items():
                words += [f"--{flag.replace('_', '-')}", value]
            printed = self.command(name, *words, "--json")
            return {**json.loads(printed), "command": " ".join(map(str, words))}

        return self.once(name, run)

    def evaluate(self, name: str, models: Sequence[str], data: Path) -> float:
        """The main metric of an ensemble of fine-tuned models; of one model, its own."""

        def run() -> dict[str, Any]:
            folders = [self.model(model) for model in models]
            words = ("evaluate", *folders, "--data", data, "--length-clips", 0, "--json")
            row = json.loads(self.command(name, *words))["models"][-1]
            metric = "mAP" if "mAP" in row else "accuracy"
            return {"models": list(models), "score": row[metric]}

        return self.once(name, run)["score"]


def write_small_ast(folder: Path, **changes: Any) -> None:
    """Config and extractor of a small AST for `--from-scratch`."""
    config = ASTConfig(**{**SMALL, **changes})
    config.save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)


def spread(scores: Sequence[float]) -> str:
    """Mean, standard deviation and each score, for a cell of a table."""
    each = ", ".join(f"{score:.3f}" for score in scores)
    if len(scores) < 2:
        return f"{each} |"
    return f"**{statistics.mean(scores):.3f}** ± {statistics.stdev(scores):.3f} | {each}"


__all__ = ["Experiments", "spread", "write_small_ast"]
