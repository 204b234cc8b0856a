"""audio_files: the listing of a folder, in which every entry is counted."""

import io
import os
import re

import numpy as np
import pytest
import soundfile

from modeling_ast import audio_files as rules
from modeling_ast.audio import read_audio
from modeling_ast.audio_files import audio_files, by_reason

FORMATS = {
    "wav": "WAV",
    "wave": "WAVEX",
    "flac": "FLAC",
    "ogg": "OGG",
    "oga": "OGG",
    "opus": "OGG",
    "mp3": "MP3",
    "aif": "AIFF",
    "aiff": "AIFF",
    "aifc": "AIFF",
    "au": "AU",
    "snd": "AU",
    "caf": "CAF",
    "w64": "W64",
    "rf64": "RF64",
}


@pytest.mark.parametrize("name", rules.DECODED_NAMES.split())
def test_each_suffix_is_one_that_libsndfile_decodes(tmp_path, name):
    subtype = "OPUS" if name == "opus" else None
    content = io.BytesIO()
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    soundfile.write(content, wave, 16000, format=FORMATS[name], subtype=subtype)
    (tmp_path / f"a.{name}").write_bytes(content.getvalue())
    assert audio_files(tmp_path).files == [f"a.{name}"]
    assert len(read_audio(tmp_path / f"a.{name}")) >= 16000


def test_every_entry_is_either_audio_or_skipped_with_its_reason(tmp_path):
    folder = tmp_path / "sounds"
    for name in ("b.wav", "a/x.FLAC", "a/deep/y.m4a", "c d é.opus"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    expected = {
        "._b.wav": "resource file of macOS",
        "__MACOSX/._b.wav": "resource file of macOS",
        ".hidden.wav": "hidden",
        ".DS_Store": "hidden",
        "notes.txt": "no audio file",
        "labels.csv": "no audio file",
        "clip.MP4": "convert it first: ffmpeg -i NAME.mp4 NAME.wav",
        "no_suffix": "no audio file",
    }
    for name in expected:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "itself.wav").symlink_to("itself.wav")
    (folder / "linked.wav").symlink_to("b.wav")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "none").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "x.wav").write_bytes(b"x")
    os.mkfifo(folder / "pipe.wav")
    expected |= {
        "gone.wav": "link to a file that is not there",
        "itself.wav": "link to a file that is not there",
        "round": "folder that is listed already",
        "none": "empty folder",
        ".git": "hidden",
        "pipe.wav": "neither a file nor a folder",
    }
    listing = audio_files(folder)
    assert listing.files == ["a/deep/y.m4a", "a/x.FLAC", "b.wav", "c d é.opus", "linked.wav"]
    assert listing.skipped == sorted(listing.skipped) and listing.errors == []
    found = dict(listing.skipped)
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert re.search(re.escape(reason), found[name]), name


def test_linked_folders_are_listed_once_and_after_those_that_are_no_links(tmp_path):
    folder, elsewhere = tmp_path / "sounds", tmp_path / "elsewhere"
    for path in (folder / "z" / "own.wav", elsewhere / "in" / "c.wav", elsewhere / "d.wav"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name, target in (
        ("a", folder / "z"),  # of a folder that is here anyway
        ("dog", elsewhere),
        ("hound", elsewhere),
        ("inner", elsewhere / "in"),  # of a part of a linked folder
    ):
        (folder / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "up").symlink_to(tmp_path, target_is_directory=True)
    listing = audio_files(folder)
    assert listing.files == ["dog/d.wav", "dog/in/c.wav", "z/own.wav"] and not listing.errors
    again = {skipped.file for skipped in listing.skipped}
    assert again == {"a", "hound", "inner", "dog/up/sounds", "dog/up/elsewhere"}
    assert {skipped.reason for skipped in listing.skipped} == {rules.LISTED_FOLDER}


def test_a_folder_that_cannot_be_listed_is_skipped(tmp_path):
    listing = audio_files(tmp_path / "nowhere")
    assert listing.files == [] and len(listing.errors) == 1
    assert "cannot be listed: No such file" in listing.skipped[0].reason


def test_lines_count_the_files_of_each_reason():
    skipped = [rules.Skipped(f"{index}.txt", "no audio") for index in range(5)]
    lines = by_reason([rules.Skipped("d", "empty folder"), *skipped])
    assert lines == [
        "5 skipped: no audio (0.txt, 1.txt, 2.txt, ...)",
        "1 skipped: empty folder (d)",
    ]
