"""Too many bad clips stop a run, and its list has all of them."""

import numpy as np
import pytest
import soundfile

from modeling_ast.commands import main
from modeling_ast.training import bad_clip_search
from modeling_ast.training.bad_clip_search import listing_all_bad_clips
from modeling_ast.training.clips import BadClips, TooManyBadClips
from modeling_ast.training.data_arguments import DataArguments


@pytest.fixture
def sounds(tmp_path):
    """Every third of 30 clips cannot be decoded; one is too short for any model."""
    rng = np.random.default_rng(0)
    for index in range(30):
        path = tmp_path / "sounds" / "ab"[index % 2] / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(100 if index == 29 else 4000), 16000)
        if index % 3 == 0:
            path.write_bytes(b"no sound")
    return tmp_path / "sounds"


@pytest.mark.parametrize("verb", ["finetune", "stats"])
def test_all_are_listed_where_a_run_stops(sounds, tiny_folder, tmp_path, capsys, verb):
    if verb == "stats":
        bad = tmp_path / "bad.txt"
        words = [verb, tiny_folder, "--data", sounds, "--bad-clips", bad]
    else:
        bad = tmp_path / "out" / "bad_clips.txt"
        words = [verb, "--model", tiny_folder, "--data", sounds, "--output-dir", tmp_path / "out"]
        words += ["--eval-share", 0.2, "--max-steps", 1, "--report-to", "none"]
    assert main([*map(str, words)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: 11 of 30 clips cannot be decoded")
    assert line.endswith("and 1 more (all clips were checked)")
    listed = bad.read_text().splitlines()
    assert sum(text.endswith(".wav") for text in (row.partition("\t")[0] for row in listed)) == 11
    assert "29.wav" in bad.read_text() and "Traceback" not in line


def test_the_search_ends_after_a_while(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_clip_search, "SEARCH_SECONDS", -1.0)
    data = DataArguments(str(sounds), eval_share=0.2)
    with (
        pytest.raises(TooManyBadClips, match=r"1 of 30 clips .*\(the first 0 were checked\)"),
        listing_all_bad_clips(data, tmp_path / "bad.txt"),
    ):
        BadClips(tmp_path / "bad.txt", 30, 0.01).add("x.wav", "broken")


def test_work_that_is_not_stopped_looks_at_nothing(tmp_path):
    with listing_all_bad_clips(DataArguments("nowhere"), tmp_path / "bad.txt"):
        pass
    with pytest.raises(KeyError), listing_all_bad_clips(DataArguments("nowhere"), "bad.txt"):
        raise KeyError
