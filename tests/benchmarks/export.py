"""Sizes, milliseconds per clip and errors of a model in torch, onnxruntime, OpenVINO,
transformers.js and the browser, in turns.

    python -m tests.benchmarks.export [MODEL]

Without MODEL: the base size with 527 labels and random weights. What is not installed (openvino;
node, chromium and `npm install` in tests/clients) is left out. The input is one clip of the model's
length, as frames: the front end is the same for all. A ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import copy
import functools
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AudioTagger,
    quantize_int8,
)
from modeling_ast.exporting.export import write_files
from modeling_ast.exporting.onnx_files import FILES
from modeling_ast.exporting.running import open_session

NUM_TURNS = 5
HERE = Path(__file__).resolve().parent
CLIENTS = Path(os.environ.get("CLIENTS_FOLDER", HERE.parent / "clients"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# transformers.js's names of the files.
DTYPES = {"model.onnx": "fp32", "model_quantized.onnx": "q8"}


class Run(NamedTuple):
    """A way to compute logits."""

    megabytes: float  # of the weights or the file
    call: Callable[[Tensor], tuple[float, np.ndarray]]  # milliseconds and logits


def timed(call: Callable[[Tensor], np.ndarray]) -> Callable[[Tensor], tuple[float, np.ndarray]]:
    """The same with its milliseconds."""

    def run(values: Tensor) -> tuple[float, np.ndarray]:
        start = perf_counter()
        logits = call(values)
        return 1000 * (perf_counter() - start), logits

    return run


def in_torch(model: nn.Module) -> Run:
    """A model of any type of weights."""
    megabytes = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    dtype = model.dtype
    return Run(megabytes, timed(lambda values: model(values.to(dtype)).logits.float().numpy()))


def torch_runs(model: ASTForAudioClassification) -> Iterator[tuple[str, Run]]:
    """float32 comes first: the others are compared with it."""
    yield "torch float32", in_torch(model)
    yield "torch bfloat16", in_torch(copy.deepcopy(model).bfloat16())
    yield "torch float16", in_torch(copy.deepcopy(model).half())
    own = in_torch(quantize_int8(model))
    yield "torch int8 (quantize_int8)", own
    workflow = getattr(getattr(torch, "ao", None), "quantization", None)
    if hasattr(workflow, "quantize_dynamic"):  # deprecated
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = workflow.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
        call = timed(lambda values: theirs(values).logits.numpy())
        # Its weights are in objects that do not say their size: it is that of ours.
        yield "torch int8 (torch.ao, dynamic)", Run(own.megabytes, call)


def file_runs(folder: Path) -> Iterator[tuple[str, Run]]:
    """The ONNX files in onnxruntime and OpenVINO."""
    for file in FILES:
        if file.graph != "frames":
            continue
        path = folder / file.path
        megabytes = path.stat().st_size / 1e6
        session = open_session(path)
        call = functools.partial(run_session, session)
        yield f"onnxruntime {file.precision}", Run(megabytes, timed(call))
        if importlib.util.find_spec("openvino") and file.precision != "float16":
            import openvino

            settings = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.Core().compile_model(path, "CPU", settings)
            call = functools.partial(run_compiled, compiled)
            yield f"OpenVINO {file.precision}", Run(megabytes, timed(call))


def run_session(session, values: Tensor) -> np.ndarray:
    return session.run(None, {"input_values": values.numpy()})[0]


def run_compiled(compiled, values: Tensor) -> np.ndarray:
    return compiled({"input_values": values.numpy()})["logits"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, with the headers that give a page several threads."""

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def node(script: str, *arguments: object) -> Iterator[Callable[..., tuple[float, np.ndarray]]]:
    """A script of tests/clients, asked for one run after the other."""
    source = HERE.parent / "clients" / script
    if source.parent != CLIENTS:  # a module is looked for beside the script
        shutil.copy(source, CLIENTS)
    command = ["node", script, *map(str, arguments)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=CLIENTS, **streams) as process:

        def ask(values: Tensor, **wanted: object) -> tuple[float, np.ndarray]:
            process.stdin.write(f"{json.dumps(wanted)}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["milliseconds"], np.array(answer["logits"])[None]

        yield ask
        process.stdin.close()


def client_runs(folder: Path, values: Tensor, stack: ExitStack) -> Iterator[tuple[str, Run]]:
    """The same files in transformers.js (Node) and onnxruntime-web (Chromium)."""
    packages = CLIENTS / "node_modules"
    if shutil.which("node") is None or not packages.is_dir():
        return
    (folder / "frames.json").write_text(json.dumps({"shape": values.shape, "file": "frames.f32"}))
    (folder / "frames.f32").write_bytes(values.numpy().tobytes())
    files = {name: file.precision for file in FILES if (name := file.name) in DTYPES}
    size = {name: (folder / "onnx" / name).stat().st_size / 1e6 for name in files}
    ask = stack.enter_context(node("timed_node.mjs", folder))
    for name, precision in files.items():
        call = functools.partial(ask, dtype=DTYPES[name])
        yield f"transformers.js in Node, {precision}", Run(size[name], call)
    if CHROMIUM is None:
        return
    (folder / "blank.html").write_text("<!doctype html><title>Runs</title>")
    shutil.copytree(packages / "onnxruntime-web" / "dist", folder / "runtime")
    url = stack.enter_context(served(folder))
    ask = stack.enter_context(node("timed_browser.mjs", CHROMIUM, url))
    for name, precision in files.items():
        # A plain server gives a page one thread; in float32 that takes half a minute for a clip.
        few = {1} if precision == "int8" else set()
        for threads in sorted(few | {os.cpu_count() or 1}):
            call = functools.partial(ask, file=f"onnx/{name}", threads=threads)
            yield f"Chromium, {precision}, threads: {threads}", Run(size[name], call)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    if sys.argv[1:]:
        tagger = AudioTagger.from_pretrained(sys.argv[1], "cpu", "float32", num_workers=0)
    else:
        config = ASTConfig(num_labels=527)
        model = ASTForAudioClassification(config).eval()
        tagger = AudioTagger(model, ASTFeatureExtractor.from_config(config), num_workers=0)
    config = tagger.model.config
    values = torch.randn(1, config.max_length, config.num_mel_bins) * 0.5
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch, "model")
        folder.mkdir()
        with torch.inference_mode(False):
            tagger.model.config.save_pretrained(folder)
            write_files([file for file in FILES if file.graph == "frames"], folder, tagger)
            runs = dict(torch_runs(tagger.model))
        runs |= dict(file_runs(folder))
        runs |= dict(client_runs(folder, values, stack))
        report(runs, values)


def report(runs: dict[str, Run], values: Tensor) -> None:
    """Takes turns, and prints a table; the first turn warms up and gives the errors."""
    expected = None
    errors, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        milliseconds, logits = run.call(values)
        print(f"{name}: {milliseconds:.0f} ms in a first run", file=sys.stderr)
        expected = logits if expected is None else expected
        errors[name] = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    print(f"load before the turns: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    for turn in range(NUM_TURNS):
        for name, run in list(runs.items())[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(run.call(values)[0])
    baseline = times["torch float32"]
    print("| | MB | ms per clip | times torch float32 (least-greatest) | rms error |")
    print("| --- | --: | --: | --: | --: |")
    for name, (megabytes, _) in runs.items():
        ratios = [base / own for base, own in zip(baseline, times[name])]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        error = f"{100 * errors[name]:.2g} %" if errors[name] else "0"
        print(f"| {name} | {megabytes:.0f} | {median(times[name]):.0f} | {spread} | {error} |")
    versions = [f"torch {torch.__version__}"]
    for library in ("onnxruntime", "openvino"):
        if importlib.util.find_spec(library):
            versions.append(f"{library} {importlib.import_module(library).__version__}")
    print(f"\n{', '.join(versions)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
