"""Runs `modeling-ast finetune` and kills it and its workers at a known point, like a power cut.

    python -m tests.killed_finetuning POINT ARGUMENTS

POINT is `step:N` (after the N-th step), `saving:N` (while the checkpoint of step N is written: its
last file is half there) or `touch:N` (when the run opens, makes, renames or removes something in
its output directory for the N-th time). `touch:0` never kills; it prints the number of touches.
Start it in a session of its own: the whole process group is killed.
"""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback, trainer
from transformers.trainer_callback import TrainerState

from modeling_ast.commands import main

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def die():
    os.killpg(0, signal.SIGKILL)


class KillAfterStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def kill_while_saving(step):
    save = TrainerState.save_to_json

    def save_half(self, path):
        save(self, path)
        if Path(path).parent.name == f"checkpoint-{step}":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    TrainerState.save_to_json = save_half


class Touches:
    """An audit hook: Python calls it at every touch of a file, in this process or a worker."""

    def __init__(self, folder, limit):
        self.folder, self.limit = folder, limit
        self.process, self.count = os.getpid(), 0

    def __call__(self, event, arguments):
        if event not in TOUCHES or os.getpid() != self.process:
            return
        path = arguments[0]
        if isinstance(path, str | Path) and str(path).startswith(self.folder):
            self.count += 1
            if self.count == self.limit:
                die()


if __name__ == "__main__":
    (kind, number), arguments = sys.argv[1].split(":"), sys.argv[2:]
    touches = Touches(arguments[arguments.index("--output_dir") + 1], int(number))
    if kind == "step":
        trainer.DEFAULT_CALLBACKS.append(KillAfterStep(int(number)))
    elif kind == "saving":
        kill_while_saving(int(number))
    else:
        sys.addaudithook(touches)
    status = main(["finetune", *arguments])
    print(f"touched {touches.count}", file=sys.stderr)
    sys.exit(status)
