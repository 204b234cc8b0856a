"""quickstart.py as a user runs it, in a new process."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_quickstart_runs_through(tmp_path):
    out = tmp_path / "quickstart"
    arguments = ["--output_dir", out, "--num-train", 28, "--num-test", 28, "--epochs", 7]
    script = [sys.executable, str(ROOT / "examples" / "quickstart.py"), *map(str, arguments)]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "random weights" in ended.stdout and "held-out mAP" in ended.stdout
    for name in ("clip.png", "model/model.safetensors", "model/README.md", "ast/config.json"):
        assert (out / name).is_file(), name
    again = subprocess.run(script, capture_output=True, text=True, check=False, cwd=ROOT)
    assert again.returncode == 1 and "exists; give another --output_dir" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_quickstart_reaches_its_score(tmp_path):
    out = tmp_path / "quickstart"
    script = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--output_dir", str(out)]
    assert subprocess.run(script, check=False).returncode == 0
    metrics = json.loads((out / "model" / "metrics.json").read_text())
    assert metrics["average_mAP"] >= metrics["eval_mAP"] >= 0.95
