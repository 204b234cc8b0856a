"""`modeling-ast page`: a static page that runs a model in the browser.

    modeling-ast page MODEL OUT [--runtime DIR] [--force]

The work is in `exporting/web_page.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..conversion import ConversionError
from ..exporting.web_page import RUNTIME, RUNTIME_VERSION, build_page
from .output import CommandParser, fail, quiet_libraries

VERB = "page"
DESCRIPTION = """
Write a folder with a page that names the sounds in a recording. The model runs in the browser with
8-bit weights. Any server of static files can host the folder, such as a Static Space on the Hub.
"""


def build_parser() -> CommandParser:
    """The arguments of the verb."""
    parser = CommandParser(VERB, description=DESCRIPTION)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint on the Hub, or a directory")
    add("output_dir", metavar="OUT", type=Path, help="new directory")
    add(
        "--runtime",
        type=Path,
        metavar="DIR",
        help=f"the unpacked npm package {RUNTIME} {RUNTIME_VERSION} (default: npm fetches it)",
    )
    add("--force", action="store_true", help="replace an older page")
    return parser


def main(arguments: list[str]) -> int:
    """Runs the verb and returns the exit status."""
    quiet_libraries()
    args = build_parser().parse_args(arguments)
    try:
        build_page(args.model, args.output_dir, args.runtime, args.force)
    except ConversionError as error:
        return fail(str(error))
    target = args.output_dir
    sys.stdout.write(
        f"wrote {target}; `python -m http.server -d {target}` serves it at http://localhost:8000\n"
    )
    return 0


__all__ = ["build_parser", "main"]
