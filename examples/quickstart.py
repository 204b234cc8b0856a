"""From nothing to a classified sound, offline: data, DeiT -> AST, fine-tuning, pipeline.

    python examples/quickstart.py [--deit SOURCE] [--output_dir quickstart]

The script prints each command before it runs it, so that you can repeat the commands with your own
data. Without --deit, a tiny DeiT with random weights takes the place of one trained on ImageNet.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import soundfile
import torch
from pyarrow import parquet
from transformers import DeiTConfig, DeiTModel, pipeline

from modeling_ast import read_audio

EXAMPLES = Path(__file__).resolve().parent
# Small enough to train for minutes on two cores: two seconds (the length of the embedded clips), 64
# mel bins, and patches that do not overlap.
INPUT = {"--max-length": 200, "--num-mel-bins": 64, "--frequency-stride": 16, "--time-stride": 16}


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="From nothing to a classified sound, offline.")
    parser.add_argument(
        "--deit",
        metavar="SOURCE",
        help="Hub id, directory or .pth of a DeiT; a tiny random one by default",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("quickstart"), help="new directory (quickstart)"
    )
    parser.add_argument("--num-train", type=int, default=1600, help="training clips (1600)")
    parser.add_argument("--num-test", type=int, default=400, help="held-out clips (400)")
    parser.add_argument("--epochs", type=float, help="number of epochs (the recipe's)")
    parser.add_argument("--force", action="store_true", help="replace an earlier run")
    return parser.parse_args()


def say(text: str) -> None:
    """Prints a heading."""
    sys.stdout.write(f"\n\033[1m{text}\033[0m\n" if sys.stdout.isatty() else f"\n== {text}\n")
    sys.stdout.flush()


def run(*words: object) -> None:
    """Prints and runs a command of this package, or a script; exits if it fails."""
    words = [str(word) for word in words]
    shown = words if words[0] == "modeling-ast" else ["python", *words]
    sys.stdout.write(f"$ {shlex.join(shown)}\n")
    sys.stdout.flush()
    # Run with this Python, because its commands may not be on the PATH.
    rest = ["-m", "modeling_ast", *words[1:]] if words[0] == "modeling-ast" else words
    status = subprocess.run([sys.executable, *rest], check=False).returncode
    if status:
        sys.exit(f"error: {words[0]} ended with status {status}; its message is above")


def command() -> list[str]:
    """The words that run this package's command in the user's shell."""
    if shutil.which("modeling-ast"):
        return ["modeling-ast"]
    return [os.path.relpath(sys.executable), "-m", "modeling_ast"]


def make_tiny_deit(folder: Path) -> Path:
    """A DeiT of 0.8 M parameters with random weights, in transformers' layout."""
    torch.manual_seed(0)
    # The usual 0.02 suits a width of 768; at width 128 the model learns several times faster with
    # larger initial weights.
    config = DeiTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=224,
        initializer_range=0.05,
    )
    model = DeiTModel(config, add_pooling_layer=False)
    # transformers leaves these at zero, and equal tokens without a position learn slowly.
    embeddings = model.embeddings
    for parameter in (
        embeddings.cls_token,
        embeddings.distillation_token,
        embeddings.position_embeddings,
    ):
        torch.nn.init.normal_(parameter, std=config.initializer_range)
    # The conversion averages three colours, which shrinks random weights by the root of 3.
    torch.nn.init.normal_(embeddings.patch_embeddings.projection.weight, std=0.15)
    model.save_pretrained(folder)
    return folder


def write_test_clip(data: Path, path: Path) -> list[str]:
    """Writes the first held-out clip as a WAV and returns its labels."""
    shard = next((data / "data" / "eval").glob("*.parquet"))
    row = parquet.read_table(shard).slice(0, 1).to_pylist()[0]
    samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    soundfile.write(path, samples, rate)
    return row["human_labels"]


def main() -> None:
    """Runs all steps."""
    arguments = parse_arguments()
    begin, out = time.monotonic(), arguments.output_dir
    if out.exists() and not arguments.force:
        sys.exit(f"error: {out} exists; give another --output_dir, or replace it with --force")
    shutil.rmtree(out, ignore_errors=True)
    data, deit, ast, run_folder = (out / name for name in ("data", "deit", "ast", "model"))

    say("1. An embedded data set in AudioSet's format")
    sizes = ("--num-train", arguments.num_train, "--num-test", arguments.num_test)
    run(os.path.relpath(EXAMPLES / "embedded_data.py"), data, *sizes)

    say("2. A DeiT becomes an AST")
    source = arguments.deit
    if source is None:
        source = make_tiny_deit(deit)
        say(
            "   Nothing is downloaded: a tiny DeiT with random weights stands in for one that was "
            "trained on ImageNet. --deit facebook/deit-base-distilled-patch16-384 takes a real one."
        )
    labels = ("--label-csv", data / "class_labels_indices.csv")
    run("modeling-ast", "convert-deit", source, ast, *chain(*INPUT.items()), *labels)

    say("3. Fine-tuning and evaluation on held-out clips")
    epochs = ()
    if arguments.epochs:
        first = max(1, int(arguments.epochs) - 5)
        epochs = ("--num-train-epochs", arguments.epochs, "--average-from", first)
    paths = ("--model", ast, "--data", data, "--output-dir", run_folder)
    run("modeling-ast", "finetune", "--recipe", "demo", *paths, *epochs)

    say("4. The model classifies a held-out WAV file, through transformers' pipeline")
    wav = out / "clip.wav"
    truth = write_test_clip(data, wav)
    classify = pipeline("audio-classification", model=str(run_folder))
    # transformers before 5.23 would use softmax, as if a clip had one label.
    for row in classify(read_audio(wav), top_k=5, function_to_apply="sigmoid"):
        mark = "<- in the clip" if row["label"] in truth else ""
        sys.stdout.write(f"  {row['score']:.3f}  {row['label']:<14} {mark}\n")
    sys.stdout.write(f"  (in the clip: {', '.join(truth)})\n")
    run("modeling-ast", "classify", run_folder, wav, "--plot", out / "clip.png")

    score = json.loads((run_folder / "metrics.json").read_text())["eval_mAP"]
    say(f"Done in {time.monotonic() - begin:.0f} s: held-out mAP {score:.3f}")
    sys.stdout.write(
        f"model and card: {run_folder}\npicture: {out / 'clip.png'}, "
        f"{run_folder / 'learning_curve.png'}\n"
        f"next, a file of your own: {shlex.join([*command(), 'classify', str(run_folder)])} FILE\n"
        "(this model knows only the made-up sounds; README.md says how it learns yours)\n"
    )


if __name__ == "__main__":
    main()
