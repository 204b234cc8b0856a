"""modeling-ast tag, as a user runs it, and with runs that are killed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from modeling_ast import AudioTagger
from modeling_ast.commands import main, model_flags, tag
from modeling_ast.tag_files import Journal
from modeling_ast.tag_rows import SETTINGS

RATE = 16000


def write(path, seconds, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    soundfile.write(path, samples, RATE)


@pytest.fixture
def sounds(tmp_path):
    """Six files in three folders, two of them bad, and one whose name is not that of audio."""
    folder = tmp_path / "sounds"
    write(folder / "b.wav", 0.5)
    write(folder / "a" / "deep" / "c.FLAC", 0.7, 1)
    write(folder / "a" / "d é.ogg", 0.9, 2)
    write(folder / "z.wav", 0.01)
    (folder / "a" / "broken.mp3").write_text("no audio")
    (folder / "notes.txt").write_text("not looked at")
    write(folder / "a" / "e.wav", 1.2, 3)
    return folder


ORDER = ["a/broken.mp3", "a/d é.ogg", "a/deep/c.FLAC", "a/e.wav", "b.wav", "z.wav"]


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of the command, in this process."""
    try:
        status = main(["tag", *map(str, arguments), "--workers", "0"])
    except SystemExit as end:  # argparse
        status = end.code
    return status, *capsys.readouterr()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_replaced_weights_are_not_added_to(tiny_folder, sounds, tmp_path, capsys):
    """A model that is trained anew into the same folder gives other scores."""
    output = tmp_path / "tags.jsonl"
    run(capsys, tiny_folder, sounds, "--output", output)
    before = output.read_bytes()
    assert all(len(row["weights"]) == 16 for row in rows_of(output))
    run(capsys, tiny_folder, sounds, "--output", output)
    assert output.read_bytes() == before
    weights = load_file(tiny_folder / "model.safetensors")
    weights["classifier.dense.bias"] += 1
    save_file(weights, tiny_folder / "model.safetensors", {"format": "pt"})
    status, _, err = run(capsys, tiny_folder, sounds, "--output", output)
    assert status == 1 and "from before its weights were replaced; give another --output" in err
    assert output.read_bytes() == before
    # Rows of earlier versions do not state the weights.
    rows = [{k: v for k, v in row.items() if k != "weights"} for row in rows_of(output)]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "resuming" in run(capsys, tiny_folder, sounds, "--output", output)[2]


def test_a_folder_as_jsonl(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    status, out, err = run(capsys, tiny_folder, sounds, "--output", output, "--top-k", 3)
    assert status == 1 and "6 files, 2 of them bad" in out and "audio-h/min" in err
    rows = rows_of(output)
    assert [row["file"] for row in rows] == ORDER
    assert "cannot be decoded" in rows[0]["error"] and "160 samples" in rows[5]["error"]
    tagger = AudioTagger.from_pretrained(tiny_folder, num_workers=0, top_k=3)
    for row in rows[1:5]:
        (expected,) = tagger([sounds / row["file"]])
        found = {entry["label"]: entry["score"] for entry in row["labels"]}
        assert found == pytest.approx(expected.labels, abs=1e-6)
        assert row["error"] is None and row["seconds"] == expected.seconds


def test_parquet_and_only_new_files_the_second_time(
    tiny_folder, sounds, tmp_path, monkeypatch, capsys
):
    from pyarrow import parquet

    output = tmp_path / "tags.parquet"
    (sounds / os.fsdecode(b"not\xffutf.wav")).write_bytes((sounds / "b.wav").read_bytes())
    arguments = (tiny_folder, sounds, "--output", output)
    assert run(capsys, *arguments)[0] == 1
    first = parquet.read_table(output).to_pylist()
    assert [row["file"] for row in first] == [*ORDER[:5], "not\ufffdutf.wav", "z.wav"]
    assert first[5]["labels"] == first[4]["labels"]
    assert (
        rows_of(tmp_path / "tags.jsonl")[1]["labels"][0]["label"] == first[1]["labels"][0]["label"]
    )
    (sounds / "z.wav").unlink()
    write(sounds / "new.wav", 0.4)
    assert run(capsys, *arguments)[0] == 1
    second = parquet.read_table(output).to_pylist()
    assert second[:-1] == first and second[-1]["file"] == "new.wav"
    # If there is no new file, not even the model is loaded.
    monkeypatch.setattr(tag, "load_tagger", None)
    assert run(capsys, *arguments)[0] == 1
    assert parquet.read_table(output).to_pylist() == second


def test_flags_reach_the_tagger(tiny_folder, tmp_path):
    def load(*flags):
        paths = [str(tiny_folder), str(tmp_path), "--output", str(tmp_path / "t.jsonl")]
        options = tag.parse_arguments([*paths, *flags])
        return model_flags.load_tagger(
            options, batch_frames=options.batch_frames, num_workers=options.workers
        )

    tagger = load()
    assert tagger.model.dtype == torch.float32 and tagger.padding == "max_length"
    tagger = load(
        "--dtype", "bfloat16", "--batch_frames", "300", "--workers=3", "--padding=longest"
    )
    assert tagger.model.dtype == torch.bfloat16 and tagger.padding == "longest"
    assert (tagger.batch_frames, tagger.num_workers) == (300, 3)
    assert load("--scores", "softmax").sigmoid is False


def test_rows_of_another_padding_are_not_mixed(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    run(capsys, tiny_folder, sounds, "--output", output)
    told = {tuple(row[name] for name in SETTINGS) for row in rows_of(output)}
    assert told == {("max_length", "softmax", "float32", "none", "none")}
    write(sounds / "new.wav", 0.4)
    before = output.read_bytes()
    flags = ("--output", output, "--padding", "longest")
    status, _, err = run(capsys, tiny_folder, sounds, *flags)
    assert status == 1 and "--padding max_length" in err and output.read_bytes() == before
    # It is refused even if there is no new file.
    (sounds / "new.wav").unlink()
    for other in (("--padding", "longest"), ("--scores", "sigmoid"), ("--int8",)):
        status, _, err = run(capsys, tiny_folder, sounds, "--output", output, *other)
        assert status == 1 and "give another --output, or " in err
    write(sounds / "new.wav", 0.4)
    # Rows of version 0.1, which always padded to the longest clip.
    output.write_text(
        "".join(
            json.dumps({key: row[key] for key in row if key not in SETTINGS}) + "\n"
            for row in rows_of(output)
        )
    )
    assert "with padding 'longest'" in run(capsys, tiny_folder, sounds, "--output", output)[2]
    assert run(capsys, tiny_folder, sounds, *flags)[0] == 1  # two files are bad
    assert rows_of(output)[-1]["file"] == "new.wav"


def test_an_output_that_is_no_file(tiny_folder, sounds, tmp_path, capsys):
    """A pipe would block the run, and a device would be read for ever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    for name in ("pipe.jsonl", "full.jsonl"):
        status, _, err = run(capsys, tiny_folder, sounds, "--output", tmp_path / name)
        assert status == 1 and "is not a regular file" in err and err.count("\n") == 1


def test_the_summary_as_json(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    status, out, _ = run(capsys, tiny_folder, sounds, "--output", output, "--json")
    result = json.loads(out)
    assert status == 1 and (result["output"], result["files"], result["bad"]) == (str(output), 6, 2)
    assert result["hours"] == pytest.approx((0.5 + 0.7 + 0.9 + 1.2) / 3600)


def test_int8(tiny_folder, sounds, tmp_path, capsys):
    """The scores are near those of the float model, but not equal to them."""
    outputs = tmp_path / "float.jsonl", tmp_path / "int8.jsonl"
    arguments = (tiny_folder, sounds, "--top-k", 5, "--output")
    run(capsys, *arguments, outputs[0])
    run(capsys, *arguments, outputs[1], "--int8")
    tables = [
        [{entry["label"]: entry["score"] for entry in row["labels"]} for row in rows_of(output)]
        for output in outputs
    ]
    assert tables[0] != tables[1]
    for ours, theirs in zip(*tables):
        assert ours == pytest.approx(theirs, abs=0.05)


def test_a_torn_line_is_done_again(tiny_folder, sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    arguments = (tiny_folder, sounds, "--output", output)
    run(capsys, *arguments)
    whole = rows_of(output)
    content = output.read_bytes()
    output.write_bytes(content[: content.rindex(b'"seconds"', 0, -300)])
    run(capsys, *arguments)
    again = rows_of(output)
    assert [row["file"] for row in again] == [row["file"] for row in whole]


# The command, which after ten rows says so and then waits until it is killed.
STOPS_AFTER_TEN_ROWS = """
import sys, time
from modeling_ast import tag_files
from modeling_ast.commands import main
add = tag_files.TagJournal.add
def add_and_stop(journal, *row):
    add(journal, *row)
    if len(journal.done) == 10:
        print("ten rows", flush=True)
        time.sleep(3600)
tag_files.TagJournal.add = add_and_stop
sys.exit(main(["tag", *sys.argv[1:]]))
"""


@pytest.fixture
def many_sounds(tmp_path):
    """Forty files that are named by their numbers."""
    folder = tmp_path / "many"
    write(folder / "0.wav", 0.4)
    for number in range(1, 40):
        os.link(folder / "0.wav", folder / f"{number}.wav")
    return folder


def interrupted(arguments, kill):
    """(status, standard error, process group) of the command, on which `kill` is called."""
    command = [sys.executable, "-c", STOPS_AFTER_TEN_ROWS, *map(str, arguments)]
    # It has a session of its own, so that all its processes get a signal, as in a terminal.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "ten rows\n"
        kill(process)
        _, err = process.communicate()
    return process.returncode, err, process.pid


def check_resumed(capsys, arguments, output, before):
    """The same command does the missing files, and no others."""
    status, _, err = run(capsys, *arguments)
    assert status == 0, err
    assert output.read_bytes().startswith(before)
    assert f"resuming {output}: {before.count(bytes([10]))} of 40 clips are done\n" in err
    names = [row["file"] for row in rows_of(output)]
    assert len(names) == 40 and set(names) == {f"{number}.wav" for number in range(40)}


def test_killed_and_resumed_nothing_is_lost_or_repeated(tiny_folder, many_sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    arguments = [tiny_folder, many_sounds, "--output", output, "--device", "cpu"]
    status, _, _ = interrupted([*arguments, "--workers", 1], lambda process: process.kill())
    before = output.read_bytes()
    assert status == -signal.SIGKILL and before.count(b"\n") == 10
    check_resumed(capsys, arguments, output, before)


def test_hostile_names_and_links(tiny_folder, tmp_path, capsys):
    """Each name comes once, as on the disk; links and everything that is no file are skipped."""
    folder, output = tmp_path / "sounds", tmp_path / "tags.jsonl"
    names = ["line\nbreak.wav", os.fsdecode(b"\xff\xfe.wav"), "deep/er/quote\"'.WAV", "-x.wav"]
    write(tmp_path / "any.wav", 0.1)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "any.wav", folder / name)
    (folder / "deep" / "round").symlink_to(folder, target_is_directory=True)
    (folder / "itself.wav").symlink_to("itself.wav")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "empty.wav").touch()
    status, _, err = run(capsys, tiny_folder, folder, "--output", output)
    rows = {row["file"]: row["error"] for row in rows_of(output)}
    assert status == 1 and len(rows_of(output)) == 5
    assert [name for name, error in rows.items() if error is None] == sorted(names)
    assert "is empty" in rows["empty.wav"]
    for line in (
        "1 skipped: link to a file that is not there (itself.wav)",
        "1 skipped: folder that is listed already, under another name (deep/round)",
        "1 skipped: neither a file nor a folder (pipe.wav)",
        "1 skipped: empty folder (folder.wav)",
    ):
        assert line in err.splitlines()


def test_files_that_are_left_out_are_counted_and_no_error(tiny_folder, tmp_path, capsys):
    folder, output = tmp_path / "sounds", tmp_path / "tags.jsonl"
    write(folder / "car_0.wav", 0.5)
    (folder / "._car_0.wav").write_bytes(bytes(range(200)))
    (folder / "film.mp4").write_bytes(b"x")
    status, out, err = run(capsys, tiny_folder, folder, "--output", output)
    assert status == 0 and [row["file"] for row in rows_of(output)] == ["car_0.wav"]
    assert "1 skipped: resource file of macOS" in err and "ffmpeg -i NAME.mp4" in err
    _, out, _ = run(capsys, tiny_folder, folder, "--output", output, "--json")
    skipped = json.loads(out)["skipped"]
    assert [entry["file"] for entry in skipped] == ["._car_0.wav", "film.mp4"]
    (folder / "car_0.wav").unlink()
    status, _, err = run(capsys, tiny_folder, folder, "--output", output)
    assert status == 1 and "no audio file in" in err and "ffmpeg -i NAME.mp4" in err


def test_a_folder_that_cannot_be_listed_is_told(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)  # root may list everything
    (sounds / "a" / "broken.mp3").unlink()
    (sounds / "z.wav").unlink()
    output = tmp_path / "tags.jsonl"
    status, out, err = run(capsys, tiny_folder, sounds, "--output", output)
    assert status == 1 and "3 files, 0 of them bad" in out
    assert "error: cannot list" in err and "deep': Permission denied" in err


def test_files_that_go_during_the_run_are_bad(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    find = tag.audio_files

    def vanishing(folder):
        found = find(folder)
        (folder / "b.wav").unlink()
        return found

    monkeypatch.setattr(tag, "audio_files", vanishing)
    output = tmp_path / "tags.jsonl"
    run(capsys, tiny_folder, sounds, "--output", output)
    rows = rows_of(output)
    assert [row["file"] for row in rows] == ORDER and "no file at" in rows[4]["error"]


def test_two_runs_on_one_output(tiny_folder, sounds, tmp_path, capsys):
    pytest.importorskip("fcntl", reason="Windows has other locks")
    output = tmp_path / "tags.jsonl"
    code = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    arguments = (tiny_folder, sounds, "--output", output)
    command = [sys.executable, "-c", code, output]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        status, _, err = run(capsys, *arguments)
        assert status == 1 and "another process is writing it" in err
        assert len(err.strip().splitlines()) == 1 and output.read_bytes() == b""
        other.stdin.close()
    assert "6 files, 2 of them bad" in run(capsys, *arguments)[1]


def test_a_full_disk(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    """A limit on the size of files has the same effect: only a part of a line is written."""
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    from pyarrow import parquet

    output = tmp_path / "tags.jsonl"
    arguments = (tiny_folder, sounds, "--output", output)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        status, _, err = run(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "error: [Errno 28] No space left on device" in err
    assert "run the same command again to resume" in err and output.stat().st_size == 700
    run(capsys, *arguments)
    assert [row["file"] for row in rows_of(output)] == ORDER

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", fail)
    output = tmp_path / "tags.parquet"
    status, _, err = run(capsys, tiny_folder, sounds, "--output", output)
    assert status == 1 and "No space left" in err and not list(tmp_path.glob("*.p*"))


def test_ctrl_c_stops_all_processes_and_goes_on(tiny_folder, many_sounds, tmp_path, capsys):
    output = tmp_path / "tags.jsonl"
    arguments = [tiny_folder, many_sounds, "--output", output, "--device", "cpu"]
    status, err, group = interrupted(
        [*arguments, "--workers", 2], lambda process: os.killpg(process.pid, signal.SIGINT)
    )
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped after 10 files; run the same command again")
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    check_resumed(capsys, arguments, output, output.read_bytes())


def test_what_is_wrong_is_one_line(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    good = ("--output", tmp_path / "tags.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.jsonl").mkdir()
    (tmp_path / "mine.jsonl").write_text('{"my": "data"}\n')
    for arguments, status, message in [
        ((tiny_folder, tmp_path / "none", *good), 2, "no folder at"),
        ((tiny_folder, __file__, *good), 2, "is a file; give its folder, or take `classify`"),
        ((tiny_folder, sounds, "--output", "tags.csv"), 2, "must end in .parquet or .jsonl"),
        ((tiny_folder, sounds, "--output", tmp_path / "no" / "t.jsonl"), 2, "no folder at"),
        ((tiny_folder, sounds, *good, "--top-k", 0), 2, "--top-k is 0"),
        ((tiny_folder, sounds, *good, "--batch-frames", 0), 2, "--batch-frames is 0"),
        ((tiny_folder, sounds, *good, "--dtype", "int3"), 2, "invalid choice: 'int3'"),
        ((tiny_folder, sounds, *good, "--int8", "--dtype", "float16"), 2, "--int8 is for a CPU"),
        ((tiny_folder, sounds, *good, "--int8", "--device", "cuda"), 2, "--int8 is for a CPU"),
        ((tiny_folder, sounds, "--output", tmp_path / "taken.jsonl"), 2, "which is a folder"),
        ((tiny_folder, tmp_path / "empty", *good), 1, "error: no audio file in"),
        (("nobody/nothing", sounds, *good), 1, "cannot load the model 'nobody/nothing'"),
        ((tiny_folder, sounds, "--output", tmp_path / "mine.jsonl"), 1, "line 1 of"),
    ]:
        given, _, err = run(capsys, *arguments)
        assert given == status and message in err and "Traceback" not in err
        assert status == 2 or len(err.strip().splitlines()) == 1  # 2: argparse adds the usage
    assert (tmp_path / "mine.jsonl").read_text() == '{"my": "data"}\n'
    # A refused run leaves no empty file.
    assert not good[1].exists()
    # A line without an end that is not a row of this command is not cut off.
    for text in ('{"my": "data"}', '{"file": "x"}\n{"my": '):
        (tmp_path / "mine.jsonl").write_text(text)
        output = ("--output", tmp_path / "mine.jsonl")
        assert "is not a row of" in run(capsys, tiny_folder, sounds, *output)[2]
        assert (tmp_path / "mine.jsonl").read_text() == text
    run(capsys, tiny_folder, sounds, *good)
    given, _, err = run(capsys, "another/model", sounds, *good)
    assert given == 1 and "has the results of the model" in err and "another --output" in err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    given, _, err = run(capsys, tiny_folder, sounds, "--output", "tags.parquet")
    assert given == 1 and "needs pyarrow" in err and 'pip install "modeling-ast[train]"' in err


def test_stopped_by_hand_or_without_memory(tiny_folder, sounds, tmp_path, monkeypatch, capsys):
    for error, message in [
        (KeyboardInterrupt(), "stopped after 0 files; run the same command again to resume"),
        (
            OSError(28, "No space left on device"),
            "No space left on device; run the same command again",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nlong story"),
            "error: CUDA out of memory.; run it again with a smaller --batch-frames",
        ),
    ]:

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(tag, "tag_files", fail)
        output = tmp_path / "tags.jsonl"
        status, _, err = run(capsys, tiny_folder, sounds, "--output", output)
        assert status == 1 and message in err and len(err.strip().splitlines()) == 1


def test_a_label_that_is_no_unicode_fits_into_parquet(tiny_folder, sounds, tmp_path, capsys):
    from pyarrow import parquet

    config = json.loads((tiny_folder / "config.json").read_text())
    config["id2label"]["0"] = "\udc80\x1b"
    (tiny_folder / "config.json").write_text(json.dumps(config))
    output = tmp_path / "tags.parquet"
    assert run(capsys, tiny_folder, sounds, "--output", output, "--top-k", 5)[0] == 1
    rows = parquet.read_table(output).to_pylist()
    assert any(entry["label"] == "\\udc80\x1b" for row in rows for entry in row["labels"])


def test_an_output_that_is_removed_meanwhile(tiny_folder, sounds, tmp_path, capsys, monkeypatch):
    """The rows after it would be lost without a message."""
    output = tmp_path / "tags.jsonl"
    add = Journal.add

    def add_and_remove(self, row):
        add(self, row)
        output.unlink()

    monkeypatch.setattr(Journal, "add", add_and_remove)
    status, _, err = run(capsys, tiny_folder, sounds, "--output", output)
    line = err.splitlines()[-1]
    assert status == 1 and "it was removed or replaced while it was written" in line
    monkeypatch.undo()
    assert run(capsys, tiny_folder, sounds, "--output", output)[0] == 1
    assert [row["file"] for row in rows_of(output)] == ORDER


def test_vectors_beside_the_labels(tiny_folder, sounds, tmp_path, capsys):
    """They are those of AudioTagger, in float32; other kinds are not mixed; a bad file has none."""
    import pyarrow as pa
    from pyarrow import parquet

    write(sounds / "long.wav", 2.3, 4)
    tagger = AudioTagger.from_pretrained(tiny_folder, num_workers=0, embeddings=True)
    for kind, column in (("pooled", "embedding"), ("windows", "window_embeddings")):
        output = tmp_path / f"{kind}.parquet"
        arguments = (tiny_folder, sounds, "--output", output, "--embeddings", kind)
        assert run(capsys, *arguments)[0] == 1
        table = parquet.read_table(output)
        field = table.schema.field(column).type
        vector = field if kind == "pooled" else field.value_type
        # A list without a fixed size, which every pyarrow can read beside rows without one.
        assert pa.types.is_list(vector) and str(vector.value_type) == "float"
        rows = {row["file"]: row for row in table.to_pylist()}
        assert list(rows) == [*ORDER[:5], "long.wav", "z.wav"]
        for name, row in rows.items():
            assert row["embeddings"] == kind
            if row["error"] is not None:
                assert row[column] is None
                continue
            (expected,) = tagger([sounds / name])
            wanted = expected.embedding if kind == "pooled" else expected.embeddings
            np.testing.assert_allclose(row[column], wanted, atol=1e-6)
        assert len(rows["long.wav"][column]) == (36 if kind == "pooled" else 3)
        first = output.read_bytes()
        assert run(capsys, *arguments)[0] == 1 and output.read_bytes() == first
        status, _, err = run(capsys, *arguments[:-2])
        assert status == 1 and f"the same --embeddings ({kind})" in err


def test_vectors_where_all_files_are_bad(tiny_folder, tmp_path, capsys):
    from pyarrow import parquet

    write(tmp_path / "sounds" / "short.wav", 0.01)
    output = tmp_path / "tags.parquet"
    flags = ("--output", output, "--embeddings", "pooled")
    assert run(capsys, tiny_folder, tmp_path / "sounds", *flags)[0] == 1
    (row,) = parquet.read_table(output).to_pylist()
    assert row["embedding"] is None and "160 samples" in row["error"]
