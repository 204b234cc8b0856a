"""commands/delivery: flags, card, Hub, JSON and exit status, the same for each conversion."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from huggingface_hub import metadata_load
from safetensors.torch import load_file

from modeling_ast import ASTForAudioClassification
from modeling_ast.commands import average, convert_deit, convert_original
from modeling_ast.conversion import ConversionError
from tests.conftest import ROOT
from tests.hub_stand_in import HubStandIn
from tests.made_up_checkpoints import make_authors, make_timm, run

SMALL_SOUND = ["--num-labels", 2, "--max-length", 40, "--num-mel-bins", 32]


@pytest.fixture
def deit(tmp_path):
    path = tmp_path / "deit.pth"
    torch.save(make_timm(img_size=224).state_dict(), path)
    return path


def test_exit_codes(deit, tmp_path, capsys):
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND) == 0
    capsys.readouterr()
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"error: .*/ast exists and is not empty; .*--force\n", output.err)
    with pytest.raises(SystemExit) as stop:
        run(convert_deit, deit)
    assert stop.value.code == 2


def fail_with(error, monkeypatch):
    def convert(args):
        raise error

    monkeypatch.setattr(convert_deit, "convert", convert)
    return run(convert_deit, "source.pth", "none/ast")


def test_a_bug_is_not_hidden_in_one_line(monkeypatch):
    for bug in (ZeroDivisionError(), ValueError("not ours")):
        with pytest.raises(type(bug)):
            fail_with(bug, monkeypatch)


def test_an_error_of_many_lines_is_printed_as_one(monkeypatch, capsys):
    assert fail_with(ConversionError("two\n  lines"), monkeypatch) == 1
    assert capsys.readouterr().err == "error: two lines\n"


def test_an_error_in_a_label_file_is_one_line(deit, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("name\ncar\n")
    for command in (convert_deit, convert_original):
        flags = ["--label-csv", tmp_path / "labels.csv"]
        assert run(command, deit, tmp_path / "ast", *flags) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(r"error: .*labels.csv has the header name but must have .*\n", error)


def test_dry_run_prints_the_table_only(deit, tmp_path, capsys):
    target = tmp_path / "none" / "ast"
    more = ["--dry-run", "--plot", tmp_path / "x.png", "--push-to-hub", "me/ast"]
    assert run(convert_deit, deit, target, *SMALL_SOUND, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tensors", "name", "before", "after"]
    assert lines[-1] == "37 carried, 2 resized, 4 fresh, 4 dropped"
    assert [path.name for path in tmp_path.iterdir()] == ["deit.pth"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_json(deit, tmp_path, capsys, dry_run):
    target = tmp_path / "ast"
    flags = ["--json", "--plot", tmp_path / "x.png", *["--dry-run"] * dry_run]
    assert run(convert_deit, deit, target, *SMALL_SOUND, *flags) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert output.err == "" and list(result) == ["output", "rows", "pushed"]
    assert result["output"] == (None if dry_run else str(target)) and result["pushed"] is None
    assert target.exists() != dry_run and (tmp_path / "x.png").exists() != dry_run
    assert sum(row["count"] for row in result["rows"]) == 37 + 2 + 4 + 4
    (kernel,) = (row for row in result["rows"] if row["name"].endswith("projection.weight"))
    assert kernel == {
        "what": "resized",
        "name": "embeddings.patch_embeddings.projection.weight",
        "before": [192, 3, 16, 16],
        "after": [192, 1, 16, 16],
        "count": 1,
    }
    fresh = next(row for row in result["rows"] if row["what"] == "fresh")
    assert fresh["before"] is None


def test_json_of_the_other_conversions(tmp_path, capsys):
    torch.save(make_authors(144, labels=35), tmp_path / "speech.pth")
    one, mean = tmp_path / "one", tmp_path / "mean"
    assert run(convert_original, tmp_path / "speech.pth", one, "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(one)
    assert run(average, one, one, "--output-dir", mean, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["output"] == str(mean)
    assert {row["what"] for row in result["rows"]} == {"averaged"}


def test_an_error_prints_nothing_on_stdout(tmp_path, capsys):
    assert run(convert_deit, tmp_path / "none.pth", tmp_path / "ast", "--json") == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: there is no ")


def test_flags_with_underscores(deit, tmp_path):
    flags = ["--num_labels", 2, "--max_length=40", "--num_mel_bins", 32]
    assert run(convert_deit, deit, tmp_path / "ast", *flags) == 0
    config = ASTForAudioClassification.from_pretrained(tmp_path / "ast").config
    assert (config.num_labels, config.max_length, config.num_mel_bins) == (2, 40, 32)


def test_force_and_plot(deit, tmp_path, capsys):
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND) == 0
    more = ["--force", "--plot", tmp_path / "x.png", "--num-labels", 5]
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND, *more) == 0
    assert f"drew {tmp_path}/x.png" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ast").num_labels == 5


def test_a_picture_that_cannot_be_drawn_stops_the_conversion(deit, tmp_path, capsys):
    more = ["--plot", tmp_path / "none" / "x.png"]
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND, *more) == 1
    assert "error: --plot: cannot write" in capsys.readouterr().err
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
    assert run(convert_deit, tmp_path / "none.pth", tmp_path / "ast", *flags) == 1
    assert message in capsys.readouterr().err


def test_the_card(deit, tmp_path):
    more = ["--base-model", "facebook/deit-tiny", "--license", "mit"]
    assert run(convert_deit, deit, tmp_path / "my ast", *SMALL_SOUND, *more) == 0
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
    assert f"modeling-ast convert-deit {deit} '{tmp_path}/my ast' --num-labels 2" in text
    assert "37 carried, 2 resized, 4 fresh, 4 dropped" in text
    assert "fine-tune it before use" in text


@pytest.mark.parametrize("command", [convert_deit, convert_original, average])
def test_help_reads_well(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example: modeling-ast {command.VERB} " in " ".join(text.split())
    assert text.startswith(f"usage: modeling-ast {command.VERB} ")
    flags = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    shared = {"--force", "--dry-run", "--json", "--plot", "--push-to-hub", "--private", "--license"}
    assert shared <= flags
    # No flag without a word about it.
    for flag in flags:
        assert re.search(rf"^  {flag}( [A-Z{{}}a-z,]+)*\s+\S.{{8,}}", text, re.MULTILINE), flag


@pytest.mark.parametrize(
    ("script", "verb"),
    [
        ("deit_to_ast", "convert-deit"),
        ("original_to_ast", "convert-original"),
        ("average_checkpoints", "average"),
    ],
)
def test_the_scripts_run_the_commands(script, verb, monkeypatch, capsys):
    path = ROOT / "conversion" / f"{script}.py"
    for arguments, status in ((["--help"], 0), (["one"], 2)):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
        assert stop.value.code == status
        output = capsys.readouterr()
        assert (output.err if status else output.out).startswith(f"usage: modeling-ast {verb} ")


def test_push_to_the_hub(deit, tmp_path):
    """The script itself, in a process of its own, against a stand-in for the Hub."""
    push = ["--push-to-hub", "someone/my-ast", "--private"]
    with HubStandIn(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        script = ROOT / "conversion" / "deit_to_ast.py"
        command = [sys.executable, script, deit, tmp_path / "ast", *SMALL_SOUND]
        done = subprocess.run(
            [*map(str, command), *push],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT)},
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
    assert run(convert_deit, deit, tmp_path / "ast", *SMALL_SOUND, *push) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: cannot push to someone/my-ast \(.*\); .*/ast is complete: .*\n", error
    )
    assert f"`hf upload someone/my-ast {tmp_path}/ast`" in error
    assert ASTForAudioClassification.from_pretrained(tmp_path / "ast").num_labels == 2
