"""What the conversions share: output flags, the table, the new folder, the upload to the Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..conversion import Conversion, ConversionError, draw, format_table
from ..conversion.card import Origin, write_conversion_card
from ..conversion.output_folder import check_target, whole_or_nothing
from ..errors import MissingExtra, one_line
from ..plotting import check_picture
from .output import fail, print_json, quiet_libraries


class Made(NamedTuple):
    """A conversion, and the origin of its weights."""

    conversion: Conversion
    origin: Origin


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that all conversions share."""
    add = parser.add_argument_group("output").add_argument
    add("--force", action="store_true", help="replace an existing model")
    add("--dry-run", action="store_true", help="print the table, write nothing")
    add("--json", action="store_true", help="print the table and the paths as JSON")
    add("--plot", type=Path, metavar="PNG", help="draw positions and filters, before and after")
    add("--push-to-hub", metavar="REPO", help="upload the result, e.g. to me/my-ast")
    add("--private", action="store_true", help="make REPO private if it is new")
    add("--base-model", metavar="REPO", help="for the model card (default: SOURCE on the Hub)")
    add("--license", help="for the model card (default: the source's)")


def run(
    convert: Callable[[argparse.Namespace], Made],
    args: argparse.Namespace,
    sources: Iterable[str],
    command: Sequence[str],
) -> int:
    """Converts, and does what the flags of `add_output_flags` say.

    Args:
        convert: Makes the conversion of the verb.
        args: With these flags and `output_dir`.
        sources: Paths or Hub ids of the sources.
        command: The words of the whole command, for the model card.
    Returns:
        The exit status.
    """
    quiet_libraries()
    places = [Path(source) for source in sources]
    try:
        check_output(args, places)
        made = (
            nullcontext() if args.dry_run else whole_or_nothing(args.output_dir, args.force, places)
        )
        with made as folder:
            result = _convert_into(folder, convert, args, command)
        if not args.dry_run:
            _say(args, f"wrote {args.output_dir}")
        if args.push_to_hub and not args.dry_run:
            result["pushed"] = push(args.output_dir, args.push_to_hub, args.private)
            _say(args, f"pushed to {result['pushed']}")
    except ConversionError as error:
        # The whole message on one line: its end says what to do.
        return fail(str(error))
    if args.json:
        print_json(result)
    return 0


def check_output(args: argparse.Namespace, sources: Iterable[Path]) -> None:
    """Refuses, before anything is read, an output that could not be written at the end.

    Raises:
        ConversionError: See `check_target`; or the flags contradict each other.
    """
    target = args.output_dir
    if args.private and not args.push_to_hub:
        raise ConversionError("--private does nothing without --push-to-hub REPO; give both")
    try:
        if args.push_to_hub:
            validate_repo_id(args.push_to_hub)
        if not args.dry_run:
            check_target(target, args.force, sources)
        if args.plot and not args.dry_run:
            check_picture(args.plot)
    except HFValidationError as error:
        raise ConversionError(f"--push-to-hub {args.push_to_hub}: {one_line(error)}") from error
    except ConversionError:
        raise
    except (MissingExtra, ValueError) as error:
        raise ConversionError(f"--plot: {error}") from error
    except OSError as error:
        raise ConversionError(f"cannot write {target} ({error}); choose another place") from error


def _convert_into(
    folder: Path | None,
    convert: Callable[[argparse.Namespace], Made],
    args: argparse.Namespace,
    command: Sequence[str],
) -> dict[str, Any]:
    """Does everything but the upload; returns what --json prints."""
    try:
        made = convert(args)
    except OSError as error:
        raise ConversionError(f"cannot read the source: {one_line(error)}") from error
    origin = made.origin._replace(
        base_model=args.base_model or made.origin.base_model,
        license=args.license or made.origin.license,
    )
    card = write_conversion_card(made.conversion, origin, command)
    return deliver(made.conversion, card, args, folder)


def deliver(
    conversion: Conversion, card: str, args: argparse.Namespace, folder: Path | None
) -> dict[str, Any]:
    """Prints the table, draws and saves.

    Args:
        conversion, card: What is saved.
        args: See `run`.
        folder: To write into; None writes nothing.
    Returns:
        What --json prints: the folder and the address on the Hub (None where there is none), and
        the rows of the table.
    Raises:
        ConversionError: The picture cannot be written.
    """
    result = {
        "output": None if folder is None else str(args.output_dir),
        "rows": [row._asdict() for row in conversion.rows],
        "pushed": None,
    }
    _say(args, format_table(conversion.rows))
    if folder is None:
        return result
    if args.plot:
        draw(conversion.before, conversion.after, args.plot)
        _say(args, f"drew {args.plot}")
    conversion.save(folder, card)
    return result


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads `folder` to the Hub and returns its address there.

    Raises:
        ConversionError: The Hub refuses it, or cannot be reached.
    """
    try:
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="Converted to AST"
        )
    except (OSError, HTTPError) as error:
        raise ConversionError(
            f"cannot push to {repo} ({one_line(error)}); {folder} is complete: log in with "
            f"`hf auth login` and push it with `hf upload {repo} {folder}`"
        ) from error
    return str(url)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


__all__ = ["Made", "add_output_flags", "check_output", "deliver", "push", "run"]
