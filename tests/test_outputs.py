"""outputs: places that cannot be written, and two runs in one place."""

import logging
import subprocess
import sys

import pytest
import transformers

from modeling_ast.outputs import (
    check_output_file,
    leaving_no_empty_folder,
    one_run_at_a_time,
)


def test_files_that_can_be_written_are_left_as_they_are(tmp_path):
    check_output_file(tmp_path / "new.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.png").write_text("old")
    check_output_file(str(tmp_path / "old.png"))
    assert (tmp_path / "old.png").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/x.png", "No such file"), ("", "Is a directory"), ("file/x.png", "Not a directory")],
)
def test_files_that_cannot(tmp_path, name, reason):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=rf"cannot write .* \({reason}.*\); give another path"):
        check_output_file(tmp_path / name)


def test_a_folder_that_stayed_empty_is_removed(tmp_path):
    """Only a new one, and only when the work fails."""

    def work(folder, file=None):
        with pytest.raises(OSError, match="refused"), leaving_no_empty_folder(folder):
            assert folder.is_dir()
            if file is not None:
                file.write_text("result")
            raise OSError("refused")

    work(tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    work(tmp_path / "runs")
    work(tmp_path / "runs" / "mine")
    assert (tmp_path / "runs").is_dir() and not (tmp_path / "runs" / "mine").exists()
    work(tmp_path / "runs" / "mine", tmp_path / "runs" / "mine" / "x")
    assert (tmp_path / "runs" / "mine" / "x").read_text() == "result"
    with leaving_no_empty_folder(tmp_path / "other"):
        pass
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_is_a_file_is_refused_and_the_file_is_kept(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    refused = pytest.raises(ValueError, match="file is a file but must be a directory; give")
    with refused, leaving_no_empty_folder(tmp_path / name):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_one_run_at_a_time(tmp_path):
    """Another process is kept out until the first has ended, even by a kill."""
    code = """
import sys
from pathlib import Path
from modeling_ast.outputs import one_run_at_a_time
with one_run_at_a_time(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "locked\n"
        refused = pytest.raises(ValueError, match="another run is writing into")
        with refused, one_run_at_a_time(tmp_path):
            pass
        first.kill()
    with one_run_at_a_time(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_locked_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "platform", "win32")
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING), one_run_at_a_time(tmp_path):
        pass
    assert "there is no flock" in caplog.text and "do not start a second run" in caplog.text
