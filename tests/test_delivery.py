"""delivery: flags, card, Hub and exit codes, the same for each script."""

import json
import os
import re
import subprocess
import sys

import average_checkpoints
import deit_to_ast
import delivery
import original_to_ast
import pytest
import torch
from huggingface_hub import metadata_load
from key_maps import ConversionError
from safetensors.torch import load_file

from modeling_ast import ASTForAudioClassification
from tests.hub_stand_in import HubStandIn
from tests.made_up_checkpoints import make_timm, run

SMALL_SOUND = ["--num-labels", 2, "--max-length", 40, "--num-mel-bins", 32]


@pytest.fixture
def deit(tmp_path):
    path = tmp_path / "deit.pth"
    torch.save(make_timm(img_size=224).state_dict(), path)
    return path


def test_exit_codes(deit, tmp_path, capsys):
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND) == 0
    capsys.readouterr()
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"error: .*/ast exists and is not empty; .*--force\n", output.err)
    with pytest.raises(SystemExit) as stop:
        run(deit_to_ast, deit)
    assert stop.value.code == 2


def test_a_bug_is_not_hidden_in_one_line():
    with pytest.raises(ZeroDivisionError):
        delivery.exit_code(lambda: 1 / 0)


def test_an_error_of_many_lines_is_printed_as_one(capsys):
    def fail():
        raise ConversionError("two\n  lines")

    assert delivery.exit_code(fail) == 1
    assert capsys.readouterr().err == "error: two lines\n"


def test_dry_run_prints_the_table_only(deit, tmp_path, capsys):
    target = tmp_path / "none" / "ast"
    more = ["--dry-run", "--plot", tmp_path / "x.png", "--push-to-hub", "me/ast"]
    assert run(deit_to_ast, deit, target, *SMALL_SOUND, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tensors", "name", "before", "after"]
    assert lines[-1] == "37 carried, 2 resized, 4 fresh, 4 dropped"
    assert [path.name for path in tmp_path.iterdir()] == ["deit.pth"]


def test_force_and_plot(deit, tmp_path, capsys):
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND) == 0
    more = ["--force", "--plot", tmp_path / "x.png", "--num-labels", 5]
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND, *more) == 0
    assert f"drew {tmp_path}/x.png" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ast").num_labels == 5


def test_a_picture_that_cannot_be_drawn_stops_the_conversion(deit, tmp_path, capsys):
    more = ["--plot", tmp_path / "none" / "x.png"]
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND, *more) == 1
    assert "cannot write the picture" in capsys.readouterr().err
    assert not (tmp_path / "ast").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--private"], "--private does nothing without --push-to-hub REPO"),
        (["--push-to-hub", "a/b/c"], "--push-to-hub a/b/c: Repo id must be in the form"),
        (["--push-to-hub", "me/a--b"], "--push-to-hub me/a--b: Cannot have -- or .."),
    ],
)
def test_flags_that_cannot_work_are_refused_first(tmp_path, capsys, flags, message):
    assert run(deit_to_ast, tmp_path / "none.pth", tmp_path / "ast", *flags) == 1
    assert message in capsys.readouterr().err


def test_the_card(deit, tmp_path):
    more = ["--base-model", "facebook/deit-tiny", "--license", "mit"]
    assert run(deit_to_ast, deit, tmp_path / "my ast", *SMALL_SOUND, *more) == 0
    card = tmp_path / "my ast" / "README.md"
    metadata = metadata_load(card)
    assert "audio-spectrogram-transformer" in metadata.pop("tags")
    assert metadata == {
        "base_model": "facebook/deit-tiny",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "audio-classification",
    }
    text = card.read_text()
    assert f"python conversion/deit_to_ast.py {deit} '{tmp_path}/my ast' --num-labels 2" in text
    assert "37 carried, 2 resized, 4 fresh, 4 dropped" in text
    assert "fine-tune it before use" in text


@pytest.mark.parametrize("script", [deit_to_ast, original_to_ast, average_checkpoints])
def test_help_reads_well(script, capsys):
    with pytest.raises(SystemExit) as stop:
        run(script, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example: python conversion/{script.__name__}.py" in " ".join(text.split())
    flags = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    shared = {"--force", "--dry-run", "--plot", "--push-to-hub", "--private", "--license"}
    assert shared <= flags
    # No flag without a word about it.
    for flag in flags:
        assert re.search(rf"^  {flag}( [A-Z{{}}a-z,]+)*\s+\S.{{8,}}", text, re.MULTILINE), flag


def test_push_to_the_hub(deit, tmp_path):
    """The script itself, in a process of its own, against a stand-in for the Hub."""
    push = ["--push-to-hub", "someone/my-ast", "--private"]
    with HubStandIn(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        command = [sys.executable, deit_to_ast.__file__, deit, tmp_path / "ast", *SMALL_SOUND]
        done = subprocess.run(
            [*map(str, command), *push],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"pushed to {hub.endpoint}/someone/my-ast\n")
    repo = tmp_path / "hub" / "models" / "someone" / "my-ast"
    assert hub.private == {repo}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        path.name for path in repo.iterdir()
    }
    assert json.loads((repo / "config.json").read_text())["max_length"] == 40
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ast", repo))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_push_that_fails_keeps_the_model(deit, tmp_path, capsys):
    """The tests run offline."""
    push = ["--push-to-hub", "someone/my-ast"]
    assert run(deit_to_ast, deit, tmp_path / "ast", *SMALL_SOUND, *push) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: cannot push to someone/my-ast \(.*\); .*/ast is complete: .*\n", error
    )
    assert f"`hf upload someone/my-ast {tmp_path}/ast`" in error
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ast").num_labels == 2
