"""Training, validation and held-out part of a data set: the same rule for all kinds of data."""

import numpy as np
import pytest
import soundfile
from datasets import Dataset, load_dataset
from sklearn.model_selection import StratifiedGroupKFold

from modeling_ast.commands.finetune import parse_arguments
from modeling_ast.training.data_arguments import DataArguments
from modeling_ast.training.data_sources import load
from modeling_ast.training.finetuning import load_divided
from modeling_ast.training.parts import chosen_splits

SPEAKERS = ("anna", "ben", "cleo", "dan", "eve")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(800), 16000)
    return path.read_bytes()


@pytest.fixture
def make(tmp_path, clip):
    """Writes clips LABEL/SPEAKER_NUMBER.wav in each split, and returns the folder."""

    def write(*splits, labels=("bark", "howl"), takes=2):
        for split in splits or ("",):
            for label in labels:
                for name in (f"{who}_{take}.wav" for who in SPEAKERS for take in range(takes)):
                    path = tmp_path / "data" / split / label / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(clip)
        return str(tmp_path / "data")

    return write


def table(folder, splits):
    """The same clips as tables, one for each split."""
    for split in splits:
        files = sorted((folder / split).rglob("*.wav"))
        rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in files]
        (folder / f"{split}.csv").write_text("\n".join(["file,label", *rows]) + "\n")


def parquet(folder, splits):
    """The same clips as a data set that `datasets` loads."""
    for split in splits:
        files = sorted((folder / split).rglob("*.wav"))
        rows = [{"audio": str(file), "label": file.parent.name} for file in files]
        Dataset.from_list(rows).to_parquet(folder.parent / "stored" / f"{split}-0-of-1.parquet")


@pytest.mark.parametrize("source", ["folders", "tables", "parquet"])
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_split_that_is_there_is_judged(make, tmp_path, source, held_out):
    """Without groups, speakers would be in both parts and the score would be too high."""
    data = make("train", held_out)
    if source == "tables":
        table(tmp_path / "data", ("train", held_out))
    if source == "parquet":
        parquet(tmp_path / "data", ("train", held_out))
        data = str(tmp_path / "stored")
    loaded = load(DataArguments(data, eval_share=0.2))
    assert loaded.report.used == {"train": 20, held_out: 20}
    assert all(f"/{held_out}/" in f"/{row['audio']}" for row in loaded.held_out)
    assert any("--eval-share 0.2 is not used" in text for text in loaded.report.warnings)


@pytest.mark.parametrize("name", ["eval", "evaluation", "testing"])
def test_other_names_of_a_test_split(name):
    """As in data sets on the Hub; the split that the user names takes precedence."""
    chosen, warnings = chosen_splits(["train", name, "valid"], DataArguments(eval_share=0.1))
    assert (chosen.eval_split, chosen.eval_share, len(warnings)) == (name, None, 1)
    given = DataArguments(eval_split="valid", validation_share=0.1)
    chosen, _ = chosen_splits(["train", name, "valid"], given)
    assert (chosen.eval_split, chosen.validation_split) == ("valid", None)
    chosen, _ = chosen_splits(["train", name, "valid"], DataArguments(validation_share=0.1))
    assert (chosen.eval_split, chosen.validation_split) == (name, "valid")


def test_a_validation_split_decides_if_one_shall(make):
    data = make("train", "validation", "test")
    assert load(DataArguments(data)).validation is None
    for options in ({"validation_share": 0.1}, {"validation_split": "validation"}):
        loaded = load(DataArguments(data, **options))
        assert loaded.report.used == {"train": 20, "validation": 20, "test": 20}
        assert all("/validation/" in row["audio"] for row in loaded.validation)
        assert loaded.report.skipped == [] and loaded.validation_name == "validation"
    assert "which decides which epoch is best; --validation-share 0.1 is not" in str(
        load(DataArguments(data, validation_share=0.1)).report.warnings
    )
    with pytest.raises(ValueError, match=r"--validation-split is 'test'; give one of .*'v"):
        load(DataArguments(data, validation_split="test"))


def test_test_clips_are_never_set_aside(make):
    data = make("train", "test")
    loaded = load(DataArguments(data, validation_share=0.2, group_by="([a-z]+)_"), held_out=False)
    assert loaded.report.used == {"train": 16, "validation": 4, "test": 20}
    assert all("/train/" in row["audio"] for row in loaded.validation)


def speakers(part):
    return {row["audio"].rpartition("/")[2].partition("_")[0] for row in part}


@pytest.mark.parametrize(
    "options", [{"eval_share": 0.2}, {"folds": 5, "eval_fold": 2}, {"folds": 2, "eval_fold": 1}]
)
def test_no_speaker_is_on_two_sides(make, options):
    data = make(takes=3)
    arguments = DataArguments(data, group_by=r"([a-z]+)_\d", validation_share=0.25, **options)
    loaded = load(arguments)
    parts = [speakers(part) for part in (loaded.train, loaded.validation, loaded.held_out)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 5
    assert list(loaded.report.groups.values()) == [len(part) for part in parts]
    assert f"groups: train {len(parts[0])}, validation {len(parts[1])}" in str(
        loaded.report.lines()
    )
    assert load(arguments).held_out["audio"][:] == loaded.held_out["audio"][:]


def test_folds_hold_each_clip_out_once(make):
    data = make(takes=3)
    held_out = [
        load(DataArguments(data, folds=3, eval_fold=fold)).held_out["audio"][:]
        for fold in (1, 2, 3)
    ]
    assert sorted(map(len, held_out)) == [10, 10, 10]
    assert len({path for part in held_out for path in part}) == 30
    # As evenly as scikit-learn divides groups.
    labels = ["bark"] * 15 + ["howl"] * 15
    groups = [who for _ in range(2) for who in SPEAKERS for _ in range(3)]
    theirs = StratifiedGroupKFold(5).split(labels, labels, groups)
    sizes = sorted(len(part) for _, part in theirs)
    arguments = (
        DataArguments(data, folds=5, eval_fold=fold, group_by="([a-z]+)_") for fold in range(1, 6)
    )
    assert sorted(len(load(own).held_out) for own in arguments) == sizes == [6] * 5


def test_given_splits_that_share_a_speaker_are_refused(make):
    data = make("train", "test")
    with pytest.raises(ValueError, match=r"5 groups of .* both in 'train' and in 'test'"):
        load(DataArguments(data, group_by="([a-z]+)_"))
    assert load(DataArguments(data, group_by="([a-z]+)_"), train=False).held_out is not None


def test_a_share_that_groups_cannot_give_is_warned_of(make, tmp_path):
    data = make()
    for number in range(80):
        path = tmp_path / "data" / "bark" / f"frank_{number}.wav"
        path.write_bytes((tmp_path / "data" / "bark" / "anna_0.wav").read_bytes())
    loaded = load(DataArguments(data, eval_share=0.4, group_by="([a-z]+)_"))
    (warning,) = loaded.report.warnings
    assert warning.startswith("--eval-share is 0.4 but 0.1") and "groups are not div" in warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_share": 0}, "--eval-share is 0; it must be between 0 and 1"),
        ({"eval_share": 0.2, "validation_share": 1.5}, "--validation-share is 1.5; it must be"),
        ({"eval_share": 0.2, "eval_fold": 1}, "both say what is held out"),
        ({"folds": 1, "eval_fold": 1}, "--folds is 1; give at least 2"),
        ({"folds": 3}, "is only the number of folds; give the one that is held out as --eval-fold"),
        ({"folds": 3, "eval_fold": 4}, r"--eval-fold is 4 but there are \[1, 2, 3\]; give one"),
        ({"folds": 30, "eval_fold": 1}, "--folds is 30: 20 clips cannot be divided into 30 parts"),
        (
            {"folds": 9, "eval_fold": 1, "group_by": "([a-z]+)_"},
            "--folds is 9: 5 groups cannot be divided into 9 parts; give fewer folds",
        ),
        ({"folds": 3, "eval_fold": 1, "fold_column": "part"}, "no column 'part'; give --fold-col"),
        ({"eval_share": 0.2, "group_by": "^(bark|howl)/.*1"}, "finds no group in 10 of the 20"),
        ({"eval_fold": 1, "streaming": True, "group_by": "(a)"}, "train without --streaming"),
        ({"eval_share": 0.2, "streaming": True}, "--eval-share draws from the whole data"),
        ({"eval_fold": 1, "validation_share": 0.2, "streaming": True}, "--validation-share draws"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(make, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load(DataArguments(make(), **options))
    assert "\n" not in str(error.value)


def test_a_stream_with_a_split_for_validation(make, tmp_path):
    make("train", "validation", "test")
    parquet(tmp_path / "data", ("train", "validation", "test"))
    arguments = DataArguments(str(tmp_path / "stored"), streaming=True, validation_share=None)
    arguments.validation_split = "validation"
    loaded = load(arguments)
    assert loaded.report.used == {"train": None, "validation": 20, "test": 20}
    assert all("/validation/" in row["audio"] for row in loaded.validation)
    assert all("/test/" in row["audio"] for row in loaded.held_out)


def test_a_share_of_several_labels_to_a_clip(tmp_path, clip):
    """Checked by counting: every label in its share; labels of two clips are on both sides."""
    rng = np.random.default_rng(0)
    rows = ["file,labels"]
    for index in range(60):
        (tmp_path / f"{index}.wav").write_bytes(clip)
        names = [name for place, name in enumerate("abcde") if rng.random() < 0.1 * (place + 1)]
        names += ["rare"] if index in (7, 50) else []
        rows.append(f"{index}.wav,{';'.join(names) or 'e'}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    loaded = load(DataArguments(str(tmp_path / "all.csv"), eval_share=0.25))
    counts = loaded.report.labels
    assert loaded.report.used == {"train": 45, "test": 15}
    assert counts["rare"] == {"train": 1, "test": 1}
    for own in counts.values():
        assert abs(own["test"] - 0.25 * sum(own.values())) <= 1


def test_datasets_reads_the_stored_clips(make, tmp_path):
    """Checks that the splits above are those that `datasets` itself reads."""
    make("train", "test")
    parquet(tmp_path / "data", ("train", "test"))
    found = load_dataset(str(tmp_path / "stored"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 20, "test": 20}


@pytest.mark.parametrize(
    ("takes", "splits", "chosen", "counts"),
    [
        # 20 or 60 clips to train on.
        (2, ("train", "test"), ("validation_share", None), (20, 0, 20)),
        (2, ("train", "validation", "test"), ("validation_split", "validation"), (20, 20, 20)),
        (2, ("train", "validation"), ("validation_share", None), (20, 0, 20)),
        (6, ("train", "test"), ("validation_share", 0.15), (51, 9, 60)),
        (6, ("train", "validation", "test"), ("validation_split", "validation"), (60, 60, 60)),
    ],
)
def test_what_the_recipe_for_small_data_validates_with(make, takes, splits, chosen, counts):
    """A split for validation is used, however few the clips to train on are."""
    data = make(*splits, takes=takes)
    flags = ["--recipe", "small_data", "--model", "m", "--data", data, "--output-dir", "o"]
    loaded, (choice,) = load_divided(parse_arguments(flags)[0])
    assert (choice.name, choice.value) == chosen
    parts = (loaded.train, loaded.validation or [], loaded.held_out)
    assert tuple(map(len, parts)) == counts
