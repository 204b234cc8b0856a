"""A static page that runs a model in the browser: no server code, no requests to other sites."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from ..conversion.key_maps import ConversionError
from ..conversion.output_folder import check_target, whole_or_nothing
from ..errors import one_line
from ..strict_json import to_json
from .checking import check_files
from .export import load_for_export, write_files
from .onnx_files import FILES, waveform_settings

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
# The build for WebAssembly only, which every browser runs; the WebGPU build is twice as large.
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
VENDOR = "vendor"
MODEL_FILE = "waveform_quantized.onnx"
ASSETS = ("index.html", "style.css", "app.js", "audio.js", "rules.js", "worker.js")
PAGE_FILES = {
    *ASSETS,
    MODEL_FILE,
    "settings.json",
    "README.md",
    *(f"{VENDOR}/{name}" for name in RUNTIME_FILES),
}
# It starts with metadata for a Static Space; the headers allow onnxruntime-web several threads.
README = """---
title: Which sounds are in this recording?
emoji: 🔊
colorFrom: blue
colorTo: indigo
sdk: static
app_file: index.html
pinned: false
custom_headers:
  cross-origin-embedder-policy: require-corp
  cross-origin-opener-policy: same-origin
  cross-origin-resource-policy: same-origin
---

A page that names the sounds in a recording. The model runs in the browser; nothing is uploaded.

On your computer: `python -m http.server` in this folder, then open http://localhost:8000.
As a Static Space: upload this folder, for example with
`hf upload --repo-type space NAME/SPACE .`
"""


def build_page(
    model: str | Path, target: str | Path, runtime: Path | None = None, force: bool = False
) -> None:
    """Writes the folder of a page: HTML, CSS, JavaScript, the 8-bit model and onnxruntime-web.

    Args:
        model: Name on the Hub, or a directory.
        target: A new directory.
        runtime: The unpacked npm package onnxruntime-web; by default npm fetches it.
        force: Whether an older page may be replaced.
    Raises:
        ConversionError: `target` cannot be written or must not be replaced, onnxruntime-web cannot
            be fetched, or the error of the 8-bit model is too large.
        OSError, ValueError: The model cannot be loaded.
    """
    target = Path(target)
    check_target(target, force, [Path(model)], PAGE_FILES)
    with _runtime_folder(runtime) as distribution:
        tagger = load_for_export(model)
        with whole_or_nothing(target, force, [Path(model)], PAGE_FILES) as folder:
            (folder / VENDOR).mkdir()
            for name in RUNTIME_FILES:
                shutil.copyfile(distribution / name, folder / VENDOR / name)
            for name in ASSETS:
                content = files(__package__).joinpath("page", name).read_bytes()
                (folder / name).write_bytes(content)
            settings = waveform_settings(tagger)
            (folder / "settings.json").write_text(to_json(settings._asdict()), "utf-8")
            (folder / "README.md").write_text(README, "utf-8")
            with tempfile.TemporaryDirectory() as scratch:
                waveform_files = [file for file in FILES if file.graph == "waveform"]
                paths = write_files(waveform_files, Path(scratch), tagger)
                check_files(paths, tagger)
                shutil.copyfile(Path(scratch, "onnx", MODEL_FILE), folder / MODEL_FILE)


@contextmanager
def _runtime_folder(given: Path | None) -> Iterator[Path]:
    """The folder `dist` of onnxruntime-web.

    Raises:
        ConversionError: The folder does not exist, or npm cannot fetch it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        package = _fetched(Path(scratch)) if given is None else given
        missing = [name for name in RUNTIME_FILES if not (package / "dist" / name).is_file()]
        if missing:
            raise ConversionError(
                f"{package} has no dist/{missing[0]}; give the folder of the npm package "
                f"{RUNTIME} {RUNTIME_VERSION}"
            )
        yield package / "dist"


def _fetched(folder: Path) -> Path:
    wanted = f"{RUNTIME}@{RUNTIME_VERSION}"
    hint = f"install npm, or give the unpacked package with --runtime ({wanted})"
    command = ["npm", "pack", "--silent", wanted]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except OSError as error:
        raise ConversionError(f"cannot run npm ({one_line(error)}); {hint}") from error
    except subprocess.CalledProcessError as error:
        reason = one_line(error.stderr) or f"exit status {error.returncode}"
        raise ConversionError(f"npm cannot fetch {wanted} ({reason}); {hint}") from error
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"


__all__ = ["build_page"]
