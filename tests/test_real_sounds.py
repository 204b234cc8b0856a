"""The data sets of recorded sounds: from made-up packages, and from the real ones (-m real)."""

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import soundfile

from tests.conftest import ROOT
from tests.real_sounds import (
    ASTERISK,
    ASTERISK_LETTERS,
    DRUM_TEST_KITS,
    DRUM_TRAIN_KITS,
    DRUMS,
    FOLDS,
    KLETTRES,
    KLETTRES_LANGUAGES,
    LETTERS,
    SYLLABLE_SPEAKERS,
    VOWELS,
    Recording,
    drum_label,
    few,
    held_out_groups,
    unpacked,
    write_data_set,
)

needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which Debian and Ubuntu have"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "modeling_ast" / "debian"


def write_noise(path, seed=0, rate=8000, shape=(400,)):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(shape), rate)


@pytest.fixture
def packages(cache):
    """The cache with the needed folders of the packages, so that nothing is downloaded."""
    for kit in (*DRUM_TRAIN_KITS, *DRUM_TEST_KITS):
        folder = cache / "hydrogen-drumkits" / DRUMS / kit
        for seed, name in enumerate(("Kick 1.wav", "HiHat.flac", "Ride.wav", "TomLow.wav")):
            write_noise(folder / name, seed, rate=44100, shape=(441, 2))
        write_noise(folder / "Cowbell.wav")
        (folder / "drumkit.xml").write_text("<drumkit/>")
    for language in KLETTRES_LANGUAGES:
        folder = cache / "klettres-data" / KLETTRES
        sounds = []
        for number, letter in enumerate("abcdefghijklmnopqrs"):
            name = f"{language}/alpha/a-{number}.ogg"
            write_noise(folder / name)
            sounds.append(f'<sound name="{letter.upper()}" file="{name}"/>')
        (folder / language / "sounds.xml").write_text(
            f"<klettres><language><alphabet>{''.join(sounds)}</alphabet><syllables>"
            '<sound name="B" file="no/such.ogg"/></syllables></language></klettres>'
        )
    for language in chain(*SYLLABLE_SPEAKERS):
        folder = cache / "klettres-data" / KLETTRES
        names = [f"M{vowel.upper()}" for vowel in VOWELS] + ["AM", "LLA", "OU"]
        for name in names:
            write_noise(folder / language / "syllab" / f"{name}.ogg")
        names += ["BA"]  # has no file
        sounds = [f'<sound name="{n}" file="{language}/syllab/{n}.ogg"/>' for n in names]
        file = folder / language / "sounds.xml"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            file.write_text("<klettres><syllables></syllables></klettres>")
        text = file.read_text().replace("<syllables>", f"<syllables>{''.join(sounds)}")
        file.write_text(text)
    for package, place, _ in ASTERISK_LETTERS:
        for letter in LETTERS:
            write_noise(cache / package / ASTERISK / place / f"{letter}.wav")
    return cache


def rows_of(folder):
    with open(folder / "clips.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    "name, label",
    [
        ("bassdrum-4mics-br-stereo-normal3", "kick"),
        ("PowR_BD_1", "kick"),
        ("HardHse_K_03_B", "kick"),
        ("EE_Kick_Stomp", "kick"),
        ("crash16i__ride_cup4", "cymbal"),
        ("CrashRide18Bow-1", "cymbal"),
        ("cc_01", "cymbal"),
        ("TomMid-0", "tom"),
        ("ft_03", "tom"),
        ("hhpedal_01", "hihat"),
        ("104227__minorr__hhat-paiste-302-14-open-p", "hihat"),
        ("PowR_HH_1", "hihat"),
        ("FX_Chh_01", "hihat"),
        ("snare-opaque-normal-mic-rimshot6", "snare"),
        ("sr_01", "snare"),
        ("clap_Dry_c", None),
        ("mc_cb", None),
        ("TambourineFoot-0", None),
        ("emptySample", None),
        ("xFX_6", None),
    ],
)
def test_labels_of_drum_hits(name, label):
    assert drum_label(name) == label


@pytest.mark.parametrize("kind, num_groups", [("drums", 10), ("letters", 18), ("syllables", 5)])
def test_no_group_is_on_both_sides(packages, tmp_path, kind, num_groups):
    folder = write_data_set(kind, tmp_path / "data")
    rows = rows_of(folder)
    groups = {s: {row["group"] for row in rows if row["split"] == s} for s in ("train", "test")}
    assert not groups["train"] & groups["test"]
    assert len(groups["train"] | groups["test"]) == num_groups
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.flac")}
    assert files == {row["file"] for row in rows} and len(files) == len(rows)
    assert all(row["file"].startswith(f"{row['split']}/{row['label']}/") for row in rows)


def test_samples_rate_and_channels_are_the_recording_s(packages, tmp_path):
    folder = write_data_set("drums", tmp_path / "data")
    source = packages / "hydrogen-drumkits" / DRUMS / "VariBreaks" / "Kick 1.wav"
    expected, rate = soundfile.read(source, dtype="int16")
    written, written_rate = soundfile.read(
        folder / "train" / "kick" / "VariBreaks__Kick-1.flac", dtype="int16"
    )
    assert written_rate == rate and np.array_equal(written, expected)


@pytest.mark.parametrize("kind, num_speakers", [("letters", 18), ("syllables", 5)])
def test_every_speaker_is_tested_in_one_fold(kind, num_speakers):
    tested = Counter(speaker for fold in range(FOLDS) for speaker in held_out_groups(kind, fold))
    assert len(tested) == num_speakers and set(tested.values()) == {1}


def test_syllables_have_the_label_of_their_vowel(packages, tmp_path):
    rows = rows_of(write_data_set("syllables", tmp_path / "data", fold=1))
    assert {row["group"] for row in rows if row["split"] == "test"} == {"it", "cs"}
    assert Counter(row["label"] for row in rows) == dict.fromkeys(VOWELS, 5)
    assert all(row["file"].endswith(f"__M{row['label'].upper()}.flac") for row in rows)


def test_few_examples_come_from_different_groups():
    recordings = [Recording(f"{g}{i}", "x", g) for g in "abc" for i in range(4)]
    assert {r.group for r in few(recordings, 3, seed=0)} == {"a", "b", "c"}
    assert Counter(r.group for r in few(recordings, 7, seed=1)).most_common()[-1][1] == 2
    assert few(recordings, 3, seed=0) == few(recordings, 3, seed=0) != few(recordings, 3, seed=1)
    assert len(few(recordings, 100, seed=0)) == 12


def test_fold_1_of_the_drums_exchanges_the_kits(packages, tmp_path):
    splits = []
    for fold in (0, 1):
        rows = rows_of(write_data_set("drums", tmp_path / str(fold), fold=fold))
        splits.append({s: {r["group"] for r in rows if r["split"] == s} for s in ("train", "test")})
    first, second = splits
    assert first["train"] == second["test"] == set(DRUM_TRAIN_KITS)
    assert first["test"] == second["train"] == set(DRUM_TEST_KITS)


def test_few_examples_leave_the_test_as_it_is(packages, tmp_path):
    rows = rows_of(write_data_set("letters", tmp_path / "data", fold=1, examples=2, seed=3))
    counts = Counter((row["split"], row["label"]) for row in rows)
    assert counts == {(s, letter): n for s, n in (("train", 2), ("test", 6)) for letter in LETTERS}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "birds"}, "there is no data set 'birds'; give one of drums, letters, syllables"),
        ({"kind": "letters", "fold": 3}, "the fold is 3; give one from 0 to 2"),
        ({"kind": "syllables", "fold": -1}, "the fold is -1; give one from 0 to 2"),
        ({"kind": "drums", "fold": 2}, "the fold is 2; give one from 0 to 1 for drums"),
        ({"kind": "letters", "examples": 0}, "the examples of each label are 0; give 1 or more"),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_data_set(folder=tmp_path / "data", **arguments)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match="is not empty; give a new folder"):
        write_data_set("letters", tmp_path)


def stand_in(folder, monkeypatch, script):
    """A program named apt-get, first on the PATH."""
    folder.mkdir()
    program = folder / "apt-get"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@needs_dpkg
def test_a_package_is_downloaded_once(cache, tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN" / "control").write_text(
        "Package: hits\nVersion: 1:2\nArchitecture: all\nMaintainer: x\nDescription: hits\n"
    )
    write_noise(source / "usr" / "share" / "hit.wav")
    archive = tmp_path / "hits_1%3a2_all.deb"
    subprocess.run(["dpkg-deb", "--build", source, archive], check=True, capture_output=True)
    log = tmp_path / "log"
    stand_in(tmp_path / "bin", monkeypatch, f'echo "$@" >> "{log}"; cp "{archive}" .')
    for _ in range(2):
        root = unpacked("hits")
        wav = (root / "usr" / "share" / "hit.wav").read_bytes()
        assert wav == (source / "usr" / "share" / "hit.wav").read_bytes()
    assert log.read_text() == "download hits\n"
    assert [path.name for path in cache.iterdir()] == ["hits"]


@needs_dpkg
def test_a_package_that_cannot_be_had_says_why(cache, tmp_path, monkeypatch):
    stand_in(tmp_path / "bin", monkeypatch, "echo 'E: Unable to locate package hits' >&2; exit 100")
    with pytest.raises(OSError, match="Unable to locate package hits; try apt-get update first"):
        unpacked("hits")
    assert not list(cache.iterdir())


def test_without_apt_one_sentence_and_status_1(tmp_path):
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.real_sounds", "drums", tmp_path / "data"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1 and not (tmp_path / "data").exists()
    assert run.stderr == "error: apt-get is missing; Debian and Ubuntu have it\n"


@pytest.mark.real
@pytest.mark.parametrize(
    "kind, train, test",
    [
        (
            "drums",
            {"cymbal": 52, "hihat": 50, "kick": 20, "snare": 43, "tom": 35},
            {"cymbal": 41, "hihat": 50, "kick": 21, "snare": 25, "tom": 25},
        ),
        ("letters", dict.fromkeys(LETTERS, 12), dict.fromkeys(LETTERS, 6)),
        ("syllables", {"a": 44, "e": 44, "i": 34, "o": 41, "u": 34}, dict.fromkeys(VOWELS, 21)),
    ],
)
def test_the_real_packages(tmp_path, kind, train, test):
    """The counts are those of Debian 12; every clip has sound and lies in [-1, 1]."""
    try:
        folder = write_data_set(kind, tmp_path / "data")
    except OSError as error:
        pytest.skip(f"the packages cannot be had here: {error}")
    counts = Counter((row["split"], row["label"]) for row in rows_of(folder))
    assert {label: n for (split, label), n in counts.items() if split == "train"} == train
    assert {label: n for (split, label), n in counts.items() if split == "test"} == test
    for path in folder.rglob("*.flac"):
        samples, rate = soundfile.read(path)
        assert rate in (8000, 22050, 44100, 48000), path
        assert np.abs(samples).max() > 0.01 and 0.02 < len(samples) / rate < 20, path
