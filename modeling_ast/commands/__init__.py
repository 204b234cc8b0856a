"""The command `modeling-ast`: a verb, then the arguments of that verb.

Each verb is a file of this folder with a function `main(arguments) -> exit status`. It is imported
when the verb is used, so that a verb works without the extras that the others need.

Exit status: 0 done; 1 failed, and one sentence on standard error says why, or some files are bad;
2 wrong usage.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .. import __version__
from ..errors import need_extra
from .output import MOST_LETTERS, fail


class Verb(NamedTuple):
    """A verb of `modeling-ast`."""

    module: str  # in this folder
    help: str
    extra: str = ""  # the extra of the package that it needs


# Errors that a user can cause and correct: a wrong model, file or number, a full disk, a closed
# pipe. A verb gives a better message if it can; any other of these errors is printed on one line.
EXPECTED = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
    SafetensorError,
)
VERBS = {
    "classify": Verb("classify", "name the sounds in audio files"),
    "tag": Verb("tag", "tag every audio file of a folder"),
    "detect": Verb("detect", "find out when each sound begins and ends"),
    "convert-deit": Verb("convert_deit", "turn a DeiT or ViT for pictures into an AST"),
    "convert-original": Verb("convert_original", "convert a checkpoint of the authors' own code"),
    "average": Verb("average", "average the weights of several checkpoints"),
    "export": Verb("export", "write ONNX files for other runtimes and the browser", "onnx"),
    "page": Verb("page", "write a web page that runs a model in the browser", "onnx"),
    "finetune": Verb("finetune", "fine-tune an AST on a data set", "train"),
    "evaluate": Verb("evaluate_models", "judge a model or an ensemble on held-out clips", "train"),
    "calibrate": Verb("calibrate", "find a threshold for each label, and probabilities", "train"),
    "stats": Verb("stats", "compute mean and deviation of a data set's log-mel values", "train"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs `modeling-ast`.

    Args:
        arguments: Those behind the command's name; by default those of this process.
    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"modeling-ast {__version__}\n")
        return 0
    verb = VERBS.get(name.replace("_", "-"))
    if verb is None:
        similar = get_close_matches(name[:MOST_LETTERS].lower(), VERBS, 1)
        hint = f"did you mean {similar[0]}?" if similar else "give one of those above"
        sys.stderr.write(f"{usage()}\nerror: there is no verb {name!r}; {hint}\n")
        return 2
    # Names of files need not be valid Unicode, and a terminal may not show every character.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        module = need_extra(f"{__name__}.{verb.module}", verb.extra, f"modeling-ast {name}")
        status = module.main(rest)
        sys.stdout.flush()
        return status
    except EXPECTED as error:
        return fail(error)
    except KeyboardInterrupt:
        return fail("stopped")


def usage() -> str:
    """The help of the command itself."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: modeling-ast VERB [arguments]     (or: python -m modeling_ast VERB ...)",
            "",
            *lines,
            "",
            "modeling-ast VERB --help shows the arguments of a verb. Flags may be written with",
            "hyphens or underscores.",
            "",
        ]
    )


__all__ = ["VERBS", "Verb", "main", "usage"]
