"""`modeling-ast detect`: the same events as in Python, in every format, even after a kill."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from modeling_ast import EventDetector
from modeling_ast.commands import detect_files, main
from modeling_ast.event_files import read_events, read_scores

RATE = 16_000
# The tiny model finds events everywhere; which ones does not matter here.
RULES = ("--window", "0.5", "--hop", "0.1", "--threshold", "0.4", "--activation", "sigmoid")
SAME = {"window": 0.5, "hop": 0.1, "threshold": 0.4}


def run(capsys, *arguments):
    status = main(["detect", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    (folder / "in").mkdir(parents=True)
    for number, name in enumerate(["a.wav", "in/a.wav", "b.flac"]):
        rng = np.random.default_rng(number)
        x = 0.1 * rng.standard_normal(3 * RATE) * (np.arange(3 * RATE) % 16_000 > 8_000)
        soundfile.write(folder / name, x, RATE)
    return folder


def expected_of(folder, name):
    from modeling_ast.tagging import AudioTagger

    tagger = AudioTagger.from_pretrained(folder, padding="longest", scores="sigmoid")
    return EventDetector(tagger, **SAME)(name)


@pytest.mark.parametrize("suffix", ["csv", "selections.txt", "json", "parquet"])
def test_events_are_those_of_the_detector(suffix, tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / f"events.{suffix}"
    status, out, err = run(capsys, tiny_folder, sounds, "--output", output, *RULES)
    assert status == 0 and "error" not in err and "3 files, 0 of them bad" in out
    found = read_events(output)
    names = [str(sounds / name) for name in ("a.wav", "b.flac", "in/a.wav")]
    assert sorted(found) == names and sum(map(len, found.values())) > 3
    for name in names:
        assert found[name] == expected_of(tiny_folder, name)


def test_why_there_is_no_event(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "events.csv"
    highest = max(expected_of(tiny_folder, sounds / "a.wav"), key=lambda event: event.score)
    words = ("--output", output, *RULES, "--threshold", 1)
    status, out, err = run(capsys, tiny_folder, sounds / "a.wav", *words)
    assert status == 0 and "0 events" in out
    said = re.search("no event: the score that comes nearest to its threshold is (.*) of", err)
    assert float(said[1]) >= round(highest.score, 2) - 0.01
    assert "and the threshold is 1.00 (--threshold)" in err
    # Its events are all shorter than wanted.
    words = ("--output", tmp_path / "long.csv", *RULES, "--min-length", 100)
    status, out, err = run(capsys, tiny_folder, sounds / "a.wav", *words)
    assert status == 0 and "0 events" in out
    assert "reaches its threshold, but not for long enough (--min-length, --median)" in err
    # Nothing was scored.
    words = ("--output", output, *RULES, "--threshold", 1)
    assert "no event" not in run(capsys, tiny_folder, sounds / "a.wav", *words)[2]


def test_audacity_has_a_file_for_each_recording(tiny_folder, sounds, tmp_path, capsys):
    folder = tmp_path / "labels"
    arguments = (tiny_folder, sounds, "--output", folder, "--format", "audacity", *RULES)
    assert run(capsys, *arguments)[0] == 0
    events = read_events(folder / "in/a.wav.txt", "audacity")
    assert list(events.values()) == [expected_of(tiny_folder, sounds / "in/a.wav")]
    assert (
        run(capsys, tiny_folder, sounds / "a.wav", "--output", tmp_path / "a.txt", *RULES)[0] == 0
    )
    assert read_events(tmp_path / "a.txt")["a"] == expected_of(tiny_folder, sounds / "a.wav")
    with pytest.raises(SystemExit):
        run(capsys, tiny_folder, sounds, "--output", tmp_path / "a.txt", *RULES)
    assert "one file for 3 recordings; name a folder" in capsys.readouterr().err


def test_without_output_the_events_are_printed(tiny_folder, sounds, capsys):
    name = sounds / "a.wav"
    status, out, _ = run(capsys, tiny_folder, name, *RULES)
    expected = expected_of(tiny_folder, name)
    assert status == 0 and out.splitlines()[0] == "file,onset,offset,label,score"
    assert len(out.splitlines()) == 1 + len(expected)
    status, out, _ = run(capsys, tiny_folder, name, *RULES, "--json")
    (recording,) = json.loads(out)["recordings"]
    assert recording["events"] == [event._asdict() for event in expected]
    assert recording["seconds"] == 3.0


def test_scores_and_pictures(tiny_folder, sounds, tmp_path, capsys):
    scores, pictures = tmp_path / "scores", tmp_path / "pictures"
    outputs = ("--output", tmp_path / "e.csv", "--scores", scores, "--plot", pictures)
    assert run(capsys, tiny_folder, sounds, *outputs, *RULES)[0] == 0
    labels, times, values = read_scores(scores / "in" / "a.wav.tsv")
    assert len(labels) == 5 and values.shape == (30, 5) and times[-1] == 3.0
    assert (pictures / "b.flac.png").read_bytes().startswith(b"\x89PNG")
    # Missing files that are wanted are made; the other recordings are not processed again.
    (pictures / "b.flac.png").unlink()
    before = (pictures / "a.wav.png").stat().st_mtime_ns
    assert run(capsys, tiny_folder, sounds, *outputs, *RULES)[0] == 0
    assert (pictures / "b.flac.png").exists()
    assert (pictures / "a.wav.png").stat().st_mtime_ns == before
    assert run(capsys, tiny_folder, sounds, "--plot", pictures, "--pages", *RULES)[0] == 0
    assert (pictures / "b.flac.pdf").read_bytes().startswith(b"%PDF")
    for picture, scores in (("one.png", "--scores"), ("one.pdf", "--write-scores")):
        single = (scores, tmp_path / f"{picture}.tsv", "--plot", tmp_path / picture)
        assert run(capsys, tiny_folder, sounds / "a.wav", *single, *RULES)[0] == 0
        assert (tmp_path / f"{picture}.tsv").exists() and (tmp_path / picture).exists()


def test_bad_files_and_bad_parts(tiny_folder, sounds, tmp_path, capsys):
    x = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE)
    x[2 * RATE : 3 * RATE] = np.nan
    soundfile.write(sounds / "nan.wav", x, RATE, subtype="FLOAT")
    (sounds / "text.wav").write_text("this is no audio")
    arguments = (tiny_folder, sounds, tmp_path / "missing.wav", "--output", tmp_path / "e.json")
    for _ in range(2):  # the second time from the journal
        status, out, err = run(capsys, *arguments, *RULES)
        assert status == 1 and "Traceback" not in err and "2 of them bad" in out
        lines = [line for line in err.replace("\r", "\n").splitlines() if "error:" in line]
        assert len(lines) == 3
        assert f"{sounds / 'nan.wav'}: from 2.000 s to 3.000 s: NaN, infinity" in err
        assert "no file at" in err and "cannot be decoded" in err
    assert len(read_events(tmp_path / "e.json")) == 6


STOPS_AFTER_TWO_ROWS = """
import sys, time
from modeling_ast.commands import main
from modeling_ast.journal import Journal
add = Journal.add
def add_and_stop(journal, row):
    add(journal, row)
    if len(journal.done) == 2:
        print("two rows", flush=True)
        time.sleep(3600)
Journal.add = add_and_stop
sys.exit(main(["detect", *sys.argv[1:]]))
"""


def test_a_killed_run_goes_on(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "events.csv"
    arguments = [tiny_folder, sounds, "--output", output, *RULES]
    command = [sys.executable, "-c", STOPS_AFTER_TWO_ROWS, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "two rows\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    with (tmp_path / "events.jsonl").open("a") as journal:
        journal.write('{"file": "torn')
    status, out, err = run(capsys, *arguments)
    assert status == 0 and "3 files" in out
    assert f"resuming {output}: 2 of 3 recordings are done\n" in err
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 3
    for name, events in read_events(output).items():
        assert events == expected_of(tiny_folder, name)


def test_rows_of_other_settings_are_not_mixed(tiny_folder, sounds, tmp_path, capsys):
    output = ("--output", tmp_path / "e.csv")
    assert run(capsys, tiny_folder, sounds / "a.wav", *output, *RULES)[0] == 0
    for flags, message in (
        (("--hop", "0.2"), "results with hop 0.1, not 0.2; give another --output, or --hop 0.1"),
        (("--padding", "max_length"), "--padding longest"),
        (("--threshold", "c=0.9"), ""),
        (("--min-gap", "1"), "or --min-gap 0.3"),
    ):
        if flags[1].startswith("c="):
            flags = ("--threshold", "LABEL_0=0.9")
            message = "results with thresholds 0.4"
        status, _, err = run(capsys, tiny_folder, sounds, *output, *RULES, *flags)
        assert status == 1 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output", "events.xml"), "the name 'events.xml' does not say the format"),
        (("--threshold", "high"), "--threshold is 'high'; give a score such as 0.5, or LABEL=0.5"),
        (("--batch-frames", "0"), "--batch-frames is 0; give at least 1"),
        (("--output", "nowhere/e.csv"), "no folder at 'nowhere' to write --output to; make it"),
        (("--scores", "one.tsv"), "one file for 3 recordings; name a folder"),
        (("--plot", "one.png"), "one file for 3 recordings; name a folder"),
        (("--combine", "median"), "invalid choice: 'median'"),
        (("--edges", "sharp"), "invalid choice: 'sharp'"),
        (("--pages",), "--pages is for --plot FOLDER; for one recording name a .pdf"),
    ],
)
def test_wrong_usage(flags, message, tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(capsys, tiny_folder, sounds, *flags)
    assert ended.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_one_sentence(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    for arguments, message in [
        ((tmp_path / "no model", sounds), "cannot load the model"),
        ((tiny_folder, sounds, "--window", "60"), "at most the model's length"),
        ((tiny_folder, sounds, "--threshold", "dog=0.5"), "has no label 'dog'"),
        ((tiny_folder, tmp_path / "sounds" / "empty"), "no audio file in these folders"),
        ((tiny_folder, sounds / "a.wav", "--plot", "a.xyz"), "cannot draw a.xyz: its name must"),
    ]:
        (tmp_path / "sounds" / "empty").mkdir(exist_ok=True)
        status, out, err = run(capsys, *arguments)
        assert status == 1 and message in err and not out
        assert len(err.strip().splitlines()) == 1
    # A refused run leaves neither an empty file nor an empty folder.
    before = set(tmp_path.rglob("*"))
    for output in (("e.csv",), ("labels", "--format", "audacity")):
        words = ("--output", tmp_path / output[0], *output[1:])
        assert run(capsys, tmp_path / "no model", sounds, *words)[0] == 1
        assert set(tmp_path.rglob("*")) == before
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = run(capsys, tiny_folder, sounds, "--output", tmp_path / "e.parquet")
    assert status == 1 and "needs pyarrow" in err


def test_a_full_disk(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modeling_ast.commands.detect.write_results", fail)
    output = tmp_path / "events.csv"
    status, _, err = run(capsys, tiny_folder, sounds / "a.wav", "--output", output)
    assert status == 1 and f"cannot write {output} (No space left on device); make space" in err
    assert err.strip().endswith("run the same command again: it resumes")


def test_a_model_with_one_label_to_a_clip_always_names_one(tiny_folder, sounds, capsys):
    rules = ("--window", "0.5", "--hop", "0.1", "--threshold", "0.4", "--activation")
    _, out, err = run(capsys, tiny_folder, sounds / "a.wav", *rules, "softmax")
    assert "it always names one of its labels, in silence too;" in err and "silence" not in out
    assert len(err.strip().splitlines()) == 1 + ("no event" in err)
    assert not run(capsys, tiny_folder, sounds / "a.wav", *rules, "sigmoid")[2]


def test_short_audio_is_counted_in_seconds(tiny_folder, sounds, tmp_path, capsys):
    output = ("--output", tmp_path / "e.csv")
    _, out, _ = run(capsys, tiny_folder, sounds / "a.wav", *output, *RULES)
    assert "in 3.00 seconds of audio; 1 file, 0 of them bad" in out
    assert detect_files.duration(90) == "1.5 minutes"
    assert detect_files.duration(5400) == "1.50 hours"


def test_a_journal_of_another_model_says_what_to_do(tiny_folder, sounds, tmp_path, capsys):
    output = ("--output", tmp_path / "e.csv")
    assert run(capsys, tiny_folder, sounds / "a.wav", *output, *RULES)[0] == 0
    status, _, err = run(capsys, "another/model", sounds / "a.wav", *output, *RULES)
    assert status == 1 and "e.jsonl has the results of the model" in err
    assert "give another --output, or move that file away to start again" in err


def test_progress_in_audio_hours_a_minute():
    begin = time.monotonic()
    assert detect_files.speed(7200.0, begin - 60) == pytest.approx(2.0, rel=0.01)
