"""Every command of the README runs, in the README's order, on tiny made-up models and data.

The names of the Hub in it are served by a stand-in on loopback. One process runs all commands, each
as `python` would run it: importing torch and transformers a dozen times would take minutes.
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
from tests.conftest import ROOT, randomise
from tests.hub_stand_in import HubStandIn

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
INSTALLS = "python3 -m venv"
# What makes a command short enough for a test; everything else is as printed.
SHORTER = {
    "embedded_data.py": "--num-train 32 --num-test 28 --seconds 1",
    "finetune": "--max_steps 2 --average_from 1 --per_device_eval_batch_size 14",
}
RUNNER = """
import json, os, runpy, sys
for kind, text in json.load(open("commands.json")):
    try:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
        else:
            sys.argv, sys.path[0] = text, os.path.dirname(text[0])
            if text[0] == "modeling-ast":
                runpy.run_module("modeling_ast", run_name="__main__")
            else:
                runpy.run_path(text[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (text, end.code)
    print("RAN", json.dumps(text), flush=True)
"""


def commands():
    """(kind, what to run): Python blocks as text, lines of shell as argument lists."""
    for kind, text in BLOCKS:
        if kind == "python":
            yield kind, text
            continue
        for line in text.splitlines():
            if line.startswith(INSTALLS):
                continue
            words = shlex.split(line)
            assert words[0] in ("python", "modeling-ast"), line
            name = words[1].rpartition("/")[2]
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
    return root


def test_every_command_runs(hub_folder, tmp_path):
    for folder in ("examples", "conversion"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "dog.wav", 0.1 * rng.standard_normal((22050, 2)), 44100)
    soundfile.write(tmp_path / "siren.ogg", 0.1 * rng.standard_normal(96000), 48000)
    shutil.copy(hub_folder / "datasets" / "agkphysics" / "AudioSet" / CLASS_LIST, tmp_path)
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    torch.save({"model": deit.state_dict()}, tmp_path / "deit.pth")
    torch.save(authors_weights(), tmp_path / "audioset_10_10_0.4593.pth")
    todo = list(commands())
    (tmp_path / "commands.json").write_text(json.dumps(todo))
    with HubStandIn(hub_folder) as hub:
        environment = {**os.environ, **hub.environment(home=tmp_path / "home")}
        run = subprocess.run(
            [sys.executable, "-c", RUNNER],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    ran = [json.loads(line[4:]) for line in run.stdout.splitlines() if line.startswith("RAN ")]
    assert ran == [text for _, text in todo] and len(ran) >= 9
    assert (tmp_path / "sounds.png").stat().st_size > 10_000
    pushed = hub_folder / "models" / "me" / "my-sounds"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in pushed.iterdir()
    }
    weights = transformers.ASTForAudioClassification.from_pretrained(pushed).state_dict()
    trained = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "runs" / "embedded")
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.state_dict().items())


def test_the_setup_lines_name_extras_that_exist():
    setup = (ROOT / "setup.cfg").read_text()
    lines = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith(INSTALLS)]
    assert len(lines) == 2
    for line in lines:
        extras = re.search(r"\.\[(.*?)\]", line).group(1).split(",")
        assert all(f"\n{extra} =\n" in setup for extra in extras)
        assert (ROOT / line.split()[-1]).exists() or line.endswith("-m pytest -n auto")


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
