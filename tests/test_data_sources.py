"""data_sources.py: each form of DATA gives the same clips, labels and classes."""

import csv
import shutil

import numpy as np
import pytest
import soundfile
from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value

from examples.embedded_data import write_data_set
from modeling_ast import read_audio
from modeling_ast.training.clips import ClipReader
from modeling_ast.training.data_sources import (
    DataArguments,
    clip_names,
    is_exclusive,
    label_column,
    load,
    load_data,
    load_part,
    read_classes,
)

WORDS = ("cat", "dog", "owl")


@pytest.fixture
def sounds(tmp_path):
    """Twelve files in folders named after their labels; each has a fold from 1 to 4."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        word = WORDS[index % 3]
        name = f"clips/{word}/{index}.wav"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(800), 16000)
        rows.append({"file": name, "category": word, "target": index % 3, "fold": 1 + index // 3})
    return tmp_path, rows


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_csv_with_paths_and_folds(sounds):
    folder, rows = sounds
    arguments = DataArguments(write_csv(folder / "all.csv", rows), audio_column="file", eval_fold=2)
    train, held_out = load_data(arguments)
    assert held_out["file"][:] == [row["file"] for row in rows if row["fold"] == 2]
    assert train["file"][:] == [row["file"] for row in rows if row["fold"] != 2]
    assert label_column(arguments, train) == "category" and is_exclusive(arguments, train)
    assert read_classes(arguments, train, held_out) == [(word, word) for word in WORDS]
    wave = ClipReader(audio_column="file", root=arguments.root)(held_out[0])
    np.testing.assert_array_equal(wave, read_audio(folder / held_out[0]["file"]))
    arguments.label_column = "target"
    assert read_classes(arguments, train) == [("0", "0"), ("1", "1"), ("2", "2")]


def test_other_clips_labels_and_parts_have_another_fingerprint(sounds):
    folder, rows = sounds
    found = set()
    tables = {
        "as it is": rows,
        "another label": [{**rows[0], "category": "dog"}, *rows[1:]],
        "another clip": [rows[0], {**rows[1], "file": rows[4]["file"]}, *rows[2:]],
        "one less": rows[1:],
    }
    for name, table in tables.items():
        path = write_csv(folder / f"{name}.csv", table)
        for fold in (1, 2):
            arguments = DataArguments(path, audio_column="file", eval_fold=fold)
            prints = {load(arguments).fingerprint(arguments) for _ in range(2)}
            assert len(prints) == 1
            found |= prints
    assert len(found) == 8
    stream = load(arguments).train.to_iterable_dataset()
    (folder / "moved").mkdir()
    for place in (folder, folder / "moved"):
        shutil.copytree(folder / "clips", place / "sounds")
    here, moved = (
        DataArguments(str(p / "sounds"), eval_share=0.5) for p in (folder, folder / "moved")
    )
    assert load(here).fingerprint(here) == load(moved).fingerprint(moved)
    assert load(arguments)._replace(train=stream).fingerprint(arguments) is None


def test_clips_of_a_parquet_file_are_named_without_their_audio(tmp_path):
    data = write_data_set(tmp_path / "data", num_train=14, num_test=2, seconds=1.0, progress=False)
    _, held_out = load_data(DataArguments(str(data)))
    reader = ClipReader()
    assert list(clip_names(held_out, reader)) == [reader.name(row) for row in held_out]


def test_a_directory_of_one_csv_a_split(sounds):
    folder, rows = sounds
    write_csv(folder / "train.csv", rows[:9])
    write_csv(folder / "test.csv", rows[9:])
    train, held_out = load_data(DataArguments(str(folder), audio_column="file"))
    assert (train["file"][:], held_out["file"][:]) == (
        [row["file"] for row in rows[:9]],
        [row["file"] for row in rows[9:]],
    )


def test_one_part_or_several_splits(sounds):
    folder, rows = sounds
    for name, part in (("train", rows[:4]), ("test", rows[4:6]), ("validation", rows[6:])):
        write_csv(folder / f"{name}.csv", part)
    arguments = DataArguments(
        str(folder), audio_column="file", train_split="train+validation", eval_split="absent"
    )
    part = load_part(arguments, held_out=False)
    assert part["file"][:] == [row["file"] for row in rows[:4] + rows[6:]]
    with pytest.raises(ValueError, match="but not 'absent'"):
        load_part(arguments, held_out=True)


def test_one_folder_per_label(sounds):
    folder, _ = sounds
    arguments = DataArguments(str(folder / "clips"), eval_share=0.25)
    train, held_out = load_data(arguments)
    paths = [*train["audio"][:], *held_out["audio"][:]]
    assert (len(train), len(held_out), len(set(paths))) == (9, 3, 12)
    assert all(f"/{row['label']}/" in row["audio"] for row in [*train, *held_out])
    assert read_classes(arguments, train, held_out) == [(word, word) for word in WORDS]
    again, _ = load_data(arguments)
    assert again["audio"][:] == train["audio"][:]


def test_parquet_with_class_labels(sounds):
    folder, rows = sounds
    features = Features(
        {
            "audio": {"bytes": Value("binary"), "path": Value("string")},
            "label": ClassLabel(names=["z", "a", "m"]),
        }
    )
    content = [(folder / row["file"]).read_bytes() for row in rows]
    columns = {
        "audio": [{"bytes": piece, "path": None} for piece in content],
        "label": [row["target"] for row in rows],
    }
    Dataset.from_dict(columns, features=features).to_parquet(folder / "all.parquet")
    arguments = DataArguments(str(folder / "all.parquet"), eval_share=0.5)
    train, held_out = load_data(arguments)
    assert read_classes(arguments, train) == [("z", "z"), ("a", "a"), ("m", "m")]
    assert is_exclusive(arguments, held_out)
    ClipReader()(train[0])


def test_several_names_in_a_cell_or_in_a_list(sounds):
    folder, rows = sounds
    rows = [{"audio": row["file"], "labels": f"{row['category']}; loud"} for row in rows]
    arguments = DataArguments(
        write_csv(folder / "all.csv", rows), eval_share=0.5, label_separator=";"
    )
    train, held_out = load_data(arguments)
    assert not is_exclusive(arguments, train)
    assert all(row["labels"][1] == "loud" and row["labels"][0] in WORDS for row in train)
    classes = [(word, word) for word in ("cat", "dog", "loud", "owl")]
    assert read_classes(arguments, train, held_out) == classes
    lists = Dataset.from_dict(
        {"audio": ["x.wav"] * 2, "labels": [["owl"], ["cat", "loud"]]},
        features=Features({"audio": Value("string"), "labels": List(Value("string"))}),
    )
    lists.to_parquet(folder / "lists.parquet")
    arguments = DataArguments(str(folder / "lists.parquet"), eval_share=0.5)
    splits = load_data(arguments)
    assert not is_exclusive(arguments, splits[0])
    assert [name for name, _ in read_classes(arguments, *splits)] == ["cat", "loud", "owl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"has the splits \['train'\] but not 'test'"),
        ({"eval_fold": 7}, r"--eval-fold is 7 but the column 'fold' has the folds \[1, 2, 3, 4\]"),
        ({"eval_fold": 1, "fold_column": "part"}, "no column 'part'; give --fold-column one of"),
        ({"eval_share": 1.5}, "--eval-share is 1.5; it must be between 0 and 1"),
        ({"eval_share": 0.5, "eval_fold": 1}, "both say what is held out; give one"),
        ({"eval_share": 0.5, "audio_column": "sound"}, "no column 'sound'; give the column"),
        (
            {"eval_share": 0.5, "audio_column": "gain"},
            "column 'gain' holds float64; give",
        ),
        ({"eval_share": 0.5, "label_column": "word"}, "no column 'word'; give --label-column"),
        ({"eval_share": 0.5, "label_column": "gain"}, "column 'gain' holds 0.5; labels must all"),
    ],
)
def test_mistakes(sounds, changes, message):
    folder, rows = sounds
    path = write_csv(folder / "all.csv", [{**row, "gain": 0.5} for row in rows])
    arguments = DataArguments(path, **{"audio_column": "file", **changes})
    with pytest.raises(ValueError, match=message):
        read_classes(arguments, *load_data(arguments))


def test_more_mistakes(sounds):
    folder, rows = sounds
    with pytest.raises(ValueError, match=r"0\.wav is one sound, not a data set; give a folder"):
        load_data(DataArguments(str(folder / rows[0]["file"])))
    path = write_csv(folder / "all.csv", [{"audio": row["file"], "x": 1} for row in rows])
    arguments = DataArguments(path, eval_share=0.5)
    with pytest.raises(ValueError, match="none of the columns labels, label, category, target"):
        read_classes(arguments, *load_data(arguments))
    with pytest.raises(ValueError, match=r"cannot read the label file nowhere.csv .*give the path"):
        read_classes(DataArguments(path, label_csv="nowhere.csv"))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="--loss is 'mse'; it must be one of auto, bce, cross_"):
        DataArguments("data", loss="mse")


@pytest.mark.parametrize("place", ["beside the clips", "elsewhere"])
def test_a_class_list_of_a_spreadsheet(sounds, place):
    """A list with a byte order mark, semicolons, no MIDs, and a class without clips."""
    folder, _ = sounds
    words = ("owl", "fox", "dog", "cat")
    path = folder / ("clips" if place == "beside the clips" else "") / "class_labels_indices.csv"
    text = "\ufeffindex;display_name\r\n" + "".join(f"{i};{w}\r\n" for i, w in enumerate(words))
    path.write_text(text, encoding="utf-8")
    arguments = DataArguments(str(folder / "clips"), eval_share=0.25)
    if place == "elsewhere":
        arguments.label_csv = str(path)
    splits = load_data(arguments)
    assert read_classes(arguments, *splits) == [(word, word) for word in words]


def rows_of(clips):
    return [dict(row) for row in clips]


def test_a_stream_has_the_rows_of_the_stored_data(sounds):
    folder, rows = sounds
    for row in rows:
        row["tags"] = f"{row['category']}; loud"
    path = write_csv(folder / "all.csv", rows)
    common = {"audio_column": "file", "label_column": "tags", "label_separator": ";"}
    parts = [
        load_data(DataArguments(path, eval_fold=2, streaming=streaming, **common))
        for streaming in (False, True)
    ]
    assert isinstance(parts[1][0], IterableDataset) and isinstance(parts[1][1], Dataset)
    for stored, streamed in zip(*parts):
        assert rows_of(stored) == rows_of(streamed) and len(rows_of(stored)) > 0
        assert streamed.features["tags"] == List(Value("string"))
    arguments = DataArguments(path, streaming=True, **common)
    assert not is_exclusive(arguments, parts[1][0])
    with pytest.raises(ValueError, match=r"classes of a stream are unknown.*--label-csv"):
        read_classes(arguments, *parts[1])


def test_a_stream_of_audio_sets_parquet(tmp_path):
    folder = write_data_set(
        tmp_path / "data", num_train=14, num_test=14, seconds=1.0, progress=False
    )
    stored = load_data(DataArguments(str(folder), "balanced"))
    streamed = load_data(DataArguments(str(folder), "balanced", streaming=True))
    for first, second in zip(stored, streamed):
        assert rows_of(first) == rows_of(second)
    arguments = DataArguments(str(folder), "balanced", streaming=True)
    assert read_classes(arguments, *streamed) == read_classes(arguments, *stored)


def test_a_stream_of_folders(sounds):
    folder, _ = sounds
    for split in ("train", "test"):
        shutil.copytree(folder / "clips", folder / "both" / split)
    stored = load_data(DataArguments(str(folder / "both")))
    streamed = load_data(DataArguments(str(folder / "both"), streaming=True))
    assert {row["label"] for row in streamed[0]} == set(WORDS)
    for first, second in zip(stored, streamed):
        assert rows_of(first) == rows_of(second)


def test_a_directory_written_anew_is_read_anew(tmp_path):
    """The cache of datasets identifies a local directory only by its last name."""
    first, second = tmp_path / "a" / "data", tmp_path / "b" / "data"
    for folder, clips in ((first, 14), (second, 28)):
        write_data_set(folder, num_train=clips, num_test=14, seconds=1.0, progress=False)
        train, _ = load_data(DataArguments(data=str(folder)))
        assert len(train) == clips
    write_data_set(first, num_train=15, num_test=14, seconds=1.0, progress=False, force=True)
    assert len(load_data(DataArguments(data=str(first)))[0]) == 15


def test_a_stream_cannot_be_drawn_from(sounds):
    folder, rows = sounds
    path = write_csv(folder / "all.csv", rows)
    arguments = DataArguments(path, audio_column="file", eval_share=0.2, streaming=True)
    with pytest.raises(ValueError, match="with --streaming, hold out a split or a fold"):
        load_data(arguments)


def test_a_split_that_is_there_is_judged_in_others_data_too(sounds):
    """As in a user's own folders; a share of the training clips would score too high."""
    folder, rows = sounds
    for split in ("train", "test"):
        Dataset.from_list(rows).to_parquet(folder / "stored" / f"{split}-00000-of-00001.parquet")
    options = {"audio_column": "file", "eval_share": 0.25}
    loaded = load(DataArguments(str(folder / "stored"), **options))
    assert loaded.report.used == {"train": 12, "test": 12}
    (warning,) = loaded.report.warnings
    assert "has the split 'test', which is held out; --eval-share 0.25 is not used" in warning
    # If the flag is given, a part of the training clips is held out nevertheless.
    loaded = load(DataArguments(str(folder / "stored"), eval_split="train", **options))
    assert loaded.report.used == {"train": 9, "test": 3} and loaded.report.warnings == []


def test_clips_set_aside_for_validation(sounds):
    """It is taken from the training clips, with each label in its share; held-out clips stay."""
    folder, rows = sounds
    path = write_csv(folder / "all.csv", rows)
    plain = load(DataArguments(path, audio_column="file", eval_share=0.25))
    assert plain.validation is None and plain.validation_name is None
    loaded = load(DataArguments(path, audio_column="file", eval_share=0.25, validation_share=0.3))
    assert loaded.held_out["file"][:] == plain.held_out["file"][:]
    assert loaded.report.used == {"train": 6, "validation": 3, "test": 3}
    assert sorted(loaded.validation["category"][:]) == list(WORDS)
    files = [*loaded.train["file"][:], *loaded.validation["file"][:]]
    assert sorted(files) == sorted(plain.train["file"][:])
    assert loaded.report.labels["cat"] == {"train": 2, "validation": 1, "test": 1}
