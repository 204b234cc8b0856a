"""Parts of modeling_ast.corpus, without a cluster. Judges: the files that were written."""

import hashlib
import json
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("pyarrow", reason="the extra ray is not installed")

import pyarrow as pa
from pyarrow import parquet

from modeling_ast import AudioTagger, read_audio, workers
from modeling_ast.commands import main
from modeling_ast.corpus import (
    Job,
    KeySet,
    Manifest,
    Resources,
    Source,
    find_source,
    run_job,
    write_shard,
)
from modeling_ast.corpus import decoding as decoding_stage
from modeling_ast.corpus.decoding import Decoder
from modeling_ast.corpus.event_rows import event_schema, event_table
from modeling_ast.corpus.reading import ROWS, read_parquet, read_tar
from modeling_ast.corpus.stages import TagActor
from tests.corpora import (
    RATE,
    add_bad_files,
    encoded,
    sound,
    write_audioset,
    write_folder,
    write_tar,
)


def test_key_sets_say_what_is_missing():
    keys = [f"a/{number} é.wav" for number in range(1000)]
    done = KeySet([keys[:500], keys[700:]])
    assert len(done) == 800 and done.missing(keys) == keys[500:700]
    assert KeySet().missing(keys) == keys and KeySet([[], keys]).missing([]) == []
    assert KeySet([["", "a"]]).missing(["a", "", "b"]) == ["b"]


def test_a_folder_is_listed_as_on_one_machine(tmp_path):
    keys = write_folder(tmp_path / "clips", 3) + add_bad_files(tmp_path / "clips")
    (tmp_path / "clips" / "notes.txt").write_text("no audio")
    source = find_source(tmp_path / "clips")
    assert (source.kind, source.names) == ("files", sorted(keys))
    assert [entry.file for entry in source.skipped] == ["notes.txt"]
    assert source.address(keys[0]) == str(tmp_path / "clips" / keys[0])
    # The same folder, given by an address.
    remote = find_source(f"file://{tmp_path / 'clips'}")
    assert (remote.names, remote.skipped) == (source.names, source.skipped)
    assert remote.address(keys[0]) == f"file://{tmp_path / 'clips' / keys[0]}"


def test_lists_and_patterns(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("b.wav\n\n/x/a.flac\ns3://bucket/c.ogg\nb.wav\n")
    source = find_source(tmp_path / "list.txt")
    assert source.names == ["b.wav", "/x/a.flac", "s3://bucket/c.ogg"] and source.root == ""
    assert find_source(["b.wav", "a.wav", "b.wav"]).names == ["b.wav", "a.wav"]
    for name in ("one.tar", "deep/two.tar", "deep/three.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, ["x"])
    monkeypatch.chdir(tmp_path)
    source = find_source("deep/*.tar")
    assert (source.kind, source.names) == ("tar", ["three.tar", "two.tar"])
    assert source.root == str(tmp_path / "deep")
    assert find_source("one.tar").names == ["one.tar"]
    write_folder(tmp_path / "clips", 2)
    source = find_source("clips/*/*1.flac", whole_keys=True)
    assert (source.kind, source.names) == ("files", ["000/000001.flac"])
    assert source.key(source.names[0]) == "clips/000/000001.flac"
    assert find_source("clips", whole_keys=True).key("a.wav") == "clips/a.wav"
    assert find_source("clips").key("a.wav") == "a.wav"
    assert find_source("clips/000/000001.flac").names == ["000001.flac"]
    assert find_source(f"file://{tmp_path}/*/*.tar").names == ["deep/three.tar", "deep/two.tar"]
    shutil.rmtree("clips")
    assert sorted(find_source(tmp_path).names) == ["deep/three.tar", "deep/two.tar", "one.tar"]


def test_sources_that_cannot_be_meant(tmp_path):
    for source, message in [
        (tmp_path / "none", "no folder at"),
        (tmp_path, "no audio file in .*, no .parquet and no .tar"),
        (tmp_path / "*.tar", "no file at"),
        ("memory://clips", "in the memory of this process"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_source(source)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no file"):
        find_source(tmp_path / "empty.txt")
    write_folder(tmp_path, 2)
    write_tar(tmp_path / "a.tar", ["x"])
    with pytest.raises(ValueError, match=r"several kinds \(2 files, 1 tar\); name one"):
        find_source(tmp_path)


def shard_rows(*paths):
    names = [os.path.basename(path) for path in paths]
    nothing = [None] * len(paths)
    return pa.table([names, nothing, list(map(os.fsencode, paths)), nothing], schema=ROWS)


def read(reader, *paths, done=(), key_column=None):
    """(key, bytes, error) of the clips of some shards."""
    tables = reader(shard_rows(*paths), [KeySet([list(done)])], key_column)
    rows = [row for table in tables for row in table.to_pylist()]
    return [(row["file"], row["audio"], row["error"]) for row in rows]


def test_parquet_with_the_columns_of_audioset(tmp_path):
    ids = [f"-id{number}" for number in range(20)]
    write_audioset(tmp_path / "a.parquet", ids)
    wanted = [encoded(sound(number)) for number in range(20)]
    path = tmp_path / "a.parquet"
    assert read(read_parquet, path) == [(*pair, None) for pair in zip(ids, wanted)]
    # Finished clips are not read again, neither a part of a group nor a whole group.
    rest = read(read_parquet, path, done=ids[:9] + ids[15:])
    assert [key for key, _, _ in rest] == ids[9:15] and rest[0][1] == wanted[9]
    # Without a column of keys, they are the paths of the audio, or file and number.
    write_audioset(tmp_path / "b.parquet", ids, columns=("audio",))
    assert read(read_parquet, tmp_path / "b.parquet")[3][0] == "-id3.flac"
    audio = pa.array([encoded(sound(1))] * 9, pa.binary())
    parquet.write_table(pa.table({"audio": audio}), tmp_path / "c.parquet", row_group_size=4)
    assert [key for key, _, _ in read(read_parquet, tmp_path / "c.parquet")][-1] == "c.parquet#8"
    assert read(read_parquet, path, key_column="human_labels")[0][0] == "['Speech']"


def test_tar_shards_of_webdataset(tmp_path):
    write_tar(tmp_path / "a.tar", ["x/one", "x/two", "three"])
    rows = read(read_tar, tmp_path / "a.tar")
    wanted = ["a.tar/x/one.flac", "a.tar/x/two.flac", "a.tar/three.flac"]
    assert [row[0] for row in rows] == wanted and rows[2][1] == encoded(sound(2))
    assert [row[0] for row in read(read_tar, tmp_path / "a.tar", done=wanted[:2])] == wanted[2:]


def test_a_damaged_shard_is_a_row_and_stops_no_other(tmp_path):
    write_tar(tmp_path / "a.tar", ["one", "two"])
    write_tar(tmp_path / "b.tar", ["three"])
    content = (tmp_path / "a.tar").read_bytes()
    second = content.index(b"two.flac")
    (tmp_path / "a.tar").write_bytes(content[: second + 700])
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    paths = [tmp_path / "a.tar", tmp_path / "gone.tar", tmp_path / "b.tar"]
    rows = read(read_tar, *paths)
    assert [(key, error is None) for key, _, error in rows] == [
        ("a.tar/one.flac", True),
        ("a.tar", False),
        ("gone.tar", False),
        ("b.tar/three.flac", True),
    ]
    assert "a.tar cannot be read to its end" in rows[1][2] and "No such file" in rows[2][2]
    ((key, _, error),) = read(read_parquet, tmp_path / "c.parquet")
    assert key == "c.parquet" and "cannot be read to its end" in error
    write_audioset(tmp_path / "d.parquet", ["a"])
    ((_, _, error),) = read(read_parquet, tmp_path / "d.parquet", key_column="name")
    assert "no column 'name'; it has video_id, audio" in error


def decoded(decoder, rows):
    return {row["file"]: row for table in decoder(rows) for row in table.to_pylist()}


def test_the_decoding_stage_takes_what_data_sets_hold(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(sound(1)))
    wanted = read_audio(path)
    decoder = Decoder(RATE, 400)
    for audio in (
        [str(path)],
        [path.read_bytes()],
        [{"bytes": path.read_bytes(), "path": "x"}],
        [{"bytes": None, "path": str(path)}],
        [f"file://{path}"],
        [{"array": wanted.tolist(), "sampling_rate": RATE}],
    ):
        (row,) = decoded(decoder, pa.table({"file": ["k"], "audio": audio})).values()
        assert row["error"] is None
        np.testing.assert_allclose(np.frombuffer(row["waveform"], np.float32), wanted, atol=1e-7)
    rows = pa.table({"id": [7], "sound": [str(path)]})
    assert list(decoded(Decoder(RATE, 400, "id", "sound"), rows)) == ["7"]


def test_the_decoding_stage_gives_each_clip_its_own_row(tmp_path, monkeypatch):
    """Bad clips have rows too; a long file stays encoded; blocks of waveforms are small."""
    monkeypatch.setattr(decoding_stage, "BLOCK_BYTES", 30_000)
    monkeypatch.setattr(decoding_stage, "LONG_FILE_BYTES", 4 * RATE)
    clips = {f"{number}.flac": encoded(sound(number)) for number in range(6)}
    clips["long.flac"] = encoded(np.zeros(2 * RATE))
    clips["text.wav"] = b"no audio"
    for name, content in clips.items():
        (tmp_path / name).write_bytes(content)
    names = [*clips, "missing.wav", "gone.wav"]
    paths = [tmp_path / name for name in names[:-1]] + [f"file://{tmp_path}/gone.wav"]
    tables = list(Decoder(RATE, 400)(shard_rows(*paths)))
    rows = {row["file"]: row for table in tables for row in table.to_pylist()}
    assert len(tables) > 2 and sum(table.num_rows for table in tables) == len(names)
    for number in range(6):
        wanted = read_audio(tmp_path / f"{number}.flac")
        found = np.frombuffer(rows[f"{number}.flac"]["waveform"], np.float32)
        np.testing.assert_array_equal(found, wanted)
    assert rows["long.flac"]["path"] == os.fsencode(tmp_path / "long.flac")
    assert "cannot be decoded as audio" in rows["text.wav"]["error"]
    assert "no file at" in rows["missing.wav"]["error"]
    assert "no file at" in rows["gone.wav"]["error"]


def test_an_object_store_that_fails_is_asked_again_and_then_stops_the_run(monkeypatch):
    """A network that fails does not make the clip bad."""
    calls = []

    class Broken:
        def cat_file(self, path):
            calls.append(path)
            raise TimeoutError("no answer")

    monkeypatch.setattr(decoding_stage.fsspec.core, "url_to_fs", lambda path: (Broken(), path))
    monkeypatch.setattr(decoding_stage, "PAUSES", (0.0, 0.0))
    rows = pa.table({"file": ["k"], "audio": ["s3://bucket/a.wav"]})
    with pytest.raises(TimeoutError, match="no answer"):
        list(Decoder(RATE, 400)(rows))
    assert len(calls) == 3


@pytest.mark.parametrize("embeddings", ["none", "pooled", "windows"])
def test_an_actor_gives_the_rows_of_one_machine(embeddings, tiny_folder, tmp_path, monkeypatch):
    """Clips one at a time and together; long ones are read from their file."""
    from modeling_ast.tag_rows import settings_of, tag_row, tag_schema, tag_table

    monkeypatch.setattr(decoding_stage, "LONG_FILE_BYTES", 4 * RATE)
    keys = write_folder(tmp_path, 5) + add_bad_files(tmp_path) + ["long.wav"]
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(3 * RATE)), RATE)
    paths = [str(tmp_path / key) for key in keys]
    tagger = AudioTagger.from_pretrained(tiny_folder, "cpu", num_workers=0)
    settings = {"model": "tiny", **settings_of(tagger, embeddings)}
    where = {"resources": Resources("cpu", 1), "batch_frames": None}
    monkeypatch.setattr("modeling_ast.corpus.stages.ray.get", lambda given: given)
    actor = TagActor([tagger], where, settings)
    (table,) = Decoder(RATE, tagger.extractor.window_samples)(shard_rows(*paths))
    found = actor(table)
    tagger.embeddings = embeddings != "none"
    rows = [
        {**tag_row(os.path.basename(path), tags, embeddings), **settings}
        for path, tags in zip(paths, tagger(paths))
    ]
    wanted = tag_table(rows, tag_schema(embeddings)).to_pylist()
    assert found.schema == tag_schema(embeddings) and found.num_rows == len(keys)
    by_key = {row["file"]: row for row in found.to_pylist()}
    for row in wanted:
        twin = by_key[row["file"]]
        assert [entry["label"] for entry in twin["labels"]] == [
            entry["label"] for entry in row["labels"]
        ]
        for name in row.keys() - {"labels", "embedding", "window_embeddings"}:
            assert twin[name] == row[name], name
        for name in row.keys() & {"embedding", "window_embeddings"}:
            if row[name] is None:
                assert twin[name] is None
            else:
                np.testing.assert_allclose(twin[name], row[name], atol=1e-5)


def some_rows(keys, error=None):
    return pa.table({"file": keys, "seconds": [1.5] * len(keys), "error": [error] * len(keys)})


def manifest_of(folder):
    manifest = Manifest(folder, "m", {"padding": "--padding {}"})
    manifest.use(padding="longest")
    return manifest


def test_shards_are_whole_named_by_their_bytes_and_counted_once(tmp_path):
    (report,) = write_shard(some_rows(["b", "a", "c"]), str(tmp_path)).to_pylist()
    content = (tmp_path / report["shard"]).read_bytes()
    assert report["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert (report["rows"], report["bad"], report["seconds"]) == (3, 0, 4.5)
    assert (report["first"], report["last"]) == ("a", "c")
    assert write_shard(some_rows([]), str(tmp_path)).num_rows == 0
    manifest = manifest_of(tmp_path)
    manifest.add(report)
    (bad,) = write_shard(some_rows(["x", "y"], "a reason"), str(tmp_path)).to_pylist()
    manifest.add(bad)
    # Left by a writer that was killed, and by one whose report never came.
    (tmp_path / f"shard-{'0' * 24}.parquet.{'1' * 32}.partial").write_bytes(b"half")
    write_shard(some_rows(["lost"]), str(tmp_path))
    # Not a file of any run.
    (tmp_path / "part-00000.snappy.parquet").write_bytes(b"somebody's")
    manifest.remove_others()
    there = {path.name for path in tmp_path.iterdir()} - {"part-00000.snappy.parquet"}
    assert there == {"manifest.jsonl", report["shard"], bad["shard"]}
    assert (tmp_path / "part-00000.snappy.parquet").exists()
    assert manifest.keys().missing(["a", "b", "c", "x", "y", "z"]) == ["z"]
    assert (manifest.num_rows, manifest.num_bad) == (5, 2)
    lines = manifest.write_bad_list().read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": name, "error": "a reason"} for name in "xy"
    ]


def test_a_manifest_is_resumed_and_guards_what_it_counts(tmp_path):
    manifest = manifest_of(tmp_path)
    with pytest.raises(ValueError, match="another process is writing it"):
        # Locks belong to processes, so that another process must try.
        run_in_another_process(tmp_path)
    (report,) = write_shard(some_rows(["a"]), str(tmp_path)).to_pylist()
    manifest.add(report)
    path = tmp_path / "manifest.jsonl"
    manifest.file.close()
    manifest.lines.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"shard": "shard-')  # killed in the middle of a line
    again = manifest_of(tmp_path)
    assert again.done == {report["shard"]} and path.read_bytes() == whole
    with pytest.raises(ValueError, match="padding 'longest', not 'max_length'"):
        again.use(padding="max_length")
    (tmp_path / report["shard"]).unlink()
    with pytest.raises(ValueError, match=r"1 shards of .* are not there"):
        again.remove_others()
    with pytest.raises(ValueError, match="the results of the model 'm'"):
        Manifest(tmp_path, "another", {})


def run_in_another_process(folder):
    import subprocess
    import sys

    code = f"""
from pathlib import Path
from modeling_ast.corpus import Manifest
Manifest(Path({str(folder)!r}), "m", {{}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(run.stderr.splitlines()[-1])


def test_rows_of_events_keep_odd_names_and_thresholds():
    settings = {"model": "m", "hop": 0.1, "thresholds": {"a": 0.5, "b": 0.7}, "padding": "longest"}
    event = {"onset": 0.1, "offset": 0.3, "label": "\udc80", "score": 0.9}
    stretch = {"onset": 1.0, "offset": None, "reason": "NaN"}
    row = {"file": os.fsdecode(b"\xff.wav"), "seconds": 2.0, "events": [event], "error": None}
    table = event_table([{**row, "bad_stretches": [stretch], **settings}], event_schema(settings))
    (found,) = table.to_pylist()
    assert found["file"] == "\ufffd.wav" and found["events"][0]["label"] == "\\udc80"
    assert found["bad_stretches"] == [stretch] and found["hop"] == 0.1
    assert json.loads(found["thresholds"]) == settings["thresholds"]


def test_what_of_a_cluster_the_models_take(monkeypatch):
    def of(total, *arguments):
        monkeypatch.setattr("modeling_ast.corpus.stages.ray.cluster_resources", lambda: total)
        return Resources.of_cluster(*arguments)

    assert of({"CPU": 64, "GPU": 8}) == Resources("cuda", 8, 1, 1, 55)
    assert of({"CPU": 64, "GPU": 8}, "cpu", None, 4) == Resources("cpu", 12, 4, 0, 15)
    assert of({"CPU": 6}) == Resources("cpu", 4, 1, 0, 1)
    assert of({"CPU": 4}) == Resources("cpu", 2, 1, 0, 1)
    assert of({"CPU": 3}) == Resources("cpu", 1, 1, 0, 1)
    for total, arguments, message in [
        ({"CPU": 8}, ("cuda",), "0 models need a GPU each but the cluster has 0"),
        ({"CPU": 8, "GPU": 2}, (None, 3), "3 models need a GPU each but the cluster has 2"),
        ({"CPU": 8}, ("mps",), "on a cluster give cuda or cpu"),
        ({"CPU": 8}, (None, 7), "7 models of 1 CPUs leave less than two"),
        ({"CPU": 2}, (), "1 models of 1 CPUs leave less than two of the cluster's 2 CPUs"),
    ]:
        with pytest.raises(ValueError, match=message):
            of(total, *arguments)


def test_flags_that_cannot_be_meant(tiny_folder, tmp_path, capsys):
    ray = ("--engine", "ray", "--output", tmp_path / "out")
    for verb, flags, message in [
        ("tag", ("--output", "t.jsonl", "--address", "auto"), "--address is for --engine ray"),
        ("tag", (*ray, "--shard-rows", 0), "--shard-rows is 0; give at least 1"),
        ("tag", (*ray, "--most-bad", 2), "--most-bad is 2.0; give a share from 0 to 1"),
        ("tag", (*ray, "--device", "cuda:1"), "with --engine ray give cpu or cuda"),
        ("tag", (*ray, "--workers", 2), "--workers is for --engine local"),
        ("tag", ("--engine", "ray", "--output", "t.parquet"), "name a folder"),
        ("detect", ("--engine", "ray"), "name it with --output"),
        ("detect", (*ray, "--plot", "a.png"), "takes one FILE, and neither"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main([verb, str(tiny_folder), str(tmp_path), *map(str, flags)])
        assert message in capsys.readouterr().err
    for source, message in [
        (tmp_path / "none", "error: no folder at"),
        ("memory://clips", "error: memory://clips is in the memory of this process"),
    ]:
        assert main(["tag", str(tiny_folder), str(source), *map(str, ray)]) == 1
        assert message in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(tiny_folder, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    flags = ("--engine", "ray", "--output", str(tmp_path / "out"))
    assert main(["tag", str(tiny_folder), str(tmp_path), *flags]) == 1
    assert 'pip install "modeling-ast[ray]"' in capsys.readouterr().err


def test_a_file_that_kills_its_decoder_is_a_row(tmp_path, monkeypatch):
    """Otherwise Ray would give it to one worker after the other."""
    decode = workers.decode_clip

    def deadly(source, *arguments):
        if "deadly" in source.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(source, *arguments)

    monkeypatch.setattr(workers, "decode_clip", deadly)
    write_folder(tmp_path, 3)
    (tmp_path / "deadly.flac").write_bytes(encoded(sound(1)))
    paths = [*sorted(tmp_path.glob("*/*.flac")), tmp_path / "deadly.flac"]
    rows = decoded(Decoder(RATE, 400), shard_rows(*paths))
    assert "killed each process that decoded it" in rows["deadly.flac"]["error"]
    assert [row["error"] for name, row in rows.items() if name != "deadly.flac"] == [None] * 3


def test_keys_that_stand_twice_are_said(tmp_path, monkeypatch, caplog):
    """If clips have the same key, a resumed run may do only one of them."""
    (report,) = write_shard(some_rows(["a", "a", "b"]), str(tmp_path)).to_pylist()
    manifest_of(tmp_path).add(report)
    settings, flags = {"padding": "longest"}, {"padding": "--padding {}"}
    job = Job(lambda rows: rows, "m", settings, flags)
    again = Source("files", "", ["a"])
    with caplog.at_level("WARNING"):
        manifest = run_job(job, again, tmp_path)
    assert manifest.num_rows == 3
    assert "1 rows have the key of another row" in caplog.text
    with pytest.raises(ValueError, match=r"cannot go on with .*: .* the results of the model"):
        run_job(Job(lambda rows: rows, "n", {}, {}), again, tmp_path)
