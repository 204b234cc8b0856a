"""The lines that a run prints: one for each evaluation, and some with the training loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState

# Metrics that a line shows, if they exist.
NAMED = ("accuracy", "mAP", "loss")


def log_line(logs: Mapping[str, Any], state: TrainerState) -> str | None:
    """A line for an entry of Trainer's log; None for others, such as its summary of speeds."""
    place = f"epoch {state.epoch or 0:.1f} of {state.num_train_epochs:g}"
    if "loss" in logs:
        return f"{place}: training loss {logs['loss']:.4g}"
    for prefix, clips in (("eval_validation_", "validation"), ("eval_", "held-out")):
        found = [f"{name} {logs[prefix + name]:.4g}" for name in NAMED if prefix + name in logs]
        if found:
            return f"{place}: {', '.join(found)} on the {clips} clips"
    return None


class ProgressLines(ProgressCallback):
    """Trainer's progress bar, with readable lines instead of dictionaries."""

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.leave = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = log_line(logs or {}, state)
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(line)


class PrintedLines(PrinterCallback):
    """The same lines without a bar, for TrainingArguments' `disable_tqdm`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = log_line(logs or {}, state)
        if state.is_local_process_zero and line:
            print(line)


@contextmanager
def bars_closed(trainer: Trainer) -> Iterator[None]:
    """Closes the progress bars if a run fails, so that they are not drawn again below the error."""
    try:
        yield
    finally:
        for callback in trainer.callback_handler.callbacks:
            for bar in (vars(callback).get(name) for name in ("training_bar", "prediction_bar")):
                if bar is not None:
                    bar.close()


def replaced_callbacks() -> dict[type[TrainerCallback], type[TrainerCallback]]:
    """Trainer's callback -> the one that replaces it."""
    return {ProgressCallback: ProgressLines, PrinterCallback: PrintedLines}


__all__ = ["PrintedLines", "ProgressLines", "bars_closed", "log_line", "replaced_callbacks"]
