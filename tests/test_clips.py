"""Rows -> waveforms, and the list of bad clips, also from several processes at once."""

import io
import multiprocessing
import zipfile

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets import Audio, Dataset, Features, Value, load_dataset

from modeling_ast.audio import resample
from modeling_ast.training.clips import (
    FOLDER_FEATURES,
    BadClips,
    ClipReader,
    TooManyBadClips,
    drop_bad_clips,
    undecoded,
)


def flac(samples: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def noise(seed: int, seconds: float = 0.1, rate: int = 16000) -> np.ndarray:
    draws = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate))
    return (np.round(draws * 2**15) / 2**15).astype(np.float32)


def audio_set(contents: list[bytes]) -> Dataset:
    """Bytes and names in a column of type Audio, as in parquet files of the Hub."""
    rows = [{"bytes": content, "path": f"{i}.flac"} for i, content in enumerate(contents)]
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_dict({"audio": rows}, features=features).cast_column("audio", Audio())


def test_every_form_of_a_row_gives_the_same_waveform(tmp_path):
    wave = noise(0)
    sf.write(tmp_path / "a.flac", wave, 16000, subtype="PCM_16")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.flac", "a.flac")
    content = (tmp_path / "a.flac").read_bytes()
    for audio in (
        {"bytes": content, "path": None},
        {"bytes": None, "path": "a.flac"},
        {"array": wave, "sampling_rate": 16000},
        {"array": np.stack([wave * 2, wave * 0]), "sampling_rate": 16000},
        "a.flac",
        tmp_path / "a.flac",
        {"array": (wave * 2**15).astype(np.int16), "sampling_rate": 16000},
        (16000, wave),
        content,
        f"zip://a.flac::{tmp_path}/all.zip",
        {"bytes": None, "path": f"zip://a.flac::{tmp_path}/all.zip"},
    ):
        read = ClipReader(root=tmp_path, audio_column="sound")({"sound": audio})
        assert read.dtype == torch.float32
        np.testing.assert_array_equal(read.numpy(), wave)


def test_rows_of_datasets_are_read_undecoded(tmp_path):
    waves = [noise(i) for i in range(3)]
    dataset = undecoded(audio_set([flac(wave) for wave in waves]))
    for row, wave in zip(dataset, waves, strict=True):
        np.testing.assert_array_equal(ClipReader()(row).numpy(), wave)
    for row, wave in zip(undecoded(dataset.to_iterable_dataset()), waves, strict=True):
        np.testing.assert_array_equal(ClipReader()(row).numpy(), wave)
    with pytest.raises(ValueError, match=r"no column 'sound'.*\['audio'\]"):
        undecoded(dataset, "sound")


def test_folders_and_csv_files_are_read(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        sf.write(tmp_path / "train" / label / "a.wav", noise(len(label)), 16000)
    (tmp_path / "list.csv").write_text("file,label\ntrain/cat/a.wav,cat\n")
    for streaming in (False, True):
        folder = load_dataset(
            "audiofolder",
            data_dir=str(tmp_path),
            split="train",
            streaming=streaming,
            features=FOLDER_FEATURES,
            cache_dir=str(tmp_path / "cache"),
        )
        rows = list(undecoded(folder))
        assert [row["label"] for row in rows] == ["cat", "dog"]
        np.testing.assert_array_equal([ClipReader()(row).numpy() for row in rows], [noise(3)] * 2)
    table = load_dataset(
        "csv",
        data_files=str(tmp_path / "list.csv"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    reader = ClipReader(audio_column="file", root=tmp_path)
    np.testing.assert_array_equal(reader(undecoded(table, "file")[0]).numpy(), noise(3))


def test_the_wanted_rate_is_given():
    wave = noise(1, rate=44100)
    read = ClipReader(22050)({"audio": flac(wave, 44100)} | {"audio": {"bytes": flac(wave, 44100)}})
    np.testing.assert_allclose(read.numpy(), resample(wave, 44100, 22050), atol=1e-6)


def test_names_are_ids_paths_or_hashes():
    row = {"audio": {"bytes": b"abc", "path": "x/y.flac"}, "id": 7}
    assert ClipReader(id_column="id").name(row) == "7"
    assert ClipReader().name(row) == "x/y.flac"
    unnamed = [ClipReader().name({"audio": {"bytes": b, "path": None}}) for b in (b"a", b"b", b"a")]
    assert unnamed[0] == unnamed[2] != unnamed[1] and unnamed[0].startswith("content ")


def test_each_bad_clip_is_told_apart_from_a_wrong_column(tmp_path):
    read = ClipReader(root=tmp_path)
    nan = np.full(16000, np.nan, np.float32)
    for audio, error, message in [
        ({"bytes": b"no audio", "path": None}, ValueError, "cannot be decoded"),
        ({"bytes": None, "path": "missing.wav"}, FileNotFoundError, "no file at .*missing.wav"),
        ({"bytes": None, "path": None}, ValueError, "none of audio, array, bytes and path"),
        ({"bytes": flac(noise(0)[:399])}, ValueError, "399 samples but one window needs 400"),
        ({"array": nan, "sampling_rate": 16000}, ValueError, "holds NaN"),
        ({"array": np.zeros(500, np.int64)}, ValueError, "holds torch.int64 values, whose scale"),
        (3.5, TypeError, "is a float; give a path, bytes, an array"),
    ]:
        with pytest.raises(error, match=message):
            read({"audio": audio})
    for reader in (ClipReader(), ClipReader(id_column="id")):
        with pytest.raises(KeyError, match="remove_unused_columns=False"):
            reader.name({"labels": 1})


def test_the_list_counts_a_clip_once_and_survives(tmp_path):
    file = tmp_path / "run" / "bad_clips.txt"
    bad = BadClips(file, num_clips=200, max_share=0.01)
    assert bad.read() == {} and not file.exists()
    for _ in range(3):
        bad.add("a.wav", "broken\n\tfor  ever")
    bad.add("b.wav", "gone")
    assert file.read_text() == "a.wav\tbroken for ever\nb.wav\tgone\n"
    resumed = BadClips(file, num_clips=200)
    assert resumed.read() == {"a.wav": "broken for ever", "b.wav": "gone"}
    with pytest.raises(TooManyBadClips, match=r"3 of 200 .*at most 1.00%.*bad_clips.txt: a.wav: "):
        resumed.add("c.wav", "late")
    with pytest.raises(TooManyBadClips, match="3 of 200"):
        bad.check()
    new = BadClips.of_new_run(file, num_clips=200)
    assert new.read() == {} and not file.exists()
    for arguments in ({"num_clips": 0}, {"num_clips": 5, "max_share": 1.5}):
        with pytest.raises(ValueError, match=r"num_clips is 0|max_share is 1.5"):
            BadClips(file, **arguments)


def test_a_new_run_keeps_a_link_to_its_list(tmp_path):
    file, link = tmp_path / "list.txt", tmp_path / "link.txt"
    file.write_text("a.wav\tbroken\n")
    link.symlink_to(file)
    BadClips.of_new_run(link, num_clips=200).add("b.wav", "gone")
    assert link.is_symlink() and file.read_text() == "b.wav\tgone\n"


def _list_many(file, first: int) -> None:
    bad = BadClips(file, num_clips=10_000)
    for i in range(first, first + 40):
        bad.add(f"clip {i}", "x" * (i % 90))


def test_processes_share_the_list(tmp_path):
    file = tmp_path / "bad_clips.txt"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_list_many, args=(file, 20 * k)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    wanted = {f"clip {i}": "x" * (i % 90) for i in range(100)}
    assert BadClips(file, 10_000).read() == wanted


@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_clips_are_dropped_from_a_data_set(tmp_path, num_proc):
    contents = [flac(noise(i)) for i in range(6)]
    contents[1], contents[4] = b"", contents[4][:60]
    bad = BadClips(tmp_path / "bad_clips.txt", 6, max_share=0.5)
    kept = drop_bad_clips(audio_set(contents), ClipReader(), bad, num_proc)
    assert [row["audio"]["path"] for row in kept] == ["0.flac", "2.flac", "3.flac", "5.flac"]
    assert sorted(bad.read()) == ["1.flac", "4.flac"]


def test_bad_clips_are_dropped_from_a_stream(tmp_path):
    contents = [flac(noise(i)) for i in range(5)]
    contents[0] = contents[2] = b"?"
    stream = audio_set(contents).to_iterable_dataset()
    bad = BadClips(tmp_path / "bad_clips.txt", 5, max_share=0.4)
    kept = drop_bad_clips(stream, ClipReader(), bad)
    assert [row["audio"]["path"] for row in kept] == ["1.flac", "3.flac", "4.flac"]
    strict = BadClips(tmp_path / "other.txt", 5)
    with pytest.raises(TooManyBadClips, match=r"1 of 5 clips(.|\n)*0.flac"):
        list(drop_bad_clips(stream, ClipReader(), strict))
