"""The short form of `python -m tests.robustness`: every kind of file once, in one run of `tag`."""

import numpy as np
import pytest

from modeling_ast.commands import main
from tests.robustness import audio_files, cases, checkpoints


def test_every_kind_of_file_is_heard_or_bad_as_it_must_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoints.whole_model(tmp_path / "model")
    written = cases.write_files(tmp_path / "files", len(audio_files.KINDS), seed=1)
    cases.write_unlisted(tmp_path / "files")
    status = main(["tag", "model", "files", "--output", "tags.jsonl", "--workers", "1"])
    assert status == 1 and "Traceback" not in capsys.readouterr().err
    tally = cases.Tally()
    cases.compare_rows(cases.rows_of(tmp_path / "tags.jsonl"), written, tally)
    assert tally.is_clean(0), tally.table()


@pytest.mark.parametrize("kind", audio_files.KINDS)
def test_what_is_made_depends_on_the_seed_alone(kind):
    make = audio_files.KINDS[kind]
    first, again, other = (make(np.random.default_rng([seed, 0])) for seed in (3, 3, 4))
    assert first == again
    assert other.content != first.content or kind in ("empty", "expands", "no audio")
