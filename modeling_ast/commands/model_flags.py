"""The flags on the model and on how it gives scores, the same for all verbs."""

from __future__ import annotations

import argparse

from ..calibration import CALIBRATION_FILE, Calibration
from ..devices import bfloat16_speedup
from ..labels import SCORES
from ..padding import PADDINGS
from ..quantization import is_quantized, quantize_int8
from ..tagging import AudioTagger
from .output import print_report, quiet_libraries

DTYPES = ("auto", "float32", "bfloat16", "float16")
ON_CPU = (None, "cpu")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL, and the flags that change its scores or its speed."""
    _add_shared_flags(parser, "--scores")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels of a clip (5)")
    parser.add_argument(
        "--padding",
        choices=PADDINGS,
        help="max_length: each clip is padded to the model's length, as plain transformers does; "
        "longest: only to the longest clip of its batch, which is faster for short clips and gives "
        "other scores (default: what the checkpoint has saved, max_length for most)",
    )


def add_window_model_flags(parser: argparse.ArgumentParser) -> None:
    """The same for a model that gets windows, which are shorter than its clips.

    `--scores` is not among them: it is the name of a file here.
    """
    _add_shared_flags(parser, "--activation")
    parser.add_argument(
        "--padding",
        choices=PADDINGS,
        default="longest",
        help="longest (default): a window is not padded, whatever the checkpoint has saved; "
        "max_length: each is padded to the model's length, which takes as long as a whole clip",
    )
    parser.set_defaults(top_k=1)


def _add_shared_flags(parser: argparse.ArgumentParser, activation_flag: str) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint on the Hub, or a directory")
    parser.add_argument(
        activation_flag,
        dest="scores",
        choices=SCORES,
        default="auto",
        help="sigmoid: each label has its own score; softmax: the scores of all labels add up to "
        "1; auto (default): as the config says, and sigmoid for AudioSet's 527 classes, whose "
        "configs do not say it",
    )
    parser.add_argument(
        "--no-calibration",
        dest="calibration",
        action="store_false",
        help="do not use the model's calibration.json, which modeling-ast calibrate makes",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the weights (default: the checkpoint's; a GPU is many times faster with "
        "bfloat16); auto: on a CPU, bfloat16 if a short measurement shows that it is faster",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="on a CPU: 8-bit integers in the linear layers; faster, and scores change a little",
    )


def check_model_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with wrong usage where values are impossible or contradict each other."""
    if options.top_k < 1:
        parser.error(f"--top-k is {options.top_k}; give at least 1")
    if options.int8 and (
        options.dtype not in (None, "auto", "float32") or options.device not in ON_CPU
    ):
        parser.error("--int8 is for a CPU and float32; leave --device and --dtype out")


def load_tagger(options: argparse.Namespace, **kwargs) -> AudioTagger:
    """The tagger that the flags describe.

    If a calibration.json changes the scores, a line on standard error says so.

    Args:
        kwargs: Further arguments of `AudioTagger`.
    Raises:
        OSError, ValueError: The model cannot be loaded, or there is no such device.
    """
    quiet_libraries()
    tagger = AudioTagger.from_pretrained(
        options.model,
        "cpu" if options.int8 else options.device,
        "float32" if options.int8 else options.dtype,
        calibration=options.calibration,
        top_k=options.top_k,
        scores=options.scores,
        padding=options.padding,
        **kwargs,
    )
    if options.dtype == "auto" and not options.int8 and tagger.model.device.type == "cpu":
        times = bfloat16_speedup()
        print_report(
            [f"--dtype auto: {tagger.dtype_name}; bfloat16 is {times:.2g} times as fast as float32"]
        )
    if options.int8 and not is_quantized(tagger.model):
        tagger.model = quantize_int8(tagger.model)
    if tagger.calibration is not None:
        print_report([calibration_line(options.model, tagger.calibration)])
    return tagger


def calibration_line(model: str, calibration: Calibration) -> str:
    """The line that says that scores and thresholds are calibrated."""
    return (
        f"{CALIBRATION_FILE} of {model} is used ({calibration.method}, {calibration.criterion}, "
        f"fitted to {calibration.num_clips} clips); --no-calibration leaves it out"
    )


__all__ = ["add_model_flags", "add_window_model_flags", "check_model_flags", "load_tagger"]
