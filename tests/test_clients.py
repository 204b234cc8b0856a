"""The exported files in other people's runtimes: OpenVINO, transformers.js, Chromium.

They must be installed: `npm install` in tests/clients, `pip install openvino`, and a Chromium.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands import main
from tests.conftest import ROOT

pytestmark = pytest.mark.clients
CLIENTS = Path(os.environ.get("CLIENTS_FOLDER", ROOT / "tests" / "clients"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ORIGIN = "http://127.0.0.1:"


def noise(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def run_node(script, *arguments, given=""):
    if shutil.which("node") is None or not (CLIENTS / "node_modules").is_dir():
        pytest.skip("needs node, and `npm install` in tests/clients")
    # node looks for modules beside the script.
    if not (CLIENTS / script).exists():
        shutil.copy(ROOT / "tests" / "clients" / script, CLIENTS)
    run = subprocess.run(
        ["node", script, *map(str, arguments)],
        cwd=CLIENTS,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("fp32", 1e-3), ("fp16", 1e-2), ("q8", None)], ids=["fp32", "fp16", "q8"]
)
def test_transformers_js(exported_folder, dtype, limit):
    """transformers.js with its own extractor, which pads to max_length, against our model."""
    clips = [noise(length, length) for length in (400, 8000, 15760)]
    given = json.dumps([clip.tolist() for clip in clips])
    results = run_node("node_pipeline.mjs", exported_folder, dtype, given=given)
    extractor = ASTFeatureExtractor.from_pretrained(exported_folder)
    model = ASTForAudioClassification.from_pretrained(exported_folder).eval()
    for clip, result in zip(clips, results):
        values = extractor(
            clip, sampling_rate=16000, padding="max_length", return_tensors="pt"
        ).input_values
        with torch.no_grad():
            expected = model(values).logits[0].numpy()
        assert result["shape"] == [1, 97, 40]
        np.testing.assert_allclose(result["features"], values.flatten(), atol=1e-3)
        off = np.abs(np.array(result["logits"]) - expected).max()
        assert off < (0.2 * expected.std() if limit is None else limit)
        if limit is not None:
            names = model.config.id2label
            order = [names[index] for index in np.argsort(-expected)[:3]]
            assert [entry["label"] for entry in result["labels"]] == order


@pytest.mark.parametrize(
    "name", ["model", "model_masked", "model_quantized", "waveform", "waveform_quantized"]
)
@pytest.mark.parametrize(("clips", "seconds"), [(1, 0.025), (1, 0.9), (3, 0.5)])
def test_openvino(exported_folder, name, clips, seconds):
    openvino = pytest.importorskip("openvino", reason="the runtime to test")
    import onnxruntime

    path = exported_folder / "onnx" / f"{name}.onnx"
    num_samples, num_frames = round(16000 * seconds), max(16, round(100 * seconds))
    inputs = {"input_values": torch.randn(clips, num_frames, 40).numpy()}
    if name == "model_masked":
        inputs["attention_mask"] = np.ones((clips, num_frames), np.int64)
        inputs["attention_mask"][1:, 20:] = 0
    if name.startswith("waveform"):
        waveform = np.stack([noise(num_samples, seed) for seed in range(clips)])
        inputs = {"waveform": waveform, "num_samples": np.full(clips, num_samples)}
    (expected,) = onnxruntime.InferenceSession(path).run(["logits"], inputs)
    # On a CPU with bfloat16 OpenVINO would use it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    limit = 0.05 * expected.std() if "quantized" in name else 1e-4
    np.testing.assert_allclose(compiled(inputs)["logits"], expected, atol=limit)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def page(exported_folder, tmp_path_factory):
    """The page of the tiny model."""
    runtime = CLIENTS / "node_modules" / "onnxruntime-web"
    if not runtime.is_dir():
        pytest.skip("needs `npm install` in tests/clients")
    folder = tmp_path_factory.mktemp("page") / "page"
    assert main(["page", str(exported_folder), str(folder), "--runtime", str(runtime)]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "limit"), [("waveform", 1e-4), ("waveform_quantized", 0.01)], ids=["float", "int8"]
)
def test_the_page_in_chromium(page, exported_folder, tmp_path, name, limit):
    """A clip is dropped on the page, then a long one, a broken one and one that is too short.

    With the float32 file instead of the 8-bit one, the scores are those of onnxruntime. In 8 bits
    they may differ by a rounding step.
    """
    from modeling_ast.exporting import WaveformModel

    if CHROMIUM is None:
        pytest.skip("needs chromium")
    served = tmp_path / "page"
    shutil.copytree(page, served)
    shutil.copy(exported_folder / "onnx" / f"{name}.onnx", served / "waveform_quantized.onnx")
    files = [tmp_path / name for name in ("clip.wav", "long.wav", "broken.mp3", "short.wav")]
    for path, num_samples in ((files[0], 9000), (files[1], 50001), (files[3], 399)):
        soundfile.write(path, noise(num_samples), 16000, subtype="PCM_16")
    files[2].write_bytes(np.random.default_rng(0).bytes(5000))
    handler = functools.partial(Quiet, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"{ORIGIN}{server.server_port}/"
        result = run_node("browser_page.mjs", CHROMIUM, url, tmp_path, *files)
        server.shutdown()
    clip, long, broken, short = result["shown"]
    own = (url, "data:", "blob:")
    assert all(request.startswith(own) for request in result["requests"]) and not result["logged"]
    model = WaveformModel(exported_folder / "onnx" / f"{name}.onnx")
    for shown, path in ((clip, files[0]), (long, files[1])):
        assert shown["error"] is None and shown["status"].startswith("Done")
        samples, _ = soundfile.read(path, dtype="float32")
        expected = dict(zip(model.settings.labels, model.scores(samples)))
        assert len(shown["scores"]) == 5
        for row in shown["scores"]:
            assert abs(row["score"] - expected[row["cells"][0]]) < limit
    assert not clip["timeline"] and long["timeline"]
    # The parts of 50001 samples, none longer than 15760, in seconds.
    times = {"0.00 s", "0.78 s", "1.56 s", "2.34 s", "3.13 s"}
    assert {cell for row in long["events"] for cell in row["cells"][:2]} <= times
    assert broken["error"].startswith("broken.mp3 cannot be decoded")
    assert short["error"] == (
        "short.wav is too short: at least 25 ms are needed. Choose a longer recording."
    )
    for shown in result["shown"]:
        assert shown["overflow400"] == 0 and shown["overflow1280"] == 0


@pytest.mark.parametrize("flag", ["--ours", "--plain"])
def test_transformers_example_script_trains_and_evaluates_a_folder_of_ours(
    tiny_folder, tmp_path, capsys, flag
):
    """The command `evaluate` loads the folder that it writes, and finds the same accuracy."""
    pytest.importorskip("torchcodec", reason="datasets decodes audio with torchcodec")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, hz in (("low", 300), ("high", 3000)):
            folder = tmp_path / "sounds" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                tone = np.sin(2 * np.pi * hz * rng.uniform(0.9, 1.1) * np.arange(16000) / 16000)
                soundfile.write(folder / f"{index}.wav", 0.3 * tone, 16000)
    script = ROOT / "tests" / "clients" / "train_with_trainer.py"
    given = [tiny_folder, tmp_path / "sounds", tmp_path / "out", flag]
    run = subprocess.run(
        [sys.executable, script, *map(str, given)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["model"].startswith("modeling_ast" if flag == "--ours" else "transformers")
    assert result["accuracy"] >= 0.75  # guessing gives 0.5
    command = ["evaluate", str(tmp_path / "out"), "--data", str(tmp_path / "sounds"), "--json"]
    assert main(command) == 0
    assert f'"accuracy": {result["accuracy"]}' in capsys.readouterr().out
