"""output_folder.py: a folder is complete or does not exist, in all kinds of failures."""

import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from modeling_ast.conversion.key_maps import ConversionError
from modeling_ast.conversion.output_folder import check_target, whole_or_nothing


def write(target, text="new", force=False):
    with whole_or_nothing(target, force) as folder:
        assert folder.parent == target.parent and not (folder / "config.json").exists()
        (folder / "config.json").write_text(text)


@pytest.mark.parametrize("name", ["new", "new/deep/er"])
def test_a_new_folder(tmp_path, name):
    write(tmp_path / name)
    assert (tmp_path / name / "config.json").read_text() == "new"
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [name.split("/")[-1]]


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_nobody_else_is_shut_out(tmp_path):
    """The permissions are those that mkdir gives, not those of a temporary folder."""
    write(tmp_path / "new")
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_an_old_model_is_replaced_only_by_force(tmp_path):
    write(tmp_path / "ast", "old")
    with pytest.raises(ConversionError, match=r"ast exists and is not empty; .*--force"):
        write(tmp_path / "ast")
    assert (tmp_path / "ast" / "config.json").read_text() == "old"
    write(tmp_path / "ast", "new", force=True)
    assert (tmp_path / "ast" / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["ast"]


def test_force_deletes_nothing_that_no_conversion_wrote(tmp_path):
    write(tmp_path / "ast")
    (tmp_path / "ast" / "thesis.tex").write_text("x")
    with pytest.raises(ConversionError, match=r"holds thesis\.tex, which no conversion wrote"):
        write(tmp_path / "ast", force=True)
    assert (tmp_path / "ast" / "thesis.tex").exists()


def test_a_failure_leaves_the_old_model_and_no_trace(tmp_path):
    write(tmp_path / "ast", "old")
    for failure in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(failure), whole_or_nothing(tmp_path / "ast", True) as folder:
            (folder / "config.json").write_text("half")
            raise failure
    assert (tmp_path / "ast" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["ast"]


def test_a_failed_rename_brings_the_old_model_back(tmp_path):
    write(tmp_path / "ast", "old")
    with (
        pytest.raises(ConversionError, match=r"cannot write .*ast .*nothing was written"),
        whole_or_nothing(tmp_path / "ast", True) as folder,
    ):
        folder.rmdir()
    assert (tmp_path / "ast" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["ast"]


def test_a_full_disk(tmp_path):
    """Simulated by a limit on the size of files, which the kernel enforces."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(ConversionError, match=r"cannot write .*ast .*nothing was written"),
        whole_or_nothing(tmp_path / "ast", False) as folder,
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            save_file({"x": torch.zeros(100_000)}, folder / "model.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConversionError, match="file is a file but must be a new directory"):
        write(tmp_path / "file")
    with pytest.raises(ConversionError, match=r"cannot write .*Not a directory"):
        write(tmp_path / "file" / "ast")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConversionError, match=r"cannot write .*Permission denied"):
        write(tmp_path / "locked" / "ast")


def test_the_source_is_never_the_target(tmp_path):
    source = tmp_path / "deit"
    source.mkdir()
    (source / "model.safetensors").write_text("x")
    for target, given in ((source, source), (source, source / "model.safetensors")):
        with pytest.raises(ConversionError, match=r"holds the source .*, which would be lost"):
            check_target(target, True, [given])
    check_target(tmp_path / "deit" / "ast", False, [source])


def test_what_a_killed_run_left_is_cleared(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from modeling_ast.conversion.output_folder import whole_or_nothing
with whole_or_nothing(Path(sys.argv[1]), False) as folder:
    (folder / "half.safetensors").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "ast"], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".ast.partial"]
    write(tmp_path / "ast")
    assert [path.name for path in tmp_path.iterdir()] == ["ast"]
    assert [path.name for path in (tmp_path / "ast").iterdir()] == ["config.json"]


def test_a_second_run_is_refused_and_the_first_ends_well(tmp_path):
    with whole_or_nothing(tmp_path / "ast", False) as folder:
        (folder / "config.json").write_text("first")
        with pytest.raises(ConversionError, match="another run is writing into"):
            write(tmp_path / "ast")
    assert (tmp_path / "ast" / "config.json").read_text() == "first"


def test_a_source_that_changes(tmp_path):
    source = tmp_path / "deit"
    source.mkdir()
    (source / "model.safetensors").write_text("old")
    for change in (
        lambda: (source / "model.safetensors").write_text("newer"),
        lambda: (source / "model-2.safetensors").write_text("more"),
        lambda: (source / "model.safetensors").unlink(),
    ):
        with (
            pytest.raises(ConversionError, match=r"changed while it was converted; nothing was"),
            whole_or_nothing(tmp_path / "new" / "ast", False, [source]),
        ):
            change()
    # New parent folders of the target are removed, too.
    assert [path.name for path in tmp_path.iterdir()] == ["deit"]


def test_a_place_that_vanishes(tmp_path):
    with (
        pytest.raises(ConversionError, match=r"cannot write .*ast .*nothing was written"),
        whole_or_nothing(tmp_path / "new" / "ast", False) as folder,
    ):
        shutil.rmtree(tmp_path / "new")
        (folder / "config.json").write_text("x")
    assert list(tmp_path.iterdir()) == []
