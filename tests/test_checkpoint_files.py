"""checkpoint_files.py: all places and formats of checkpoints, and all ways to be broken."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import DeiTModel

from modeling_ast.conversion.checkpoint_files import read_source, read_weights
from modeling_ast.conversion.key_maps import ConversionError
from tests.hub_stand_in import HubStandIn
from tests.made_up_checkpoints import make_transformers

WEIGHTS = {"cls_token": torch.arange(400.0), "norm.weight": torch.ones(300)}


def same(weights):
    return weights.keys() == WEIGHTS.keys() and all(
        torch.equal(weights[name], tensor) for name, tensor in WEIGHTS.items()
    )


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
def test_single_files(tmp_path, suffix):
    path = tmp_path / f"source{suffix}"
    save_file(WEIGHTS, path) if suffix == ".safetensors" else torch.save(WEIGHTS, path)
    source = read_source(str(path))
    assert same(source.weights) and source.config == {} and source.repo is None


def shard(folder, suffix):
    """The two tensors in two files, as transformers splits large models."""
    save = save_file if suffix == ".safetensors" else torch.save
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    files = {name: f"{stem}-{number}-of-2{suffix}" for number, name in enumerate(WEIGHTS, 1)}
    for name, file in files.items():
        save({name: WEIGHTS[name]}, folder / file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "bin shards"])
def test_directories(tmp_path, form):
    (tmp_path / "config.json").write_text('{"model_type": "deit"}')
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A DeiT\n")
    if form == "safetensors":
        save_file(WEIGHTS, tmp_path / "model.safetensors")
        # An old file in the same folder is not read.
        torch.save({}, tmp_path / "pytorch_model.bin")
    elif form == "bin":
        torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    else:
        shard(tmp_path, ".safetensors" if form == "shards" else ".bin")
    source = read_source(str(tmp_path))
    assert same(source.weights)
    assert source.config == {"model_type": "deit"} and source.card == {"license": "mit"}


def test_a_real_directory_in_shards(tmp_path):
    model = make_transformers(DeiTModel)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(read_source(str(tmp_path)).weights) == len(model.state_dict())


@pytest.mark.parametrize("card", ["no head", "---\nlicense: [\n---\n", "---\n- a\n---\n"])
def test_a_broken_card_is_no_obstacle(tmp_path, card):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text(card)
    assert read_source(str(tmp_path)).card == {}


def refusal(path):
    with pytest.raises(ConversionError) as error:
        read_source(str(path))
    return str(error.value)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated_files(tmp_path, form, share):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refusal(path)
    assert str(path) in message and "is truncated or no" in message and "get it again" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_damaged_files_are_read_or_refused_but_never_a_traceback(tmp_path, form):
    good, path = tmp_path / "good", tmp_path / "x.pth"
    if form == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(WEIGHTS, good)
    else:
        torch.save(WEIGHTS, good, _use_new_zipfile_serialization=form == "zip")
    dice, refused = random.Random(0), 0
    for _ in range(150):
        content = bytearray(good.read_bytes())
        for _ in range(dice.choice((1, 3, 30))):
            content[dice.randrange(300)] = dice.randrange(256)
        path.write_bytes(content)
        try:
            read_weights(path)
        except ConversionError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html>\n<html>", bytes(range(256))])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_of_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "is truncated or no" in refusal(tmp_path / name)


class Malicious:
    """Its pickle creates a file when it is read without weights_only."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path, zip_format):
    trap, path = tmp_path / "trap", tmp_path / "x.pth"
    bad = {"model": WEIGHTS, "extra": Malicious(trap)}
    torch.save(bad, path, _use_new_zipfile_serialization=zip_format)
    message = refusal(path)
    assert "was refused, because it would run posix.mkdir, which weights do not need" in message
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the trap would not have shown anything"


def test_a_pickle_of_harmless_objects_is_refused_too(tmp_path):
    torch.save({"model": WEIGHTS, "args": Path("x")}, tmp_path / "x.pth")
    assert "it would run pathlib" in refusal(tmp_path / "x.pth")


def test_files_that_are_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    message = refusal(tmp_path / "list.pth")
    assert "list.pth is not a checkpoint: it holds a list but must" in message
    (tmp_path / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid ")
    assert "is a Git LFS pointer, not the weights" in refusal(tmp_path / "x.safetensors")
    (tmp_path / "x.onnx").write_text("x")
    assert "x.onnx ends in .onnx but a checkpoint ends in" in refusal(tmp_path / "x.onnx")


def test_directories_that_lack_something(tmp_path):
    assert "holds none of model.safetensors, " in refusal(tmp_path)
    shard(tmp_path, ".safetensors")
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert "has no model-2-of-2.safetensors, which model.safetensors.index" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json has no weight_map; get the file" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not valid JSON (Expecting" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json holds a list but must hold an object" in refusal(tmp_path)


def test_places_that_do_not_exist(tmp_path):
    assert f"there is no {tmp_path}/none; give a checkpoint file" in refusal(tmp_path / "none")
    # It looks like a Hub id, and the tests run offline.
    message = refusal("someone/none")
    assert "cannot get config.json of someone/none from the Hub: it cannot be reached" in message
    assert "\n" not in message


def test_a_file_without_permission_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save(WEIGHTS, path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConversionError, match=r"cannot read .*Permission denied"):
        read_weights(path)


ASK_THE_HUB = """
import json, sys
from modeling_ast.conversion import ConversionError, read_source
answers = []
for source in sys.argv[1:]:
    try:
        found = read_source(source)
        answers.append([sorted(found.weights), found.config, found.repo, dict(found.card)])
    except ConversionError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_models_on_the_hub(tmp_path):
    """In a new process, because huggingface_hub reads its endpoint when it is imported."""
    repo = tmp_path / "hub" / "models" / "facebook" / "deit"
    repo.mkdir(parents=True)
    (repo / "config.json").write_text('{"model_type": "deit"}')
    (repo / "README.md").write_text("---\nlicense: mit\n---\n")
    torch.save(WEIGHTS, repo / "pytorch_model.bin")
    names = ["facebook/deit", "hf-hub:facebook/deit", "facebook/none"]
    command = [sys.executable, "-c", ASK_THE_HUB, *names]
    with HubStandIn(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        answers = json.loads(run.stdout)
    good = [sorted(WEIGHTS), {"model_type": "deit"}, "facebook/deit", {"license": "mit"}]
    assert answers[:2] == [good, good]
    assert "of facebook/none from the Hub: there is no such repository, or it" in answers[2]
    # Without the Hub the cache still has the fetched files, and knows that one does not exist.
    environment["HF_HUB_OFFLINE"] = "1"
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answers = json.loads(run.stdout)
    assert answers[:2] == [good, good]
    assert "it cannot be reached (offline?) and is not in the cache; check the" in answers[2]
