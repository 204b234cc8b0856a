"""Uses the installed package as a stranger does: its command, outside the checkout.

    python use_wheel.py core      # with nothing but the package's own dependencies
    python use_wheel.py train     # with the extra `train`

Run by .ci/run in an empty folder, where what `core` made is still there for `train`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import DeiTConfig, DeiTModel

COMMAND = str(Path(sys.executable).with_name("modeling-ast"))
SIZES = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
LABELS = ("low", "high")


def run(*words, status=0):
    """Standard output and standard error of `modeling-ast ...`."""
    print("$ modeling-ast", *words, flush=True)
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def write_sounds():
    """sounds/LABEL/*.wav: tones of one second."""
    n = np.arange(16000) / 16000
    for label, hz in zip(LABELS, (300, 3000)):
        for number in range(5):
            path = Path("sounds", label, f"{number}.wav")
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * np.sin(2 * np.pi * (hz + 20 * number) * n), 16000)


def core():
    """Converts, classifies, tags."""
    for name in ("datasets", "evaluate", "sklearn", "matplotlib", "pyarrow"):
        assert importlib.util.find_spec(name) is None, f"{name} is no dependency of the core"
    torch.manual_seed(0)
    deit = DeiTConfig(**SIZES, intermediate_size=32, image_size=32)
    DeiTModel(deit, add_pooling_layer=False).save_pretrained("deit")
    Path("labels.csv").write_text("index,mid,display_name\n0,/m/low,low\n1,/m/high,high\n")
    write_sounds()
    size = ("--max-length", 98, "--num-mel-bins", 32, "--label-csv", "labels.csv")
    run("convert-deit", "deit", "ast", "--num-attention-heads", 2, *size)
    out, _ = run("classify", "ast", "sounds/low/0.wav", "--json")
    (row,) = json.loads(out)
    assert {entry["label"] for entry in row["labels"]} == set(LABELS)
    out, _ = run("tag", "ast", "sounds", "--output", "tags.jsonl")
    assert len(Path("tags.jsonl").read_text().splitlines()) == 10 and "10 files, 0 of" in out
    run("average", "ast", "ast", "--output-dir", "mean")
    for verb in ("finetune", "evaluate", "stats"):
        _, err = run(verb, "--help", status=1)
        assert err.count("\n") == 1 and 'pip install "modeling-ast[train]"' in err, err


def train():
    """Fine-tunes two steps by a recipe that the wheel brings along, and evaluates."""
    data = ("--data", "sounds", "--eval-share", 0.4)
    run(
        *("finetune", "--recipe", "my_folder", "--model", "ast", *data, "--output-dir", "run"),
        *("--max-length", 98, "--max-steps", 2, "--save-strategy", "no", "--eval-strategy", "no"),
        *("--frequency-mask", 4, "--time-mask", 10, "--dataloader-num-workers", 0),
    )
    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in Path("run").iterdir()
    }
    out, _ = run("evaluate", "run", *data, "--json")
    assert json.loads(out)["clips"] == 4
    out, _ = run("stats", "run", *data, "--json")
    assert json.loads(out)["std"] > 0
    run("classify", "run", "sounds/low/0.wav", "--plot", "low.png")
    assert Path("low.png").stat().st_size > 5000


if __name__ == "__main__":
    {"core": core, "train": train}[sys.argv[1]]()
    print(f"the wheel works: {sys.argv[1]}")
