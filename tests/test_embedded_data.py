"""The embedded data set, read by datasets' loader, soundfile and csv."""

from __future__ import annotations

import csv
import io
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from datasets import Audio, DatasetDict, List, Value, load_dataset

from examples import embedded_data
from examples.embedded_data import SOUNDS, make_scene, write_data_set
from tests.conftest import ROOT

NUM_TRAIN, NUM_TEST, SECONDS, RATE = 2 * len(SOUNDS), len(SOUNDS), 1.5, 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("audioset")
    return write_data_set(target, NUM_TRAIN, NUM_TEST, SECONDS, RATE, progress=False)


@pytest.fixture(scope="module")
def splits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetDict:
    return load_dataset(str(folder), "balanced", cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def undecoded(splits: DatasetDict) -> DatasetDict:
    return splits.cast_column("audio", Audio(decode=False))


def read_class_list(folder: Path) -> list[dict[str, str]]:
    with open(folder / "class_labels_indices.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["embedded_data.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "embedded_data.py"), run_name="__main__")


def test_features_and_splits_are_those_of_audioset(splits: DatasetDict) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": NUM_TRAIN,
        "test": NUM_TEST,
    }
    for split in splits.values():
        assert dict(split.features) == {
            "video_id": Value("string"),
            "audio": Audio(),
            "labels": List(Value("string")),
            "human_labels": List(Value("string")),
        }


def test_balanced_is_the_default_config(folder: Path, tmp_path: Path) -> None:
    splits = load_dataset(str(folder), cache_dir=str(tmp_path))
    assert splits["train"].config_name == "balanced"
    assert set(splits) == {"train", "test"}


def test_shards_of_a_split_are_all_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_data, "CLIPS_PER_SHARD", 2)
    target = write_data_set(tmp_path / "set", 5, 1, 1.0, progress=False)
    shards = sorted(path.name for path in (target / "data/bal_train").iterdir())
    assert shards == ["000.parquet", "001.parquet", "002.parquet"]
    split = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(set(split["video_id"])) == 5


def test_clips_are_flac_of_the_given_rate_and_length(undecoded: DatasetDict) -> None:
    for split in undecoded.values():
        for audio in split["audio"]:
            with sf.SoundFile(io.BytesIO(audio["bytes"])) as file:
                assert (file.format, file.samplerate, file.channels) == ("FLAC", RATE, 1)
                waveform = file.read()
            assert len(waveform) == SECONDS * RATE
            assert 0.01 < np.abs(waveform).max() <= 0.951


def test_another_rate_is_kept(tmp_path: Path) -> None:
    target = write_data_set(tmp_path / "set", 3, 1, 1.0, 44_100, progress=False)
    split = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    for audio in split.cast_column("audio", Audio(decode=False))["audio"]:
        waveform, rate = sf.read(io.BytesIO(audio["bytes"]))
        assert (len(waveform), rate) == (44_100, 44_100)


def test_ids_look_like_youtubes_and_are_unique(undecoded: DatasetDict) -> None:
    ids = [*undecoded["train"]["video_id"], *undecoded["test"]["video_id"]]
    assert len(set(ids)) == NUM_TRAIN + NUM_TEST
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", video_id) for video_id in ids)
    for split, name in (("train", "bal_train"), ("test", "eval")):
        for row in undecoded[split]:
            assert row["audio"]["path"] == f"audio/{name}/{row['video_id']}.flac"


def test_class_list_reads_as_audiosets(folder: Path) -> None:
    rows = read_class_list(folder)
    assert list(rows[0]) == ["index", "mid", "display_name"]
    assert [int(row["index"]) for row in rows] == list(range(len(SOUNDS)))
    assert [(row["mid"], row["display_name"]) for row in rows] == [
        (sound.mid, sound.name) for sound in SOUNDS
    ]
    lines = (folder / "class_labels_indices.csv").read_text(encoding="utf-8").splitlines()
    assert '5,/m/02fs_r,"Beep, bleep"' in lines


def test_labels_agree_with_the_class_list(folder: Path, undecoded: DatasetDict) -> None:
    names = {row["mid"]: row["display_name"] for row in read_class_list(folder)}
    for split in undecoded.values():
        for row in split:
            assert [names[mid] for mid in row["labels"]] == row["human_labels"]
            assert 1 <= len(set(row["labels"])) == len(row["labels"]) <= 3


def test_every_class_and_every_count_of_labels_occurs(undecoded: DatasetDict) -> None:
    for split in undecoded.values():
        assert {mid for mids in split["labels"] for mid in mids} == {s.mid for s in SOUNDS}
    assert {len(mids) for mids in undecoded["train"]["labels"]} == {1, 2, 3}


def test_same_arguments_same_bytes_other_seed_other_clips(tmp_path: Path) -> None:
    first, again, other = (
        read_files(write_data_set(tmp_path / name, 4, 2, 1.0, seed=seed, progress=False))
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    assert first["data/bal_train/000.parquet"] != other["data/bal_train/000.parquet"]


def test_train_and_test_share_no_clip(undecoded: DatasetDict) -> None:
    train = {audio["bytes"] for audio in undecoded["train"]["audio"]}
    assert len(train) == NUM_TRAIN
    assert train.isdisjoint(audio["bytes"] for audio in undecoded["test"]["audio"])


def test_a_clip_does_not_depend_on_how_many_there_are(
    undecoded: DatasetDict, tmp_path: Path
) -> None:
    target = write_data_set(tmp_path / "set", 1, 1, SECONDS, RATE, progress=False)
    split = load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    row = split.cast_column("audio", Audio(decode=False))[0]
    assert row == undecoded["train"][0]


@pytest.mark.parametrize("sound", SOUNDS, ids=lambda sound: sound.name)
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sounds_fill_their_samples_and_vary(sound: embedded_data.Sound, rate: int) -> None:
    num_samples = int(0.7 * rate)
    draws = [sound.synthesise(np.random.default_rng(seed), num_samples, rate) for seed in (0, 1)]
    for draw in draws:
        assert draw.shape == (num_samples,)
        assert np.isfinite(draw).all()
        assert draw.std() > 0
    # Not only a shift, a gain or a sign differ, but the normalised magnitude spectra.
    spectra = [np.abs(np.fft.rfft(draw)) for draw in draws]
    cosine = np.prod([1 / np.linalg.norm(s) for s in spectra]) * (spectra[0] @ spectra[1])
    assert cosine < 0.999


def test_pitch_of_a_class_varies() -> None:
    sine_wave = next(sound for sound in SOUNDS if sound.name == "Sine wave").synthesise
    peaks_hz = [
        np.abs(np.fft.rfft(sine_wave(np.random.default_rng(seed), RATE, RATE))).argmax()
        for seed in range(5)
    ]
    assert max(peaks_hz) > 1.5 * min(peaks_hz)


def test_level_and_onset_of_a_class_vary() -> None:
    levels, onsets = [], []
    for seed in range(40):
        white_noise = len(SOUNDS) - 2
        waveform, placed = make_scene(np.random.default_rng(seed), white_noise, 1.0, RATE)
        if [sound.index for sound in placed] == [white_noise]:
            rms = np.sqrt((waveform.reshape(100, -1) ** 2).mean(1))  # of every 10 ms
            levels.append(20 * np.log10(rms.max()))
            onsets.append((rms > rms.max() / 4).argmax() / 100)
    assert len(levels) >= 5
    assert max(levels) - min(levels) > 6
    assert max(onsets) - min(onsets) > 0.1


def test_events_have_a_column_of_their_own(tmp_path: Path, splits: DatasetDict) -> None:
    target = write_data_set(
        tmp_path / "set", NUM_TRAIN, NUM_TEST, SECONDS, RATE, progress=False, events=True
    )
    with_events = load_dataset(str(target), "balanced", cache_dir=str(tmp_path / "cache"))
    for name, split in with_events.items():
        split = split.cast_column("audio", Audio(decode=False))
        assert set(split.features) - set(splits[name].features) == {"events"}
        plain = splits[name].cast_column("audio", Audio(decode=False)).to_list()
        assert split.remove_columns("events").to_list() == plain
        for row in split:
            assert [event["label"] for event in row["events"]] == row["labels"]
            for event in row["events"]:
                assert 0 <= event["start_time_seconds"] < event["end_time_seconds"] <= SECONDS


def test_events_say_when_a_sound_can_be_heard() -> None:
    white_noise, num_alone = len(SOUNDS) - 2, 0
    for turn in range(10):
        index = white_noise + turn * len(SOUNDS)
        row = embedded_data.make_row("eval", index, SECONDS, RATE, seed=0, events=True)
        if row["labels"] == [SOUNDS[white_noise].mid]:
            waveform, _ = sf.read(io.BytesIO(row["audio"]["bytes"]))
            heard = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() / 10) / RATE
            (event,) = row["events"]
            assert heard[0] == pytest.approx(event["start_time_seconds"], abs=0.02)
            assert heard[-1] == pytest.approx(event["end_time_seconds"], abs=0.02)
            num_alone += 1
    assert num_alone >= 3


@pytest.mark.parametrize("sound", SOUNDS, ids=lambda sound: sound.name)
def test_at_level_sets_the_peak(sound: embedded_data.Sound) -> None:
    waveform = sound.synthesise(np.random.default_rng(0), RATE, RATE)
    assert np.abs(embedded_data.at_level(waveform, -20.0)).max() == pytest.approx(0.1)


def test_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileExistsError, match=r"is not empty; give a new folder, or .* --force"):
        write_data_set(tmp_path, 1, 1, progress=False)


def test_force_replaces_the_shards_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_data, "CLIPS_PER_SHARD", 1)
    write_data_set(tmp_path, 3, 1, 1.0, progress=False)
    (tmp_path / "thesis.txt").write_text("three years of work")
    write_data_set(tmp_path, 1, 1, 1.0, progress=False, force=True)
    assert len(list((tmp_path / "data/bal_train").iterdir())) == 1
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("num_train", 0, "from 1 to 1000000"),
        ("num_test", -3, "from 1 to 1000000"),
        ("seconds", 0.5, "from 1.0 to 60.0"),
        ("seconds", float("nan"), "from 1.0 to 60.0"),
        ("sampling_rate", 8_000, "from 16000 to 192000"),
        ("seed", -1, "from 0 to"),
    ],
)
def test_refuses_numbers_out_of_range(
    tmp_path: Path, argument: str, value: float, wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"{argument} is {value}; give a number {wanted}"):
        write_data_set(tmp_path / "set", progress=False, **{argument: value})
    assert not (tmp_path / "set").exists()


def test_script_writes_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "set"
    run_script(monkeypatch, str(target), "--num-train", "2", "--num-test", "1", "--seconds", "1")
    assert f'load_dataset("{target}", "balanced")' in capsys.readouterr().out
    split = load_dataset(str(target), split="test", cache_dir=str(tmp_path / "cache"))
    assert len(split) == 1


def test_script_tells_errors_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(SystemExit, match=r"^error: .* is not empty; [^\n]*$"):
        run_script(monkeypatch, str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: .*thesis\.txt is a file; [^\n]*$"):
        run_script(monkeypatch, str(tmp_path / "thesis.txt"))
