"""A static page that runs a model in the browser: no server code, no requests to other sites."""

from __future__ import annotations

import base64
import hashlib
import json
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
from ..labels import printable
from ..strict_json import to_json
from .checking import check_files
from .export import load_for_export, write_files
from .onnx_files import FILES, waveform_settings

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
# Of the archive in npm's registry (`npm view onnxruntime-web@1.30.0 dist.integrity`): a mirror or a
# cache that gives another is not trusted.
RUNTIME_INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7sv"
    "Nc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
# npm's own patience is minutes where there is no network. What is in its cache needs none.
NPM_FLAGS = (
    "--json",
    "--prefer-offline",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-timeout=60000",
)
# The build for WebAssembly alone, which every browser runs; the one for WebGPU is twice as large.
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
                asset = files(__package__).joinpath("page", name).read_bytes()
                (folder / name).write_bytes(asset)
            settings = waveform_settings(tagger)
            name = Path(model).resolve().name if Path(model).is_dir() else str(model)
            content = to_json({"model": printable(name), **settings._asdict()})
            (folder / "settings.json").write_text(content, "utf-8")
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
    """Fetches the package with npm, checks it, and unpacks it into `folder`."""
    wanted = f"{RUNTIME}@{RUNTIME_VERSION}"
    remedy = f"or unpack what `npm pack {wanted}` gives elsewhere and name its folder by --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise ConversionError(
            f"{wanted} is fetched by npm, which is not here; install it, {remedy}"
        )
    command = [npm, "pack", *NPM_FLAGS, wanted]
    run = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if run.returncode:
        raise ConversionError(
            f"npm cannot fetch {wanted} ({_why(run)}); connect to the internet, {remedy}"
        )
    (archive,) = folder.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != RUNTIME_INTEGRITY:
        raise ConversionError(
            f"what npm fetched is not the published {wanted}: its SHA-512 is {digest}; take npm's "
            f"own registry (npm config get registry says which is used), {remedy}"
        )
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"


def _why(run: subprocess.CompletedProcess[str]) -> str:
    """What npm says with --json about a failure, in a line."""
    try:
        error = json.loads(run.stdout)["error"]
        return f"{error['code']}: {one_line(ValueError(error['summary']))}"
    except (ValueError, KeyError, TypeError):
        return one_line(run.stderr) or f"exit status {run.returncode}"


__all__ = ["build_page"]
