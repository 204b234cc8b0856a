"""Groups of clips, named by a column or by a pattern of the path."""

import pytest
from datasets import Dataset, Features, Value

from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.grouping import count_groups, groups_of
from modeling_ast.training.shared_beginnings import shared_beginnings

PATHS = ["bark/anna_1.wav", "bark/ben_1.wav", "howl/anna_2.wav"]


def clips(**columns):
    return Dataset.from_dict({"audio": PATHS, "label": ["x", "x", "y"], **columns})


def groups(group_by, data=None, **options):
    return groups_of(data or clips(), DataArguments("data", group_by=group_by, **options))


def test_without_a_name_there_are_none():
    assert groups(None) is None


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        (r"([^/_]+)_\d+\.wav$", ["anna", "ben", "anna"]),
        (r"^([^/]+)/", ["bark", "bark", "howl"]),
        (r"^(b|h)[^/]*/(a|b)", ["b/a", "b/b", "h/a"]),
        (r"(?:/(a)|/(b))", ["a", "b", "a"]),
    ],
)
def test_a_pattern_is_searched_in_the_path(pattern, wanted):
    assert groups(pattern) == wanted


def test_a_pattern_in_the_paths_of_stored_audio():
    """As in Parquet files of AudioSet, with a format, which names the old columns."""
    audio = [{"bytes": b"", "path": path} for path in PATHS]
    features = Features(
        {"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")}
    )
    data = Dataset.from_dict({"audio": audio, "label": ["x", "x", "y"]}, features)
    data.set_format(columns=["audio", "label"])
    assert groups(r"([^/_]+)_", data) == ["anna", "ben", "anna"]


def test_paths_start_from_the_datas_folder(tmp_path):
    paths = [str(tmp_path / path) for path in PATHS]
    data = clips().remove_columns("audio").add_column("audio", paths)
    arguments = DataArguments(str(tmp_path), group_by="^([^/]+)/")
    assert groups_of(data, arguments) == ["bark", "bark", "howl"]


def test_stored_audio_and_segments_have_their_path():
    kind = {"bytes": Value("binary"), "path": Value("string")}
    stored = [{"bytes": b"x", "path": path} for path in PATHS]
    data = Dataset.from_dict(
        {"audio": stored, "label": ["x", "x", "y"]},
        features=Features({"audio": kind, "label": Value("string")}),
    )
    assert groups("([a-z]+)_", data) == ["anna", "ben", "anna"]
    assert groups("audio", data) == PATHS  # a file in several rows is one group


def test_a_column_names_them():
    assert groups("speaker", clips(speaker=["a", "b", "a"])) == ["a", "b", "a"]
    assert groups("take", clips(take=[3, 1, 3])) == ["3", "1", "3"]


@pytest.mark.parametrize(
    ("group_by", "columns", "message"),
    [
        ("speaker", {}, r"not a column of the data \(it has \['audio', 'label'\]\) and, as a"),
        ("(", {}, "nor a regular expression"),
        ("(ben)_", {}, "finds no group in 2 of the 3 paths: 'bark/anna_1.wav', 'howl/anna_2.wav';"),
        ("(x*)", {}, "finds no group in 3 of the 3 paths"),
        ("label", {}, "is the label column 'label'"),
        ("speaker", {"speaker": ["a", None, "b"]}, "is empty for 1 of the 3 clips: 'bark/ben_1"),
        ("speaker", {"speaker": ["a", "", ""]}, "is empty for 2 of the 3"),
        ("speaker", {"speaker": [["a"], ["b"], ["c"]]}, "which holds list and not one name"),
    ],
)
def test_what_says_nothing_about_a_clip_is_refused(group_by, columns, message):
    with pytest.raises(ValueError, match=message):
        groups(group_by, clips(**columns))


def test_clips_without_a_path_need_a_column():
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}})
    rows = {"audio": [{"bytes": b"x", "path": None}, {"bytes": b"y", "path": "a_1.wav"}]}
    data = Dataset.from_dict(rows, features=features)
    with pytest.raises(ValueError, match="but 1 of the 2 clips have no file name; give one of"):
        groups("(a)", data)


def test_a_group_in_two_parts_is_an_error():
    parts = {"train": ["a", "b", "a"], "test": ["c"]}
    assert count_groups(parts, "speaker") == {"train": 2, "test": 1}
    parts["test"].append("b")
    message = "1 groups of --group-by 'speaker' are both in 'train' and in 'test': 'b'; move"
    with pytest.raises(ValueError, match=message):
        count_groups(parts, "speaker")


def named(paths):
    """Clips LABEL/NAME."""
    return Dataset.from_dict({"audio": paths, "label": [path.split("/")[0] for path in paths]})


def hint(to_train, held_out):
    return shared_beginnings(named(to_train), named(held_out), DataArguments("data"))


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("{label}/{who}_{n}.wav", "([^/_]+)_[^/]*$"),
        ("{label}/{who} B__take_{n}.flac", "([^/]+?)__[^/]*$"),
        ("{label}/{who}-{n}.mp3", "([^/-]+)-[^/]*$"),
    ],
)
def test_names_that_begin_alike_on_both_sides_are_a_warning(form, pattern):
    names = [
        form.format(label=label, who=who, n=n)
        for label in ("bark", "howl")
        for who in ("anna", "ben", "eve")
        for n in range(4)
    ]
    to_train, held_out = names[::2], names[1::2]
    (warning,) = hint(to_train, held_out)
    assert "the names of 12 of the 12 held-out clips begin like" in warning and "'anna" in warning
    assert f"--group-by '{pattern}' holds out whole ones" in warning
    # The pattern does what the warning says.
    found = groups_of(named(names), DataArguments("data", group_by=pattern))
    assert len(set(found)) == 3
    # Whole speakers are held out.
    assert not hint([n for n in names if "eve" not in n], [n for n in names if "eve" in n])


@pytest.mark.parametrize(
    "names",
    [
        [f"{label}/{label}_{n}.wav" for label in ("bark", "howl") for n in range(8)],
        [
            *(f"{label}/{label}_{n}.wav" for label in ("bark", "howl") for n in range(8)),
            "howl/bark_9.wav",
        ],
        [f"{label}/rec_{n}.wav" for label in ("bark", "howl") for n in range(8)],
        [f"{label}/{n}.wav" for label in ("bark", "howl") for n in range(8)],
        [f"{label}/y{n}_{label}.wav" for label in ("bark", "howl") for n in range(8)],
        [f"{label}/_{n}.wav" for label in ("bark", "howl") for n in range(8)],
    ],
    ids=[
        "label",
        "label, with an error",
        "one for all",
        "numbers",
        "one for each",
        "nothing before it",
    ],
)
def test_other_names_are_no_warning(names):
    assert not hint(names[::2], names[1::2])


def test_clips_without_names_are_no_warning():
    clips = Dataset.from_dict({"audio": ["", ""], "label": ["x", "y"]})
    assert shared_beginnings(clips, clips, DataArguments("data")) == []
