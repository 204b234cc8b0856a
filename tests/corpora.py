"""Corpora for the tests of modeling_ast.corpus, and their rows by a single machine."""

import io
import json
import tarfile

import numpy as np
import soundfile

RATE = 16000


def sound(number, longest=0.6):
    """Seconds and samples of the clip with this number."""
    rng = np.random.default_rng(number)
    return (0.1 * rng.standard_normal(int(RATE * rng.uniform(0.1, longest)))).astype(np.float32)


def encoded(samples, kind="FLAC"):
    """The bytes of an audio file."""
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format=kind)
    return content.getvalue()


def write_folder(folder, count, first=0):
    """Writes small files into folders of a hundred; returns their keys."""
    keys = []
    for number in range(first, first + count):
        key = f"{number // 100:03d}/{number:06d}.flac"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(encoded(sound(number)))
        keys.append(key)
    return keys


def add_bad_files(folder):
    """Writes two files that cannot be used; returns their keys."""
    (folder / "broken.mp3").write_text("no audio")
    soundfile.write(folder / "short.wav", np.zeros(100), RATE)
    return ["broken.mp3", "short.wav"]


def write_tar(path, names, metadata=True):
    """Writes a shard of WebDataset, with a .json for each clip."""
    with tarfile.open(path, "w") as shard:
        for number, name in enumerate(names):
            members = {f"{name}.flac": encoded(sound(number))}
            if metadata:
                members[f"{name}.json"] = json.dumps({"number": number}).encode()
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def write_audioset(path, ids, columns=("video_id", "audio", "labels", "human_labels")):
    """Writes Parquet with the columns of agkphysics/AudioSet, in groups of seven rows."""
    import pyarrow as pa
    from pyarrow import parquet

    audio = [
        {"bytes": encoded(sound(number)), "path": f"{name}.flac"} for number, name in enumerate(ids)
    ]
    table = {
        "video_id": list(ids),
        "audio": audio,
        "labels": [["/m/09x0r"]] * len(ids),
        "human_labels": [["Speech"]] * len(ids),
    }
    chosen = pa.table({name: table[name] for name in columns})
    parquet.write_table(chosen, path, row_group_size=7)


def rows_of(output):
    """The rows of the shards in the manifest; each key must occur once."""
    from pyarrow import parquet

    lines = (output / "manifest.jsonl").read_text().splitlines()
    names = [json.loads(line)["shard"] for line in lines]
    assert len(set(names)) == len(names)
    assert sorted(path.name for path in output.glob("shard-*")) == sorted(names)
    rows = [row for name in names for row in parquet.read_table(output / name).to_pylist()]
    assert len({row["file"] for row in rows}) == len(rows)
    return {row["file"]: row for row in rows}


def check_equal(rows, tagger, clips):
    """The rows equal those of AudioTagger on this machine: keys, labels, reasons, scores.

    Args:
        rows: By key.
        clips: Key -> path.
    """
    assert rows.keys() == clips.keys()
    for (key, path), expected in zip(clips.items(), tagger(clips.values())):
        row = rows[key]
        assert row["error"] == expected.error, path
        if expected.error is None:
            found = {entry["label"]: entry["score"] for entry in row["labels"]}
            assert found.keys() == expected.labels.keys()
            assert all(abs(found[name] - expected.labels[name]) < 1e-5 for name in found)
            assert abs(row["seconds"] - expected.seconds) < 1e-9
