"""What the scripts share: the flags on output, the model card, the way to the Hub, exit codes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id
from key_maps import ConversionError, one_line
from output_folder import check_target, whole_or_nothing
from report import draw, format_table
from result import Conversion, save
from transformers.utils import logging as transformers_logging


class Origin(NamedTuple):
    """Where the weights come from, for the model card."""

    name: str
    base_model: str | None
    license: str
    how: str


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that all conversions share."""
    add = parser.add_argument_group("output").add_argument
    add("--force", action="store_true", help="replace an existing model")
    add("--dry-run", action="store_true", help="print the table, write nothing")
    add("--plot", type=Path, metavar="PNG", help="positions and filters, before and after")
    add("--push-to-hub", metavar="REPO", help="upload the result, e.g. to me/my-ast")
    add("--private", action="store_true", help="make REPO private if it is new")
    add("--base-model", metavar="REPO", help="for the model card (default: SOURCE on the Hub)")
    add("--license", help="for the model card (default: the source's)")


def check_output(args: argparse.Namespace, target: Path, sources: Iterable[Path]) -> None:
    """Refuses, before anything is read, what `deliver` could not do in the end.

    Raises:
        ConversionError: See `check_target`; or the flags contradict each other.
    """
    if args.private and not args.push_to_hub:
        raise ConversionError("--private does nothing without --push-to-hub REPO; give both")
    try:
        if args.push_to_hub:
            validate_repo_id(args.push_to_hub)
        if not args.dry_run:
            check_target(target, args.force, sources)
    except HFValidationError as error:
        raise ConversionError(f"--push-to-hub {args.push_to_hub}: {one_line(error)}") from error
    except OSError as error:
        raise ConversionError(f"cannot write {target} ({error}); choose another place") from error


def deliver(conversion: Conversion, origin: Origin, target: Path, args: argparse.Namespace) -> None:
    """Prints the table and does what the flags of `add_output_flags` say."""
    print(format_table(conversion.rows))
    if args.dry_run:
        return
    origin = origin._replace(
        base_model=args.base_model or origin.base_model, license=args.license or origin.license
    )
    if args.plot:
        draw(conversion.before, conversion.after, args.plot)
        print(f"drew {args.plot}")
    with whole_or_nothing(target, args.force) as folder:
        save(conversion, folder, write_card(conversion, origin))
    print(f"wrote {target}")
    if args.push_to_hub:
        print(f"pushed to {push(target, args.push_to_hub, args.private)}")


def write_card(conversion: Conversion, origin: Origin) -> str:
    """The model card: metadata that the Hub reads, how the model was made, how to use it."""
    config = conversion.config
    data = ModelCardData(
        base_model=origin.base_model,
        license=origin.license,
        pipeline_tag="audio-classification",
        library_name="transformers",
        tags=["audio-spectrogram-transformer", "audio-classification", "modeling_ast"],
    )
    rows, columns = config.patch_grid()
    return f"""---
{data.to_yaml()}
---

# Audio Spectrogram Transformer from {origin.name}

{origin.how}

- {config.num_mel_bins} mel bins x {config.max_length} frames, {rows} x {columns} patches
  (frequency x time), strides {config.frequency_stride} and {config.time_stride}
- {config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_labels} labels

Made with:

```
{shlex.join(["python", *_shown(sys.argv)])}
```

Weights:

```
{format_table(conversion.rows)}
```
"""


def _shown(argv: list[str]) -> list[str]:
    return [str(Path("conversion", Path(argv[0]).name)), *argv[1:]]


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads `folder` to the Hub and returns its address there.

    Raises:
        ConversionError: The Hub says no, or cannot be reached.
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


def exit_code(main: Callable[[], None]) -> int:
    """Runs a script: 0 when done, 1 with one line on stderr where the user can mend something."""
    transformers_logging.disable_progress_bar()
    # Its retries would bury the one line that says what is wrong.
    hub_logging.set_verbosity_error()
    try:
        main()
    except ConversionError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
