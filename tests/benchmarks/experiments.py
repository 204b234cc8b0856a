"""Fine-tunings with stored results, so that a study can be interrupted and resumed at any time."""

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

# Flags of every run of a study; runs differ only in their other flags.
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "length_clips": 0,
}
# Only for runs without a recipe, because a recipe may keep the weights of its best epoch.
UNSAVED = {"save_strategy": "no", "logging_steps": 1000}
# Flags of a run that only tests the code.
QUICK = {"max_steps": 2, "per_device_eval_batch_size": 14}
# The model size of the quickstart: 0.8 M parameters, patches of 16 x 16.
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "initializer_range": 0.05,
    "num_mel_bins": 64,
}


class Experiments:
    """A folder of runs; finished runs have a file in `results/` and are not run again.

    Args:
        folder: Created if it does not exist.
        quick: Whether every fine-tuning has only two steps.
    """

    def __init__(self, folder: str | Path, quick: bool = False):
        self.folder, self.quick = Path(folder), quick
        (self.folder / "results").mkdir(parents=True, exist_ok=True)

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `run`, from now or from an earlier time, with its seconds and its date."""
        file = self.folder / "results" / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text())
        begin = time.perf_counter()
        result = {**run(), "day": str(date.today())}
        result["seconds"] = round(time.perf_counter() - begin, 1)
        # The folder gets its name only when it is complete.
        new = file.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(new, file)
        return result

    def make(self, name: str, write: Callable[[Path], object]) -> Path:
        """A folder, such as that of a data set, which `write` fills only once."""
        folder = self.folder / name
        if not folder.exists():
            new = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            write(new)
            os.replace(new, folder)
        return folder

    def command(self, name: str, *words: object) -> str:
        """The output of a command of the package; its messages go to logs/NAME.txt.

        Raises:
            RuntimeError: The command failed.
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
        """The folder of a fine-tuned model."""
        return self.folder / "models" / name

    def finetune(self, name: str, flags: Mapping[str, object]) -> dict[str, Any]:
        """The metrics of `modeling-ast finetune` with these flags, and its command line."""

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
        """The main metric of an ensemble of fine-tuned models, or of a single model."""

        def run() -> dict[str, Any]:
            folders = [self.model(model) for model in models]
            words = ("evaluate", *folders, "--data", data, "--length-clips", 0, "--json")
            row = json.loads(self.command(name, *words))["models"][-1]
            metric = "mAP" if "mAP" in row else "accuracy"
            return {"models": list(models), "score": row[metric]}

        return self.once(name, run)["score"]


def write_small_ast(folder: Path, **changes: Any) -> None:
    """Writes config and extractor of a small AST for `--from-scratch`."""
    config = ASTConfig(**{**SMALL, **changes})
    config.save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)


def spread(scores: Sequence[float]) -> str:
    """The mean, the standard deviation and all scores, for a cell of a table."""
    each = ", ".join(f"{score:.3f}" for score in scores)
    if len(scores) < 2:
        return f"{each} |"
    return f"**{statistics.mean(scores):.3f}** ± {statistics.stdev(scores):.3f} | {each}"


__all__ = ["Experiments", "spread", "write_small_ast"]
