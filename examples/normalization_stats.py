"""Mean and standard deviation of a data set's log-mel values, for --mean and --std of finetune.py.

    python examples/normalization_stats.py MODEL --data DATA [--train_split train] [--num_workers 4]

MODEL is the AST that will be fine-tuned: rate, mel bins and length of the clips are its own. DATA
is what data_sources.py describes; only the clips to train on are read, once. Clips that cannot be
decoded are left out and listed in --bad_clips.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from data_sources import DataArguments, load_part
from transformers import AutoFeatureExtractor, HfArgumentParser

from modeling_ast.training import BadClips, ClipReader, Moments, normalization_stats


@dataclass
class StatsArguments:
    """How the data is read."""

    max_length: int | None = field(
        default=None, metadata={"help": "frames of 10 ms that count; by default the model's"}
    )
    num_workers: int = field(default=0, metadata={"help": "processes that decode"})
    bad_clips: str = field(
        default="bad_clips.txt", metadata={"help": "list of clips that cannot be decoded"}
    )
    json: bool = field(default=False, metadata={"help": "print JSON"})


def parse_arguments() -> tuple[str, StatsArguments, DataArguments]:
    """Reads the command line."""
    parser = HfArgumentParser((StatsArguments, DataArguments))
    parser.description = "Mean and standard deviation of a data set's log-mel values."
    parser.add_argument("model", metavar="MODEL", help="AST on the Hub, or a directory")
    stats, data, rest = parser.parse_args_into_dataclasses()
    if data.data is None:
        parser.error("--data is missing; give a name on the Hub, a directory or a file")
    return rest.model, stats, data


def measure(model: str, stats: StatsArguments, data: DataArguments) -> Moments:
    """The moments of the clips to train on."""
    extractor = AutoFeatureExtractor.from_pretrained(model)
    if stats.max_length is not None:
        extractor.max_length = stats.max_length
    clips = load_part(data, held_out=False)
    reader = ClipReader(extractor.sampling_rate, data.audio_column, root=data.root)
    bad_clips = BadClips(stats.bad_clips, len(clips), data.max_bad_share)
    return normalization_stats(clips, extractor, reader, bad_clips, num_workers=stats.num_workers)


def main() -> None:
    """Measures and prints."""
    model, stats, data = parse_arguments()
    try:
        moments = measure(model, stats, data)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if stats.json:
        values = {"mean": moments.mean, "std": moments.std, "values": moments.count}
        sys.stdout.write(json.dumps(values) + "\n")
    else:
        sys.stdout.write(f"--mean {moments.mean:.7f} --std {moments.std:.7f}\n")


if __name__ == "__main__":
    main()
