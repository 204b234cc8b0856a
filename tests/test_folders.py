"""A folder for each label: every file is used or counted, for all names of files and folders."""

import os

import numpy as np
import pytest
import soundfile

from modeling_ast.audio_files import HIDDEN_FOLDER
from modeling_ast.training.classes import check_labels, read_classes
from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.data_sources import load


@pytest.fixture
def make(tmp_path):
    """Writes short clips with these names, in the folder that it returns."""
    content = tmp_path / "clip.wav"
    soundfile.write(content, 0.1 * np.random.default_rng(0).standard_normal(1600), 16000)

    def write(*names):
        folder = tmp_path / "sounds"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.read_bytes())
        return folder

    return write


def clips_of(*labels, number=6, split=""):
    return [f"{split}{label}/{index}.wav" for label in labels for index in range(number)]


def check(loaded, arguments):
    """The next steps of the commands: classes and warnings."""
    splits = [part for part in (loaded.train, loaded.held_out) if part is not None]
    classes = read_classes(arguments, *splits)
    check_labels(loaded.report, classes, loaded.train_name, loaded.held_out_name)
    report = loaded.report
    assert report.found == sum(report.used.values()) + len(report.skipped)
    return [label.name for label in classes], report


def load_checked(folder, **options):
    arguments = DataArguments(str(folder), **options)
    loaded = load(arguments)
    names, report = check(loaded, arguments)
    return loaded, names, report


@pytest.mark.parametrize(
    "labels",
    [
        ("train", "car", "bus"),
        ("train horn", "train whistle", "car", "bus"),
        ("test tone", "dev kit", "car"),
        ("train", "test"),
        ("validation", "eval", "data"),
        ("Train", "TEST", "car"),
    ],
)
def test_a_folder_is_a_label_whatever_its_name(make, labels):
    folder = make(*clips_of(*labels))
    loaded, names, report = load_checked(folder, eval_share=0.25)
    assert names == sorted(labels) and report.skipped == []
    rows = [*loaded.train, *loaded.held_out]
    assert len({row["audio"] for row in rows}) == len(rows) == report.found == 6 * len(labels)
    assert all(row["audio"].split("/")[-2] == row["label"] for row in rows)
    assert sum(report.labels["train" if "train" in labels else labels[0]].values()) == 6


def test_the_names_of_files_say_no_splits(make):
    folder = make("car/training day 3.wav", "car/mic test 2.wav", *clips_of("bus", "car"))
    loaded, _, report = load_checked(folder, eval_share=0.5)
    assert report.found == 14 == len(loaded.train) + len(loaded.held_out)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_held_out_folder_wins_over_a_share(make, held_out):
    folder = make(
        *clips_of("a", "b", split="train/"), *clips_of("a", "b", number=2, split=f"{held_out}/")
    )
    loaded, names, report = load_checked(folder, eval_share=0.2)
    assert names == ["a", "b"] and report.used == {"train": 12, held_out: 4}
    assert report.labels == {name: {"train": 6, held_out: 2} for name in "ab"}
    share, few = report.warnings
    assert f"has the split '{held_out}', which is held out; --eval-share 0.2 is not used" in share
    assert few.startswith("fewer than 5 held-out clips for 2 of the 2 classes")
    assert {row["audio"].split("/")[-3] for row in loaded.held_out} == {held_out}


def test_a_split_that_nobody_uses_is_counted(make):
    folder = make(
        *(
            name
            for s in ("train/", "validation/", "test/")
            for name in clips_of("a", "b", number=2, split=s)
        )
    )
    _, _, report = load_checked(folder)
    assert report.found == 12 and report.used == {"train": 4, "test": 4}
    reasons = {entry.reason for entry in report.skipped}
    assert reasons == {"in the split 'validation', which is neither trained on nor held out"}
    _, _, report = load_checked(folder, train_split="train+validation")
    assert report.used == {"train+validation": 8, "test": 4} and report.skipped == []


def test_what_is_left_out_is_counted_with_its_reason(make):
    folder = make(*clips_of("car", "bus"), "car/._0.wav", "car/phone.m4a", "loose.wav")
    (folder / "car" / "film.mp4").write_bytes(b"x")
    (folder / "car" / ".hidden.wav").write_bytes(b"x")
    (folder / "bus" / "gone.wav").symlink_to("nowhere.wav")
    (folder / "empty").mkdir()
    (folder / "car" / ".git").mkdir()
    (folder / "stray.csv").write_text("a,b\n1,2\n")
    (folder / "other.json").write_text("{")
    (folder / "class_labels_indices.csv").write_text("index,display_name\n0,car\n1,bus\n")
    _, names, report = load_checked(folder, eval_share=0.25)
    assert names == ["car", "bus"]  # in the order of the class list
    found = dict(report.skipped)
    wanted = {
        "car/._0.wav": "resource file",
        "car/phone.m4a": "ffmpeg -i NAME.m4a NAME.wav",
        "car/film.mp4": "ffmpeg -i NAME.mp4 NAME.wav",
        "car/.hidden.wav": "hidden",
        "bus/gone.wav": "not there",
        "loose.wav": "not in the folder of a label",
        "stray.csv": "no audio file",
        "other.json": "no audio file",
        "class_labels_indices.csv": "class list",
    }
    assert found.keys() == wanted.keys() and report.found == 12 + len(wanted)
    assert all(wanted[name] in found[name] for name in wanted)
    assert report.folders == [("car/.git", HIDDEN_FOLDER), ("empty", "empty folder")]
    assert "1 skipped: empty folder (empty)" in report.lines()
    assert report.as_dict()["folders"][1] == {"file": "empty", "reason": "empty folder"}
    assert report.warnings[0] == (
        "no file in the folders 'empty' can be used; the line about skipped files says why"
    )


def test_a_name_that_is_no_unicode_is_skipped(make):
    folder = make(*clips_of("car", "bus"), os.fsdecode(b"car/\xff.wav"))
    _, _, report = load_checked(folder, eval_share=0.25)
    assert report.found == 13 and "the name is not valid Unicode" in report.skipped[0].reason


def test_deeper_folders_have_the_outermost_label(make):
    folder = make("dog/field/a.wav", *clips_of("cat", "dog"))
    _, names, report = load_checked(folder, eval_share=0.3)
    assert names == ["cat", "dog"] and report.found == 13
    assert "1 files are in folders inside the folder of their label" in report.warnings[0]
    assert "its label is 'dog'" in report.warnings[0]


def test_speech_commands_as_released(make):
    folder = make(*clips_of("yes", "no", "_background_noise_"))
    (folder / "validation_list.txt").write_text("yes/1.wav\nno/1.wav\n")
    (folder / "testing_list.txt").write_text("yes/0.wav\r\nno/0.wav\r\n")
    loaded, names, report = load_checked(folder)
    assert names == ["no", "yes"] and report.used == {"train": 8, "test": 2}
    assert {row["audio"][-5:] for row in loaded.held_out} == {"0.wav"}
    assert sum("background noise of Speech Commands" in reason for _, reason in report.skipped) == 6
    assert sum("'validation'" in reason for _, reason in report.skipped) == 2
    assert load_checked(folder, eval_split="validation")[2].used["validation"] == 2
    lists = [reason for file, reason in report.skipped if file.endswith(".txt")]
    assert lists == ["read as the list of a split"] * 2
    (folder / "testing_list.txt").write_text("./yes/0.wav\nno\\0.wav\nno/77.wav\n")
    _, _, report = load_checked(folder)
    assert report.used == {"train": 8, "test": 2}
    assert "1 of the 5 files in the lists" in report.warnings[0] and "77" in report.warnings[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.wav", "b.wav"], r"2 audio files but none .* in a folder for its label, e.g. .*LABEL"),
        (["a/x.txt"], r"no audio file in it \(1 other files and folders\); give a directory"),
        (["a/x.m4a", "b/y.m4a"], "2 audio files but none that can be used"),
        (clips_of("car"), "all 4 clips to train on have the same label 'car'"),
        ([*clips_of("a", split="train/"), "car/x.wav"], "beside them audio in 'car'; give each"),
        ([*clips_of("a", split="train/"), "test/x.wav"], "beside them audio in 'test'; give each"),
        (clips_of("a", "b", split="train/"), "the splits ['train'] but not 'test'"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(make, names, message):
    folder = make(*names)
    options = {} if "splits ['train'] but" in message else {"eval_share": 0.2}
    message = message.replace("[", r"\[").replace("]", r"\]") if not options else message
    with pytest.raises(ValueError, match=message) as error:
        load_checked(folder, **options)
    assert "\n" not in str(error.value)


def test_a_table_beside_loose_files_is_named(make):
    folder = make("a.wav", "b.wav")
    (folder / "labels.csv").write_text("file,label\na.wav,x\nb.wav,y\n")
    with pytest.raises(ValueError, match=r"or give a table .*\(such as labels.csv\) as --data"):
        load_checked(folder, eval_share=0.2)


def test_labels_that_look_alike_or_lack_clips_are_warned_of(make):
    folder = make(
        *clips_of("Car", "car", "dog", split="train/"), *clips_of("car", "owl", split="test/")
    )
    _, names, report = load_checked(folder)
    assert names == ["Car", "car", "dog", "owl"]
    case, train, test = report.warnings
    assert case.startswith("the labels 'Car' and 'car' differ only in case")
    assert train == "no clip to train on has the label 'owl'"
    assert test == "no clip that is held out has the label 'Car', 'dog'"


def test_classes_with_few_held_out_clips_are_named(make):
    folder = make(
        *clips_of(*"abcdefgh", split="train/"),
        *clips_of(*"abcdef", split="test/", number=4),
        *clips_of("g", split="test/", number=5),
    )
    _, _, report = load_checked(folder)
    lacking, few = report.warnings
    assert lacking == "no clip that is held out has the label 'h'"
    assert few == (
        "fewer than 5 held-out clips for 6 of the 8 classes, which makes these scores unreliable: "
        "'a', 'b', 'c', 'd', 'e' and 1 more"
    )


def test_a_label_that_the_class_list_lacks(make):
    folder = make(*clips_of("car", "bus"))
    (folder / "class_labels_indices.csv").write_text("index,display_name\n0,car\n1,tram\n")
    with pytest.raises(ValueError, match=r"'bus' is among the labels .* not among the 2 classes"):
        load_checked(folder, eval_share=0.3)


def test_one_part_is_enough(make):
    folder = make(*clips_of("a", "b", split="test/"))
    arguments = DataArguments(str(folder))
    loaded = load(arguments, train=False)
    assert loaded.train is None and loaded.report.used == {"test": 12}
    with pytest.raises(ValueError, match=r"the splits \['test'\] but not 'train'"):
        load(arguments)
