"""Every command and snippet of README and docs runs, in order, on tiny made-up models and data.

The names of the Hub in them are served by a stand-in on loopback. One process runs all, each as
`python` would run it, each document in a folder of its own: importing torch and transformers dozens
of times would take minutes.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import timm
import torch
import transformers
from safetensors.torch import save_file

from examples.embedded_data import CLASS_LIST, write_data_set
from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.labels import read_label_file
from tests import real_sounds, spoken_words
from tests.conftest import ROOT, randomise
from tests.hub_stand_in import HubStandIn

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Compiles a network with AOTInductor and starts Ray, traces graphs for ONNX, trains and searches,
# or downloads recorded sounds and trains dozens of models for two steps each: minutes.
SLOW_DOCUMENTS = {
    *("cheap_tuning.md", "other_libraries.md", "export.md", "many_machines.md"),
    "what_we_measured.md",
}
NEEDED = {
    "cheap_tuning.md": ("peft", "optuna"),
    "other_libraries.md": ("peft", "ray"),
    "export.md": ("onnx", "onnxscript", "onnxruntime"),
    "many_machines.md": ("ray", "pandas", "pyarrow"),
    "what_we_measured.md": ("peft",),
}
INSTALLS = ("python3 -m venv", "pip install")
# Flags that make a command short enough for a test; everything else is as printed.
SHORTER = {
    "embedded_data.py": "--num-train 32 --num-test 28 --seconds 1",
    "finetune": "--max_steps 2 --average_from 1 --per_device_eval_batch_size 14",
    "calibrate": "--min-positives 1",
    "finetune my_folder": "--num_train_epochs 1 --average_from 1",
    "tests.benchmarks.claims": "--quick --seeds 2",
    "tests.benchmarks.real_claims": "--quick",
}
RUNNER = """
import json, os, runpy, sys
for folder, kind, text in json.load(open("commands.json")):
    os.chdir(folder)
    try:
        if kind == "python":
            exec(compile(text, "page", "exec"), {"__name__": "readme"})
        else:
            sys.argv, sys.path[0] = text, os.path.dirname(text[0])
            if text[0] == "modeling-ast":
                runpy.run_module("modeling_ast", run_name="__main__")
            elif text[0] == "-m":
                sys.argv, sys.path[0] = text[1:], folder
                runpy.run_module(text[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(text[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (text, end.code)
    print("RAN", json.dumps(text), flush=True)
"""


def blocks(document):
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document):
    """(kind, command): Python blocks as text, lines of shell as lists of arguments."""
    for kind, text in blocks(document):
        if kind == "python":
            yield kind, text
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith(INSTALLS):
                continue
            words = shlex.split(line)
            assert words[0] in ("python", "modeling-ast"), line
            name = words[2] if words[1] == "-m" else words[1].rpartition("/")[2]
            name += " my_folder" if name == "finetune" and "my_folder" in words else ""
            words = words[1:] if words[0] == "python" else words
            yield kind, words + shlex.split(SHORTER.get(name, ""))


def authors_weights():
    """An AST of one layer in the authors' layout: DataParallel around timm's distilled DeiT."""
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    width = deit.embed_dim
    weights = {f"module.v.{name}": tensor for name, tensor in deit.state_dict().items()}
    weights["module.v.patch_embed.proj.weight"] = torch.randn(width, 1, 16, 16)
    weights["module.v.pos_embed"] = torch.randn(1, 2 + 12 * 101, width)
    weights["module.mlp_head.0.weight"] = torch.ones(width)
    weights["module.mlp_head.0.bias"] = torch.zeros(width)
    weights["module.mlp_head.1.weight"] = torch.randn(527, width)
    weights["module.mlp_head.1.bias"] = torch.zeros(527)
    return weights


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """Tiny models and data under the names that the README uses."""
    root = tmp_path_factory.mktemp("hub")
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    names = [f"Sound {index}" for index in range(527)]
    config = transformers.ASTConfig(**sizes, id2label=dict(enumerate(names)))
    folder = root / "models" / "MIT" / "ast-finetuned-audioset-10-10-0.4593"
    randomise(transformers.ASTForAudioClassification(config)).save_pretrained(folder)
    transformers.ASTFeatureExtractor().save_pretrained(folder)
    deit = transformers.DeiTConfig(**sizes, image_size=384, patch_size=16)
    folder = root / "models" / "facebook" / "deit-base-distilled-patch16-384"
    randomise(transformers.DeiTForImageClassificationWithTeacher(deit)).save_pretrained(folder)
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    folder = root / "models" / "timm" / "vit_tiny_patch16_224"
    folder.mkdir(parents=True)
    save_file(vit.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    data = root / "datasets" / "agkphysics" / "AudioSet"
    write_data_set(data, num_train=32, num_test=28, seconds=1.0, progress=False)
    labels = [label.name for label in read_label_file(data / CLASS_LIST)]
    config = ASTConfig(**sizes, id2label=dict(enumerate(labels)), max_length=128)
    config.problem_type = "multi_label_classification"
    folder = root / "quickstart" / "model"
    randomise(ASTForAudioClassification(config)).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    shutil.copytree(data, root / "quickstart" / "data")
    return root


def furnish(folder, hub_folder):
    """The files that each page assumes: a clone, clips, weights, a model, one's own sounds."""
    folder.mkdir()
    for name in ("examples", "conversion", "tests"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    soundfile.write(folder / "dog.wav", 0.1 * rng.standard_normal((22050, 2)), 44100)
    soundfile.write(folder / "siren.ogg", 0.1 * rng.standard_normal(96000), 48000)
    shutil.copy(hub_folder / "datasets" / "agkphysics" / "AudioSet" / CLASS_LIST, folder)
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    torch.save({"model": deit.state_dict()}, folder / "deit.pth")
    torch.save(authors_weights(), folder / "audioset_10_10_0.4593.pth")
    shutil.copytree(hub_folder / "quickstart", folder / "quickstart")
    shutil.copy(folder / "dog.wav", folder / "quickstart" / "clip.wav")
    shutil.copy(folder / "dog.wav", folder / "street.wav")
    (folder / "recordings").mkdir()
    shutil.copy(folder / "siren.ogg", folder / "recordings")
    for label in ("bark", "siren"):
        (folder / "my_sounds" / label).mkdir(parents=True)
        for name in "abcdef":
            sound = 0.1 * rng.standard_normal(16000)
            soundfile.write(folder / "my_sounds" / label / f"{name}.wav", sound, 16000)


def run_documents(documents, hub_folder, tmp_path):
    """Runs all commands of the documents; the folder of each is named after it."""
    todo = []
    for document in documents:
        folder = tmp_path / document.stem
        furnish(folder, hub_folder)
        found = list(commands(document))
        if not any("my-ast" in text and "convert-deit" in text for _, text in found):
            shutil.copytree(folder / "quickstart" / "model", folder / "my-ast")
        todo += [(str(folder), kind, text) for kind, text in found]
    (tmp_path / "commands.json").write_text(json.dumps(todo))
    with HubStandIn(hub_folder) as hub:
        run = subprocess.run(
            [sys.executable, "-c", RUNNER],
            cwd=tmp_path,
            env={**os.environ, **hub.environment(home=tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    ran = [json.loads(line[4:]) for line in run.stdout.splitlines() if line.startswith("RAN ")]
    assert ran == [text for _, _, text in todo]
    return ran


def test_every_command_runs(hub_folder, tmp_path):
    documents = [path for path in DOCUMENTS if path.name not in SLOW_DOCUMENTS]
    assert len(run_documents(documents, hub_folder, tmp_path)) >= 25
    assert (tmp_path / "tagging" / "sounds.png").stat().st_size > 10_000
    pushed = hub_folder / "models" / "me" / "my-sounds"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in pushed.iterdir()
    }
    weights = transformers.ASTForAudioClassification.from_pretrained(pushed).state_dict()
    trained = transformers.ASTForAudioClassification.from_pretrained(
        tmp_path / "fine_tuning" / "runs" / "embedded"
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.state_dict().items())


def skip_without_real_sounds():
    if shutil.which(spoken_words.PROGRAM) is None:
        pytest.skip(spoken_words.INSTALL)
    for package in real_sounds.PACKAGES:
        try:
            real_sounds.unpacked(package)
        except OSError as error:
            pytest.skip(f"the recorded sounds cannot be had here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW_DOCUMENTS))
def test_every_long_command_runs(name, hub_folder, tmp_path):
    for library in NEEDED[name]:
        pytest.importorskip(library, reason=f"{name} shows {library}, which is not installed")
    if name == "what_we_measured.md":
        skip_without_real_sounds()
    assert run_documents([ROOT / "docs" / name], hub_folder, tmp_path)


def test_the_setup_lines_name_extras_that_exist():
    setup = (ROOT / "setup.cfg").read_text()
    lines = [
        line
        for _, text in blocks(ROOT / "README.md")
        for line in text.splitlines()
        if line.startswith(INSTALLS[0])
    ]
    assert len(lines) == 2
    for line in lines:
        extras = re.search(r"\.\[(.*?)\]", line).group(1).split(",")
        assert all(f"\n{extra} =\n" in setup for extra in extras)
        assert (ROOT / line.split()[-1]).exists() or line.endswith("-m pytest -n auto")


def test_links_lead_somewhere():
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(
            r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")
        ):
            assert "://" in target or (document.parent / target).exists(), (document, target)


def test_the_map_of_the_house_is_true():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    folder, found = ROOT, set()
    for name in re.findall(r"`([\w.]+\.py)`|\*\*([\w/]+/)\*\*", "\n".join(rows)):
        file, room = name
        folder = ROOT / room if room else folder
        found |= {folder / file} if file else set()
        assert folder.is_dir() and (folder / file).exists(), name
    modules = set((ROOT / "modeling_ast").rglob("*.py"))
    assert {path for path in modules if path.name != "__init__.py"} <= found
