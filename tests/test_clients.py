"""The exported files in other people's runtimes: OpenVINO, transformers.js, Chromium.

They come from the registries: `npm install` in tests/clients, `pip install openvino`, a chromium.
Some need a trained model: they run examples/quickstart.py, or take what it left in the folder that
QUICKSTART_FOLDER names.
"""

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
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
# Seconds: only a script that hangs takes so long, on a busy machine too.
PATIENCE = 2400


def noise(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def run_node(script, *arguments, given=""):
    if shutil.which("node") is None or not (CLIENTS / "node_modules").is_dir():
        pytest.skip("needs node, and `npm install` in tests/clients")
    # A module is looked for beside the script.
    if CLIENTS != ROOT / "tests" / "clients":
        for module in (ROOT / "tests" / "clients").glob("*.mjs"):
            shutil.copy(module, CLIENTS)
    run = subprocess.run(
        ["node", script, *map(str, arguments)],
        cwd=CLIENTS,
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
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


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The folder of examples/quickstart.py: a small trained model and its data."""
    if "QUICKSTART_FOLDER" in os.environ:
        return Path(os.environ["QUICKSTART_FOLDER"])
    folder = tmp_path_factory.mktemp("quickstart") / "quickstart"
    sizes = ("--num-train", "640", "--num-test", "400", "--epochs", "12")  # half of its time
    script = [sys.executable, ROOT / "examples" / "quickstart.py", "--output_dir", folder, *sizes]
    subprocess.run(list(map(str, script)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def trained_folder(quickstart, tmp_path_factory):
    """The quickstart's model, exported."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from modeling_ast.exporting import export_model

    folder = tmp_path_factory.mktemp("trained") / "model"
    export_model(quickstart / "model", folder)
    return folder


@pytest.fixture(scope="session")
def held_out(quickstart):
    """Samples and names of the labels of the held-out clips."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads the quickstart's data")
    clips = []
    for shard in sorted((quickstart / "data" / "data" / "eval").glob("*.parquet")):
        for row in parquet.read_table(shard).to_pylist():
            samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            clips.append((samples, row["human_labels"]))
    return clips


def test_first_labels_of_transformers_js_in_8_bits(trained_folder, held_out, tmp_path):
    """Against the model in torch, on all held-out clips of the quickstart."""
    from modeling_ast import AudioTagger

    waveforms = np.stack([samples for samples, _ in held_out])
    waveforms.tofile(tmp_path / "clips.f32")
    given = (trained_folder, "q8", tmp_path / "clips.f32", waveforms.shape[1])
    logits = np.array(run_node("node_logits.mjs", *given))
    tagger = AudioTagger.from_pretrained(trained_folder, "cpu", num_workers=0)
    expected = tagger.logits([torch.from_numpy(samples) for samples in waveforms]).numpy()
    share = np.mean(logits.argmax(1) == expected.argmax(1))
    error = np.sqrt(np.mean((logits - expected) ** 2)) / expected.std()
    print(
        f"q8 in transformers.js: {share:.2%} of {len(held_out)} clips have torch's first label; "
        f"the logits are off by {error:.2%} of their deviation (root mean square)"
    )
    assert len(held_out) >= 28 and share >= 0.98 and error <= 0.05


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """The address of a folder."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{ORIGIN}{server.server_port}/"
        server.shutdown()


def build(model, folder):
    """The page of a model."""
    runtime = CLIENTS / "node_modules" / "onnxruntime-web"
    if not runtime.is_dir():
        pytest.skip("needs `npm install` in tests/clients")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    assert main(["page", str(model), str(folder), "--runtime", str(runtime)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(exported_folder, tmp_path_factory):
    """The page of the tiny model."""
    return build(exported_folder, tmp_path_factory.mktemp("page") / "page")


@pytest.fixture(scope="module")
def trained_page(trained_folder, tmp_path_factory):
    """The page of the quickstart's model."""
    return build(trained_folder, tmp_path_factory.mktemp("page") / "page")


# How far a score may be off in another runtime. In an 8-bit file the last digit of a float decides
# where a value in the middle between two steps is rounded to, and the last digits of two runtimes
# differ; see test_many_clips_in_web_assembly.
SCORE_LIMITS = {"waveform": 1e-4, "waveform_quantized": 0.02}


def assert_same_scores(shown, path, waveform):
    """What the page shows, against a file in onnxruntime."""
    from modeling_ast.exporting import WaveformModel

    model = WaveformModel(path)
    expected = dict(zip(model.settings.labels, model.scores(waveform)))
    off = max(abs(row["score"] - expected[row["cells"][0]]) for row in shown["scores"])
    print(f"the page's scores are off by {off:.1e} ({path.stem})")
    assert len(shown["scores"]) == min(10, len(expected)) and off <= SCORE_LIMITS[path.stem]


@pytest.mark.parametrize("name", SCORE_LIMITS)
def test_many_clips_in_web_assembly(trained_folder, held_out, tmp_path, name):
    """float32: as onnxruntime. 8 bits: no further off than onnxruntime is from itself where the
    samples move by their last digit, and the same first labels."""
    from modeling_ast.exporting import WaveformModel

    path = trained_folder / "onnx" / f"{name}.onnx"
    waveforms = np.stack([samples for samples, _ in held_out])
    waveforms.tofile(tmp_path / "clips.f32")
    found = np.array(run_node("node_wasm.mjs", path, tmp_path / "clips.f32", waveforms.shape[1]))
    model = WaveformModel(path)
    expected = np.stack([model.scores(clip) for clip in waveforms])
    off = np.abs(found - expected).max(1)
    print(
        f"{name} in WebAssembly: scores off by {np.median(off):.1e} (median), {off.max():.1e} at "
        f"most, {np.mean(off > 1e-4):.1%} of {len(off)} clips by more than 1e-4"
    )
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    if name == "waveform":
        assert off.max() <= SCORE_LIMITS[name]
        return
    up = np.random.default_rng(0).random(waveforms.shape) < 0.5
    moved = np.where(up, np.nextafter(waveforms, np.float32(2)), waveforms)
    own = np.abs(np.stack([model.scores(clip) for clip in moved]) - expected).max(1)
    print(
        f"onnxruntime, last digit moved: {np.median(own):.1e} (median), {own.max():.1e} at most, "
        f"{np.mean(own > 1e-4):.1%} by more than 1e-4"
    )
    assert np.sqrt(np.mean(off**2)) <= np.sqrt(np.mean(own**2))
    assert off.max() <= SCORE_LIMITS[name]


@pytest.mark.parametrize("name", ["waveform", "waveform_quantized"], ids=["float", "int8"])
def test_the_page_in_chromium(page, exported_folder, tmp_path, name):
    """A clip that is dropped, a long one, one that is broken, one that is too short; with the
    float32 file in place of the 8-bit one, too."""
    folder = tmp_path / "page"
    shutil.copytree(page, folder)
    shutil.copy(exported_folder / "onnx" / f"{name}.onnx", folder / "waveform_quantized.onnx")
    files = [tmp_path / name for name in ("clip.wav", "long.wav", "broken.mp3", "short.wav")]
    for path, num_samples in ((files[0], 9000), (files[1], 50001), (files[3], 399)):
        soundfile.write(path, noise(num_samples), 16000, subtype="PCM_16")
    files[2].write_bytes(np.random.default_rng(0).bytes(5000))
    with served(folder) as url:
        result = run_node("browser_page.mjs", CHROMIUM, url, tmp_path, *files)
    clip, long, broken, short = result["shown"]
    own = (url, "data:", "blob:")
    assert all(request.startswith(own) for request in result["requests"]) and not result["logged"]
    for shown, path in ((clip, files[0]), (long, files[1])):
        assert shown["error"] is None and shown["status"].startswith("Done")
        samples, _ = soundfile.read(path, dtype="float32")
        assert_same_scores(shown, exported_folder / "onnx" / f"{name}.onnx", samples)
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


@pytest.mark.parametrize("content", ["{", None], ids=["damaged", "missing"])
def test_a_page_that_is_not_complete_says_so(page, tmp_path, content):
    folder = tmp_path / "page"
    shutil.copytree(page, folder)
    (folder / "settings.json").unlink()
    if content is not None:
        (folder / "settings.json").write_text(content)
    with served(folder) as url:
        shown = run_node("browser_page.mjs", CHROMIUM, url, tmp_path)["atFirst"]
    assert shown["status"] == "The model cannot be loaded."
    assert shown["error"].startswith("The page is not complete (settings.json: ")


@pytest.mark.parametrize("most", [64, 127], ids=["7 bits", "8 bits"])
def test_integer_products_of_the_browser_are_exact(tmp_path, most):
    """What the page's scores are off by is no overflow: WebAssembly has instructions that add two
    products of 8-bit integers in 16 bits."""
    onnx = pytest.importorskip("onnx", reason="makes the graph")
    num_columns = 768
    weights = np.random.default_rng(0).integers(-most, most + 1, (num_columns, 8), np.int8)
    weights[:, 0], weights[:, 1] = most, -most
    graph = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]>
        products (uint8[256, {num_columns}] x, int8[{num_columns}, 8] weights) => (int32[256, 8] y)
        {{ y = MatMulInteger(x, weights) }}"""
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    del graph.graph.input[1]
    onnx.save(graph, tmp_path / "products.onnx")
    given = np.arange(256)[:, None].repeat(num_columns, 1)
    found = run_node("node_integers.mjs", tmp_path / "products.onnx", num_columns)
    assert np.array_equal(np.reshape(found, (256, 8)), given @ weights.astype(np.int64))


def clip_with(held_out, label):
    """A held-out clip that has this label alone."""
    return next(samples for samples, labels in held_out if labels == [label])


@pytest.mark.parametrize("label", ["Siren", "White noise", "Dial tone"])
def test_a_file_on_the_page(trained_page, trained_folder, held_out, tmp_path, label):
    """The label is right, and the scores are those of the same file in onnxruntime."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip_with(held_out, label), 16000, subtype="PCM_16")
    with served(trained_page) as url:
        (shown,) = run_node("browser_page.mjs", CHROMIUM, url, tmp_path, path)["shown"]
    assert shown["scores"][0]["cells"][0] == label
    samples, _ = soundfile.read(path, dtype="float32")
    assert_same_scores(shown, trained_folder / "onnx" / "waveform_quantized.onnx", samples)


# Steady sounds: how long the recording becomes depends on the machine, and of a siren the model may
# hear only the rise.
@pytest.mark.parametrize("label", ["White noise", "Dial tone"])
def test_the_microphone(trained_page, held_out, tmp_path, label):
    """It plays a clip again and again."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip_with(held_out, label), 16000, subtype="PCM_16")
    with served(trained_page) as url:
        result = run_node("browser_microphone.mjs", CHROMIUM, url, "plays", path)
    recorded = result["first"]
    print({row["cells"][0]: row["cells"][1] for row in recorded["scores"][:3]})
    assert recorded["error"] is None and recorded["status"].startswith("Done: Recording, ")
    # Of the recording, whose length and beginning differ from run to run, only this is certain.
    heard = {row["cells"][0]: row["score"] for row in recorded["scores"]}
    assert heard[label] > 0.5
    assert result["button"] == "Record" and not result["logged"]
    assert result["file"]["scores"][0]["cells"][0] == label
    assert all(entry.startswith((url, "data:", "blob:")) for entry in result["requests"])


@pytest.mark.parametrize(
    ("microphone", "said"),
    [
        ("refused", "The microphone is not allowed"),
        ("missing", "No microphone is connected"),
        ("insecure", "The microphone needs a page from https:// or localhost"),
    ],
)
def test_no_microphone(page, tmp_path, microphone, said):
    """The page says so, and takes a file."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(9000), 16000, subtype="PCM_16")
    with served(page) as url:
        result = run_node("browser_microphone.mjs", CHROMIUM, url, microphone, path)
    assert result["first"]["error"].startswith(said)
    assert result["first"]["error"].endswith("A file can be chosen all the same.")
    assert result["button"] == "Record"
    assert result["file"]["error"] is None and result["file"]["status"].startswith("Done: clip.wav")


def test_the_page_by_keyboard_and_by_screen_reader(page, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(50001), 16000, subtype="PCM_16")
    with served(page) as url:
        result = run_node("browser_keyboard.mjs", CHROMIUM, url, tmp_path, path)
    assert [place["id"] for place in result["file"]] == ["model", "file"]
    assert [place["id"] for place in result["record"]] == ["model", "file", "record"]
    # The player has several controls inside.
    way = list(dict.fromkeys(place["id"] for place in result["results"]))
    assert way == ["record", "result", "player", "threshold"]
    for place in (*result["file"], *result["record"], *result["results"]):
        if place["id"] != "player":
            assert place["outline"] >= 2 and place["colour"] == "rgb(0, 0, 0)", place
    assert result["chosen"]["status"] == "Done: long.wav, 3.13 s."
    assert result["thresholds"] == ["0.50", "0.45"]
    assert result["recording"] == "Stop"
    assert result["recorded"]["status"].startswith("Done: Recording, ")
    assert result["afterwards"]["id"] == "record" and not result["logged"]

    tree = {(node["role"], node["name"]) for node in result["tree"]}
    assert tree >= {
        ("heading", "Which sounds are in this recording?"),
        ("heading", "long.wav"),
        ("heading", "Timeline"),
        ("DisclosureTriangle", "Model: out. It knows 5 sounds."),
        ("button", "Choose a file"),
        ("button", "Record"),
        ("region", "long.wav"),
        ("Audio", "The recording"),
        ("image", "Spectrogram of long.wav, 3.13 s, up to 8 kHz"),
        ("slider", "Show sounds with a score of at least"),
    }
    scores, events = "Scores of the whole recording", "Sounds and their times"
    assert {(name, None) for name in (scores, events)} <= {
        (node["name"], None) for node in result["tree"] if node["role"] == "table"
    }

    def names(role, table):
        found = [node for node in result["tree"] if node["role"] == role]
        return [node["name"] for node in found if node["table"] == table]

    assert names("columnheader", scores) == ["Sound", "Score"]
    assert names("columnheader", events) == ["From", "To", "Sound", "Score"]
    shown = result["chosen"]["scores"]
    assert names("rowheader", scores) == [row["cells"][0] for row in shown]
    assert names("cell", scores) == [row["cells"][1] for row in shown]
    assert any(role == "status" for role, _ in tree)


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
