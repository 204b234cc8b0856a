"""Ctrl-C while torch is being imported."""

import os
import signal
import subprocess
import sys

import pytest

from modeling_ast.interrupts import ends_silently
from tests.conftest import ROOT

SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize("command", ["modeling-ast", "-m", "else.py"])
def test_ctrl_c_while_importing(tmp_path, command):
    """The command prints nothing; another program gets its KeyboardInterrupt."""
    for name in ("numpy", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(SLOW)
    script = tmp_path / command
    if command != "-m":
        script.write_text("from modeling_ast.commands import main\n")
    words = ["-m", "modeling_ast"] if command == "-m" else [script]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    started = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert started.stdout.readline() == "importing\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    if command == "else.py":
        assert "KeyboardInterrupt" in err
    else:
        assert err == "" and started.returncode == -signal.SIGINT


def test_afterwards_all_is_as_before(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    for arguments in (["/usr/bin/modeling-ast"], ["-m"], ["other"], [], [""]):
        monkeypatch.setattr(sys, "argv", arguments)
        with ends_silently():
            pass
        assert signal.getsignal(signal.SIGINT) is before
