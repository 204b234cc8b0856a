"""Speed and memory, side by side with transformers' AST and torchaudio's Kaldi.

    python -m tests.benchmarks.run [--device cuda] [--quick] [--only forward]

Both sides run in this process on the same inputs, one after the other in each repetition; the ratio
is the median of the repetitions' ratios, with the smallest and the largest. The model has the base
size and random weights: float32 on a CPU, bfloat16 and float16 on a GPU. The peer has the same
weights, sdpa, inference_mode and its fastest batch size. Standard output is a block of Markdown
for README.md beside this file; the numbers go to run_<device>.json, unless --only leaves some out.
--quick uses 4 of the 12 layers and fewer clips, and does not compile. The time that ours saves in
the last layer then counts three times as much.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers

import modeling_ast
from tests.benchmarks.cases import BASE_LABELS, cases, forward
from tests.benchmarks.measuring import Case, Row, machine, matrix_peak, measure, warm_up

LONG_SECONDS = (10, 60, 300)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure modeling_ast against its peers.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="4 of 12 layers, fewer clips")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose names hold it")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (5; quick: 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of the model (all)"
    )
    return parser.parse_args()


HEADER = (
    "| case | ours, ms per clip | peer | ratio (least-greatest) | ours, MB | peer | of peak |\n"
    "| --- | --: | --: | --: | --: | --: | --: |"
)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    share = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
    return (
        f"| {row.case} | {row.ours_ms:.2f} | {row.peer_ms:.2f} | **{row.ratio:.2f}** "
        f"({row.least:.2f}-{row.greatest:.2f}) | {row.ours_mb:.0f} | {row.peer_mb:.0f} | {share} |"
    )


def long_clips(options: argparse.Namespace) -> dict[int, float]:
    """Seconds of one clip, processed in one piece -> peak megabytes of the forward pass.

    With one layer, because more layers need more time but not more memory.
    """
    config = modeling_ast.ASTConfig(num_labels=BASE_LABELS, num_hidden_layers=1)
    model = modeling_ast.ASTForAudioClassification(config).to(options.device).eval()
    found = {}
    for seconds in LONG_SECONDS[:2] if options.quick else LONG_SECONDS:
        values = torch.randn(1, 100 * seconds, 128, device=options.device)
        found[seconds], _ = warm_up(partial(forward, model, values), options.device)
    return found


def repetitions(options: argparse.Namespace, case: Case) -> int:
    if options.repeat is not None:
        return options.repeat
    # Repeating the import takes seconds, because each time a new process imports torch, too.
    return 1 if options.quick and "import" in case.name else 3 if options.quick else 5


def main() -> None:
    options = parse_arguments()
    transformers.utils.logging.set_verbosity_error()
    begin = time.perf_counter()
    peak_flops = matrix_peak(options)
    where = machine(options, peak_flops)
    print("`python -m tests.benchmarks.run " + " ".join(sys.argv[1:]) + "`:")
    print(", ".join(f"{name} {value}" for name, value in where.items()) + "\n\n" + HEADER)
    content = {**where, "quick": options.quick, "rows": []}
    for case in cases(options):
        if options.only in case.name:
            row = measure(case, repetitions(options, case), options.device, peak_flops)
            print(line(row), flush=True)
            content["rows"].append(asdict(row))
    if options.only in "long clips":
        content["long_clips_mb"] = long_clips(options)
        print("\nPeak memory of the forward of one clip in one piece, one layer, float32: ", end="")
        print(", ".join(f"{s} s {mb:.0f} MB" for s, mb in content["long_clips_mb"].items()) + ".")
    if not options.only:
        name = f"run_{options.device.partition(':')[0]}{'_quick' * options.quick}.json"
        Path(__file__).with_name(name).write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nTook {time.perf_counter() - begin:.0f} s.")


if __name__ == "__main__":
    main()
