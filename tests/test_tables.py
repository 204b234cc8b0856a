"""Tables from data sets, spreadsheets and people; each row is used or counted."""

import csv
import json
from pathlib import Path, PurePath

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_ast.training.classes import check_labels, is_exclusive, read_classes
from modeling_ast.training.clips import ClipReader
from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.data_sources import clip_names, load
from modeling_ast.training.table_files import FileFinder

RATE = 16000


def write_clip(path, seconds=0.1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    soundfile.write(path, samples, RATE)


def load_checked(data, **options):
    arguments = DataArguments(str(data), **options)
    loaded = load(arguments)
    classes = read_classes(arguments, loaded.train, loaded.held_out)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    report = loaded.report
    assert report.found == sum(report.used.values()) + len(report.skipped)
    reader = ClipReader(audio_column=arguments.audio_column, root=arguments.root)
    for clips in (loaded.train, loaded.held_out):
        assert all(len(reader(row)) > 0 for row in clips)
    return loaded, [tuple(label) for label in classes], report


@pytest.fixture
def cars(tmp_path):
    """Writes car/car_0.wav to bus/bus_5.wav; returns the rows of their table, without header."""
    lines = []
    for label in ("car", "bus"):
        for index in range(6):
            write_clip(tmp_path / label / f"{label}_{index}.wav")
            lines.append(f"{label}/{label}_{index}.wav,{label}")
    return tmp_path, lines


@pytest.mark.parametrize(
    ("header", "change"),
    [
        ("audio,label", str),
        ("File;Category", lambda text: text.replace(",", ";")),
        ("\ufefffile_name\tClass", lambda text: text.replace(",", "\t")),
        ("path, label", lambda text: text.replace(",", ", ").replace("\n", "\r\n")),
        ('"filename","target"', lambda text: text + "\n\n"),
        ("# made by hand\n# filename,label", str),
        ("path,label", lambda text: text.replace("/", "\\")),
    ],
    ids=["plain", "semicolons", "tabs", "CRLF", "quotes", "comments", "backslashes"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_form_of_a_table_gives_the_same_clips(cars, header, change, encoding):
    folder, lines = cars
    (folder / "all.csv").write_bytes(change("\n".join([header, *lines])).encode(encoding))
    loaded, classes, report = load_checked(folder / "all.csv", eval_share=0.25)
    assert classes == [("bus", "bus"), ("car", "car")] and report.skipped == []
    assert report.used == {"train": 9, "test": 3}
    rows = [*loaded.train, *loaded.held_out]
    (label,) = set(rows[0]) - {"audio"}
    assert all(Path(row["audio"]).parent.name == row[label] for row in rows)


@pytest.mark.parametrize("form", ["list", "data", "columns", "lines"])
def test_every_form_of_json(cars, form):
    folder, lines = cars
    rows = [dict(zip(("wav", "labels"), line.split(","))) for line in lines]
    texts = {
        "list": json.dumps(rows),
        "data": json.dumps({"data": rows}),  # the AST's authors'
        "columns": json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
        "lines": "\n".join(map(json.dumps, rows)),
    }
    path = folder / ("all.jsonl" if form == "lines" else "all.json")
    path.write_text(texts[form])
    _, classes, report = load_checked(path, eval_share=0.25)
    assert [name for _, name in classes] == ["bus", "car"] and report.found == 12


def test_esc50_as_released(tmp_path):
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for index in range(10):
        name = f"{1 + index % 5}-{index}-A-{index % 2}.wav"
        write_clip(tmp_path / "audio" / name)
        rows.append(
            f"{name},{1 + index % 5},{index % 2},{('dog', 'rain')[index % 2]},True,{index},A"
        )
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    table = {"data": tmp_path / "meta" / "esc50.csv", "audio_root": str(tmp_path / "audio")}
    for options in ({"data": tmp_path}, table):
        loaded, classes, report = load_checked(**options, eval_fold=2)
        assert classes == [("dog", "dog"), ("rain", "rain")]
        assert report.used == {"train": 8, "test": 2} and report.skipped == []
        assert set(loaded.held_out["fold"]) == {2} and is_exclusive(DataArguments(), loaded.train)


def test_urban_sound_8k_as_released(tmp_path):
    """Files in a folder for each fold, and a table of the parts of recordings, `fsID`."""
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for index in range(20):
        fold, class_id, recording = 1 + index % 10, index % 2, 1000 + index // 4
        name = f"{recording}-{class_id}-0-{index}.wav"
        write_clip(tmp_path / "audio" / f"fold{fold}" / name)
        label = ("air_conditioner", "dog_bark")[class_id]
        rows.append(f"{name},{recording},{index}.0,{index + 4}.5,1,{fold},{class_id},{label}")
    (tmp_path / "audio" / "fold1" / ".DS_Store").touch()
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    for options in ({}, {"folds": 10}):
        loaded, classes, report = load_checked(tmp_path, eval_fold=10, **options)
        assert [name for _, name in classes] == ["air_conditioner", "dog_bark"]
        assert report.used == {"train": 18, "test": 2} and report.skipped == []
        assert {Path(row["audio"]).parent.name for row in loaded.held_out} == {"fold10"}
    table = tmp_path / "metadata" / "UrbanSound8K.csv"
    _, _, report = load_checked(table, audio_root=str(tmp_path / "audio"), eval_fold=3)
    assert report.used == {"train": 18, "test": 2}
    with pytest.raises(ValueError, match=r"has the 10 folds .*give --folds 10, or --fold-column"):
        load_checked(tmp_path, folds=5, eval_fold=1)
    # The data's own folds divide these recordings; drawn folds would not.
    with pytest.raises(ValueError, match="2 groups of --group-by 'fsID' are both in 'train' and"):
        load_checked(tmp_path, eval_fold=10, group_by="fsID")
    loaded, _, report = load_checked(
        tmp_path, folds=5, eval_fold=2, fold_column="none", group_by="fsID"
    )
    assert report.groups == {"train": 4, "test": 1}
    assert not set(loaded.train["fsID"]) & set(loaded.held_out["fsID"])


@pytest.fixture
def fsd(tmp_path):
    """FSD50K's layout: numbers as names, several labels in a cell, a vocabulary without header."""
    truth = tmp_path / "FSD50K.ground_truth"
    truth.mkdir()
    for part, first in (("dev", 10), ("eval", 90)):
        rows = ["fname,labels,mids,split" if part == "dev" else "fname,labels,mids"]
        for index in range(8):
            name = f"{first + index:05d}" if index else f"{first}000"
            write_clip(tmp_path / f"FSD50K.{part}_audio" / f"{name}.wav")
            label, mid = (("Car", "/m/1"), ("Bus", "/m/2"))[index % 2]
            split = f",{'val' if index > 5 else 'train'}" if part == "dev" else ""
            rows.append(f'{name},"{label},Vehicle","{mid},/m/3"{split}')
        (truth / f"{part}.csv").write_text("\r\n".join(rows) + "\r\n")
    (truth / "vocabulary.csv").write_text("0,Bus,/m/2\n1,Car,/m/1\n2,Vehicle,/m/3\n")
    return tmp_path


def test_fsd50k_as_released(fsd):
    table = fsd / "FSD50K.ground_truth" / "dev.csv"
    loaded, classes, report = load_checked(table, audio_root=str(fsd / "FSD50K.dev_audio"))
    assert classes == [("/m/2", "Bus"), ("/m/1", "Car"), ("/m/3", "Vehicle")]
    assert report.used == {"train": 6, "validation": 2} and report.skipped == []
    assert loaded.train["labels"][:2] == [["Car", "Vehicle"], ["Bus", "Vehicle"]]
    assert report.labels["Vehicle"] == {"train": 6, "validation": 2}
    _, classes, report = load_checked(fsd)
    assert len(classes) == 3 and report.used == {"train": 6, "test": 8}
    assert len(report.skipped) == 2  # the validation clips
    # Also with MIDs, and without the vocabulary.
    loaded, _, _ = load_checked(fsd, label_column="mids")
    assert loaded.train["mids"][0] == ["/m/1", "/m/3"]
    (fsd / "FSD50K.ground_truth" / "vocabulary.csv").unlink()
    assert [name for _, name in load_checked(fsd)[1]] == ["Bus", "Car", "Vehicle"]


SEGMENTS = [
    ("--4gqARaEJE", 0.0, "/t/dd00088"),
    ("-0RWZT-miFs", 10.0, "/m/09x0r,/m/04rlf"),
    ("_9mgOkzm-xg", 20.0, "/t/dd00088"),
    ("Yb6kQ0vUxJA", 30.0, "/m/09x0r,/m/04rlf"),
    ("abcDEF12345", 40.0, "/t/dd00088"),
    ("zZyYxXwWvVu", 50.0, "/m/09x0r,/m/04rlf"),
]
CLASS_LIST = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/04rlf,"Music"
2,/t/dd00088,"Gurgling, bubbling"
"""


def write_segments(path, rows=SEGMENTS, comments=True):
    lines = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=6, num_segs=6, num_unique_labels=3, num_positive_labels=9",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    lines = lines if comments else []
    lines += [f'{name}, {start:.3f}, {start + 10:.3f}, "{labels}"' for name, start, labels in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("comments", [True, False])
def test_audio_sets_segments(tmp_path, comments):
    table = write_segments(tmp_path / "balanced_train_segments.csv", comments=comments)
    (tmp_path / "class_labels_indices.csv").write_text(CLASS_LIST)
    wav = tmp_path / "wav"
    names = ["--4gqARaEJE", "Y-0RWZT-miFs", "_9mgOkzm-xg_20000", "YYb6kQ0vUxJA_30.000_40.000"]
    for name in names:
        write_clip(wav / f"{name}.wav")
    loaded, classes, report = load_checked(table, audio_root=str(wav), eval_share=0.5)
    assert classes[2] == ("/t/dd00088", "Gurgling, bubbling")
    assert report.used == {"train": 2, "test": 2} and len(report.skipped) == 2
    assert report.missing_by_label == {"Gurgling, bubbling": 1, "Speech": 1, "Music": 1}
    found = {row["audio"]["path"] for row in [*loaded.train, *loaded.held_out]}
    assert found == {f"{name}.wav" for name in names}
    report.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert written["missing"] == report.missing_by_label and written["found"] == 6
    with (tmp_path / "out" / "missing_clips.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "labels"],
            ["abcDEF12345", "Gurgling, bubbling"],
            ["zZyYxXwWvVu", "Speech;Music"],
        ]


def test_a_segment_is_cut_out_of_a_whole_video_only(tmp_path):
    """Each second of the video has a different level."""
    rows = [
        ("aaaaaaaaaaa", 2.0, "x"),
        ("bbbbbbbbbbb", 2.0, "y"),
        ("ccccccccccc", 2.0, "x"),
        ("ddddddddddd", 0.0, "y"),
    ]
    table = write_segments(tmp_path / "some_segments.csv", rows)
    video = np.repeat(np.arange(1, 16) / 20, RATE)
    soundfile.write(tmp_path / "aaaaaaaaaaa.wav", video, RATE, "FLOAT")
    soundfile.write(tmp_path / "bbbbbbbbbbb.wav", video[2 * RATE : 12 * RATE], RATE, "FLOAT")
    soundfile.write(tmp_path / "ccccccccccc_2000.wav", video, RATE, "FLOAT")
    soundfile.write(tmp_path / "ddddddddddd.wav", video[: int(10.1 * RATE)], RATE, "FLOAT")
    arguments = DataArguments(str(table), eval_share=0.5)
    loaded = load(arguments)
    reader = ClipReader(root=arguments.root)
    heard = {
        row["audio"]["path"][:3]: reader(row).numpy() for row in [*loaded.train, *loaded.held_out]
    }
    np.testing.assert_array_equal(heard["aaa"], video[2 * RATE : 12 * RATE].astype(np.float32))
    np.testing.assert_array_equal(heard["bbb"], heard["aaa"])
    assert len(heard["ccc"]) == len(video) and len(heard["ddd"]) == int(10.1 * RATE)


def test_segments_of_short_and_of_long_files(tmp_path):
    """Each tenth of a second has a level of its own; (start, end, first and last tenth heard)."""
    levels = np.arange(1, 201) / 400
    soundfile.write(tmp_path / "long.wav", np.repeat(levels, RATE // 10), RATE, "FLOAT")
    soundfile.write(tmp_path / "short.wav", np.repeat(levels[:9], RATE // 10), RATE, "FLOAT")
    wanted = [
        ("short", 0, 0.4, 0, 4),
        ("short", 0.4, 0.9, 4, 9),
        ("short", 0, 0.9, 0, 9),
        ("long", 3, 3.5, 30, 35),
        ("long", 15, 25, 150, 200),
        ("long", 19, 20, 190, 200),
    ]
    lines = [
        f"{name}.wav,{start},{end},{'ab'[i % 2]}" for i, (name, start, end, *_) in enumerate(wanted)
    ]
    none = ["long.wav,3,1,a", "long.wav,-1,1,a", "long.wav,2,2,b"]
    path = tmp_path / "segments.csv"
    path.write_text("\n".join(["file,start_seconds,end_seconds,label", *lines, *none]))
    loaded, _, report = load_checked(path, eval_share=0.5)
    skipped = [reason for _, reason in report.skipped]
    assert len(skipped) == 3 and all("row with a segment from" in reason for reason in skipped)
    reader = ClipReader(root=tmp_path)
    heard = {
        (PurePath(row["audio"]["path"]).stem, row["audio"]["start"], row["audio"]["end"]): reader(
            row
        )
        for clips in (loaded.train, loaded.held_out)
        for row in clips
    }
    for name, start, end, first, last in wanted:
        clip = heard[name, start, end].numpy()
        np.testing.assert_allclose(clip, np.repeat(levels[first:last], RATE // 10), atol=1e-6)
    assert len({reader.name(row) for row in [*loaded.train, *loaded.held_out]}) == len(wanted)
    for clips in (loaded.train, loaded.held_out):
        assert list(clip_names(clips, reader)) == [reader.name(row) for row in clips]
    with pytest.raises(
        ValueError, match=r"from 30 to 31 s is behind the end of the file, which has 20\.00"
    ):
        reader({"audio": {"path": str(tmp_path / "long.wav"), "start": 30.0, "end": 31.0}})
    path.write_text(
        "\n".join(["file,start_seconds,end_seconds,label", *lines[:-1], "long.wav,18,20,b"])
    )
    arguments = DataArguments(str(path), eval_share=0.5)
    assert load(arguments).fingerprint(arguments) != loaded.fingerprint(arguments)


def test_a_column_of_splits(cars):
    folder, lines = cars
    cells = ["train"] * 4 + ["Test"] * 2
    rows = [f"{line},{cell}" for line, cell in zip(lines, 2 * cells)]
    path = folder / "all.csv"
    for header in ("file,label,split", "file,label,Split"):
        path.write_text("\n".join([header, *rows]))
        report = load_checked(path)[2]
        assert report.used == {"train": 8, "test": 4}
    for cell in ("holdout", ""):
        path.write_text("\n".join(["file,label,split", *rows[:-1], f"{lines[-1]},{cell}"]))
        with pytest.raises(
            ValueError, match=f"has '{cell}' in the column 'split'; give train, val"
        ):
            load_checked(path, eval_share=0.5)
    path.write_text("\n".join(["file,label,split", *(f"{line},x" for line in lines)]))
    _, _, report = load_checked(path, eval_share=0.5)
    assert sum(report.used.values()) == 12
    assert any("'split' of " in warning and "is not used" in warning for warning in report.warnings)


def test_tables_of_splits_that_have_a_column_of_splits_too(cars):
    folder, lines = cars
    train = [
        f"{line},{split}" for line, split in zip(lines[:4] + lines[6:10], 4 * ["train", "test"])
    ]
    (folder / "train.csv").write_text("\n".join(["file,label,split", *train]))
    (folder / "test.csv").write_text(
        "\n".join(["file,label,split", *(f"{line},test" for line in lines[10:])])
    )
    _, _, report = load_checked(folder)
    assert report.found == 10 and report.used == {"train": 4, "test": 6}
    (folder / "test.csv").write_text("\n".join(["file,label", *lines[10:]]))
    with pytest.raises(
        ValueError, match=r"test\.csv has rows of a split that another table has too"
    ):
        load_checked(folder)
    (folder / "train.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"two tables of the split 'train', train\.csv and train\.json"
    ):
        load_checked(folder)


def test_the_line_that_excel_reads(cars):
    folder, lines = cars
    path = folder / "all.csv"
    path.write_text(
        "\r\n".join(["sep=;", "file;label", *(line.replace(",", ";") for line in lines)])
    )
    assert sum(load_checked(path, eval_share=0.5)[2].used.values()) == 12


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a"], ["b"]], r"holds \['a'\], \['b'\]; labels must all be names"),
        ([{"a": 1}, {"a": 2}], "labels must all be names"),
        ([True, False], "holds False, True; labels must all be names"),
        ([0, 3_000_000], "class indices from 0 to at most 99999"),
    ],
)
def test_what_cannot_be_a_label(cars, labels, message):
    folder, _ = cars
    rows = [
        {
            "file": f"car/car_{index}.wav",
            "label": labels if isinstance(labels[0], list) else labels[index % 2],
        }
        for index in range(6)
    ]
    (folder / "a.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        load_checked(folder / "a.json", eval_share=0.5)


def test_a_label_of_two_halves_is_whole(cars):
    """JSON writes a character beyond 16 bits as two escapes."""
    folder, _ = cars
    rows = [
        {"file": f"{label}/{label}_{index}.wav", "label": label.replace("car", "\U0001f697")}
        for label in ("car", "bus")
        for index in range(6)
    ]
    (folder / "all.json").write_text(json.dumps(rows))
    _, classes, _ = load_checked(folder / "all.json", eval_share=0.5)
    assert [name for _, name in classes] == ["bus", "\U0001f697"]


def test_where_the_files_are(tmp_path):
    for name in ("a/one.wav", "a/two.flac", "b/two.wav", "c/10.wav", "c/10.flac", "x.y.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    finder = FileFinder(tmp_path)

    def path_of(name):
        found = finder.find(name)
        return found.path if found else finder.reason

    assert path_of("a/one.wav") == path_of("one.wav") == path_of("one") == "a/one.wav"
    assert path_of("a\\one.wav") == path_of("a/one") == "a/one.wav"
    assert path_of("two").startswith("several files have this name: a/two.flac, b/two.wav")
    assert path_of("10") == "c/10.flac" and path_of("c/10.wav") == "c/10.wav"
    assert path_of("x.y") == "x.y.wav" and path_of("zip://a::b") == "zip://a::b"
    # A file with this name in another folder may be another clip.
    assert path_of("b/one.wav") == path_of("gone") == f"no such file in {tmp_path}"
    assert path_of("") == "row without a file name"
    assert FileFinder(tmp_path, prefix="/data").find("one").path == "/data/a/one.wav"


def test_rows_that_cannot_be_used_are_counted(cars):
    folder, lines = cars
    write_clip(folder / "car" / "film.wav")
    (folder / "car" / "film.wav").rename(folder / "car" / "film.m4a")
    extra = ["car/film.m4a,car", "car/gone.wav,car", "car/car_0.wav,", ",bus", "car/car_1.wav,bus"]
    path = folder / "all.csv"
    path.write_text("\n".join(["file,label", *lines, *extra]))
    _, _, report = load_checked(path, eval_share=0.25)
    assert report.used == {"train": 9, "test": 4} and report.found == 17
    reasons = [reason for _, reason in report.skipped]
    assert "ffmpeg -i NAME.m4a" in reasons[0] and "no such file in" in reasons[1]
    assert reasons[2:] == ["row without a label", "row without a file name"]
    assert report.missing_by_label == {"car": 1, "bus": 1}
    warning, _ = report.warnings  # the other one: few clips are held out
    assert warning.startswith("clips in more than one row: 1 (1 with different labels)")
    assert "'car/car_1.wav'" in warning
    assert "missing by label: car 1; bus 1" in report.lines()


def test_two_spellings_of_a_file_are_one_clip(cars):
    folder, lines = cars
    (folder / "link.wav").symlink_to(folder / "car" / "car_1.wav")
    extra = ["./car/car_0.wav,car", "car_0,car", "link.wav,car", "https://x.org/a.wav,car"]
    (folder / "all.csv").write_text("\n".join(["file,label", *lines, *extra]))
    loaded = load(DataArguments(str(folder / "all.csv"), eval_share=0.25))
    (warning,) = (text for text in loaded.report.warnings if "more than one row" in text)
    assert warning.startswith("clips in more than one row: 2, such as 'car/car_0.wav'; if a clip")


def test_two_segments_of_a_video_are_two_clips(tmp_path):
    """With a file of each, or cut out of the file of the whole video."""
    own, whole = "aaaaaaaaaaa", "bbbbbbbbbbb"
    rows = [(own, 10.0, "x"), (own, 20.0, "y"), (whole, 10.0, "x"), (whole, 20.0, "y")]
    table = write_segments(tmp_path / "some_segments.csv", rows)
    for name in (f"{own}_10", f"{own}_20", whole):
        write_clip(tmp_path / f"{name}.wav")
    report = load(DataArguments(str(table), eval_share=0.5)).report
    assert sum(report.used.values()) == 4
    assert not any("more than one row" in text for text in report.warnings)
    write_segments(table, [*rows, (whole, 10.0, "y")])
    report = load(DataArguments(str(table), eval_share=0.5)).report
    (warning,) = (text for text in report.warnings if "more than one row" in text)
    assert warning.startswith("clips in more than one row: 1 (1 with different labels), such as")


def test_a_null_in_the_place_of_a_file_is_counted(cars):
    folder, lines = cars
    rows = [dict(zip(("file", "label"), line.split(","))) for line in lines]
    path = folder / "all.json"
    path.write_text(json.dumps([*rows, {"file": None, "label": "car"}, {"label": "bus"}]))
    _, _, report = load_checked(path, eval_share=0.25)
    assert report.used == {"train": 9, "test": 3} and report.found == 14
    assert report.skipped == [("", "row without a file name")] * 2


def test_labels_counted_from_1(cars):
    folder, lines = cars
    numbers = [line.replace(",car", ",1").replace(",bus", ",2") for line in lines]
    path = folder / "all.csv"
    path.write_text("\n".join(["file,target", *numbers]))
    loaded, classes, report = load_checked(path, eval_share=0.25)
    assert classes == [("1", "1"), ("2", "2")] and set(loaded.train["target"]) == {"1", "2"}
    assert report.warnings[0].startswith("the labels are counted from 1 (1 to 2), not from 0")
    (folder / "names.csv").write_text("index,display_name\n0,car\n1,bus\n")
    with pytest.raises(ValueError, match=r"numbers 1 to 2, but the 2 labels .*from 0; subtract 1"):
        load_checked(path, eval_share=0.25, label_csv=str(folder / "names.csv"))
    zero = [line.replace(",car", ",0").replace(",bus", ",1") for line in lines]
    path.write_text("\n".join(["file,target", *zero]))
    _, classes, report = load_checked(path, eval_share=0.25, label_csv=str(folder / "names.csv"))
    assert [name for _, name in classes] == ["car", "bus"] == sorted(report.labels)[::-1]


@pytest.mark.parametrize(
    ("column", "cells", "wanted"),
    [
        ("labels", ("car;vehicle", "bus"), [["car", "vehicle"], ["bus"]]),
        ("labels", ("car, vehicle", "bus, bus"), [["car", "vehicle"], ["bus"]]),
        ("tags", ("car|vehicle", "bus"), [["car", "vehicle"], ["bus"]]),
        ("labels", ("['car', 'a,b']", "[]"), [["car", "a,b"], []]),
        ("label", ('["car"]', '["bus", "big"]'), [["car"], ["bus", "big"]]),
        ("label", ("car, old", "bus"), ["car, old", "bus"]),
    ],
)
def test_several_labels_in_a_cell(cars, column, cells, wanted):
    folder, _ = cars
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", column])
        writer.writerows([f"car/car_{index}.wav", cells[index % 2]] for index in range(6))
    loaded, _, report = load_checked(folder / "all.csv", eval_share=0.34, label_column=column)
    got = {row["audio"]: row[column] for row in [*loaded.train, *loaded.held_out]}
    assert [got["car/car_0.wav"], got["car/car_1.wav"]] == wanted
    asked = "if they hold several, give --label-separator ','"
    assert any(asked in warning for warning in report.warnings) == ("old" in cells[0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "sound,label\nx,y\n", r"columns \['sound', 'label'\], but none with a usual"),
        ("a.csv", "file,label\n", "has no rows below its header"),
        ("a.csv", "", "has no rows below its header"),
        (
            "a.csv",
            "file,label\nx.wav,y\n",
            r"1 rows but no clip that can be used .'x.wav': no such",
        ),
        ("a.csv", "file,label\ncar/car_0.wav,a,b\n", "3 cells in line 2 but 2 in its header"),
        ("a.csv", "file,file\na,b\n", "two columns of the name 'file'"),
        (
            "a.csv",
            'file,label\n"car/car_0.wav,a\n',
            "cannot be read as a table .line 2: unexpected",
        ),
        (
            "a.csv",
            "file,label\ncar/car_0.wav,caf\xe9\n",
            r"line 2, which would be '.*café' in the enc",
        ),
        ("a.csv", "file,label\n\0,b\n", "zero bytes"),
        ("a.json", "{", "cannot be read as JSON .line 1"),
        ("a.json", "[1, 2]", "has no rows such as"),
        (
            "a.json",
            r'[{"file": "car/car_0.wav", "label": "\ud800dog"}]',
            r"has a text with half of a character, near .*\\ud800dog",
        ),
        ("a.jsonl", '{"file": "car/car_0.wav"}\n{"file"\n', "cannot be read as JSON .line 2"),
        (
            "a.jsonl",
            '{"file": "car/car_0.wav", "label": 1}\n{"file": "car/car_1.wav", "label": "x"}',
            "values of several types in the column 'label'",
        ),
        ("a.csv", "YTID,start_seconds,end_seconds\na,b,c\n", "must have numbers in start_seconds"),
        ("a.xlsx", "PK", "is not a data set; give one of"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(cars, name, text, message):
    folder, _ = cars
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        load_checked(folder / name, eval_share=0.5)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_an_audio_root_that_is_none(cars):
    folder, lines = cars
    (folder / "all.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(ValueError, match=r"--audio-root is 'nowhere', which is not a folder on"):
        load_checked(folder / "all.csv", audio_root="nowhere", eval_share=0.5)


def test_names_that_are_not_in_the_audio_root(cars):
    folder, _ = cars
    (folder / "far.csv").write_text("file,label\n7,car\n")
    with pytest.raises(ValueError, match="give the folder of the files as --audio-root"):
        load_checked(folder / "far.csv", eval_share=0.5)
    with pytest.raises(ValueError, match="compare the names in the table with those in this"):
        load_checked(folder / "far.csv", audio_root=str(folder), eval_share=0.5)


def test_a_metadata_table_as_datasets_has_it(cars):
    folder, lines = cars
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines[:4], *lines[6:9]]))
    assert load_checked(folder, eval_share=0.3)[2].found == 7
    # This table does not describe the data, so the folders are the labels.
    (folder / "metadata.csv").write_text("recorder,gain\nx,1\n")
    assert load_checked(folder, eval_share=0.3)[2].used == {"train": 8, "test": 4}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([f"car/car_{index}.wav" for index in range(6)]),
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        ),
        max_size=8,
    ),
    dialect=st.sampled_from(["excel", "excel-tab", "unix"]),
)
def test_any_labels_in_a_table_are_read_or_refused(tmp_path_factory, rows, dialect):
    folder = tmp_path_factory.getbasetemp() / "hypothesis"
    for name in {name for name, _ in rows}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    folder.mkdir(exist_ok=True)
    path = folder / "all.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, dialect).writerows([("file", "label"), *rows])
    check_read_or_refused(path)


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=120)
    | st.text(alphabet="file,label\n\"\t;#01.'[]{}:x", max_size=80).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["file", "label", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode()),
    suffix=st.sampled_from([".csv", ".json", ".jsonl", ".tsv"]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    check_read_or_refused(path)


def check_read_or_refused(path):
    """The commands turn a ValueError into one line; any other error would be a traceback."""
    arguments = DataArguments(str(path), eval_share=0.5)
    try:
        loaded = load(arguments)
        classes = read_classes(arguments, loaded.train, loaded.held_out)
        check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    except ValueError as error:
        assert str(error)
    else:
        report = loaded.report
        assert report.found == sum(report.used.values()) + len(report.skipped)
