"""workers: order, workers that die, reading ahead. Judge: soundfile and the given clips."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import audio, workers
from modeling_ast.workers import decode_clips

RATE = 16000


@pytest.fixture
def files(tmp_path):
    """Forty files of different lengths, numbered from 0."""
    paths = [tmp_path / f"{number:02}.wav" for number in range(40)]
    for number, path in enumerate(paths):
        samples = 0.1 * np.random.default_rng(number).standard_normal(400 + 100 * number)
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    return paths


def check(clips, files, bad=()):
    """All clips come, in order, with the samples of their files."""
    clips = list(clips)
    assert [clip.number for clip in clips] == list(range(len(files)))
    for clip, path in zip(clips, files):
        assert clip.name == str(path) and clip.source is None
        assert (clip.error is not None) == (path in bad)
        if path not in bad:
            np.testing.assert_array_equal(clip.waveform, soundfile.read(path, dtype="float32")[0])
    return clips


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_clip_in_order(files, num_workers):
    check(decode_clips(files, RATE, num_workers), files)


def test_no_clips_at_all():
    assert [list(decode_clips([], RATE, count)) for count in (0, 2)] == [[], []]


def test_arrays_and_files_in_turns(files):
    given = []
    for path in files:
        given += [path, soundfile.read(path, dtype="float32")[0]]
    clips = list(decode_clips(given, RATE, 2))
    for index, path in enumerate(files):
        samples = soundfile.read(path, dtype="float32")[0]
        for clip in clips[2 * index : 2 * index + 2]:
            np.testing.assert_array_equal(clip.waveform, samples)


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_array_may_be_filled_again_once_it_was_read(files, monkeypatch, num_workers, pin_memory):
    """The caller uses one buffer again for each clip, while files make the results wait."""
    pinned, empty_like = [], torch.empty_like

    def unpinned(x, pin_memory):
        pinned.append(len(x))
        return empty_like(x)

    # Without a GPU there is no such memory.
    monkeypatch.setattr(torch, "empty_like", unpinned)
    buffer = np.empty(RATE, np.float32)

    def clips():
        for number in range(20):
            yield files[number]
            buffer[:] = number / 100
            yield buffer

    decoded = list(decode_clips(clips(), RATE, num_workers, pin_memory))
    for number, clip in enumerate(decoded[1::2]):
        assert clip.waveform.unique().tolist() == pytest.approx([number / 100])
    # Samples from a worker come from another process, in memory that is not pinned.
    assert pinned.count(RATE) == 20 * pin_memory
    assert len(pinned) == (20 + 20 * (num_workers == 0)) * pin_memory


def test_a_killed_worker_is_replaced_and_nothing_is_lost(files):
    clips = decode_clips(files * 20, RATE, 2)
    before = list(islice(clips, 3))
    killed = multiprocessing.active_children()
    assert len(killed) == 2
    os.kill(killed[0].pid, signal.SIGKILL)
    check([*before, *clips], files * 20)


def test_a_file_that_kills_its_worker_says_so_and_stops_nothing(files, monkeypatch):
    read_audio, bad = audio.read_audio, (files[5], files[6], files[39])

    def deadly(path, *wanted):
        if path in map(str, bad):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_audio(path, *wanted)

    # The workers are forked and have this too.
    monkeypatch.setattr(audio, "read_audio", deadly)
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("a worker that is not forked has not the function that kills it")
    clips = check(decode_clips(files, RATE, 2), files, bad)
    assert f"{bad[0]} killed each process that decoded it" in clips[5].error


def test_workers_that_cannot_begin(files, monkeypatch):
    monkeypatch.setattr(workers, "_begin_worker", lambda *arguments: os._exit(1))
    with pytest.raises(RuntimeError, match="give num_workers=0"):
        list(decode_clips(files, RATE, 1))


def test_no_more_is_read_ahead_than_fits_in_memory(files, tmp_path):
    for size, most in ((None, 64), (2**25, 2)):
        read = 0

        def clips(size=size):
            nonlocal read
            for number in range(300):
                read += 1
                path = files[number % 40]
                if size is not None:
                    path = tmp_path / "large.wav"
                    path.touch()
                    os.truncate(path, size)
                yield path

        for given, _ in enumerate(decode_clips(clips(), RATE, 1), 1):
            assert read - given <= most
        assert given == read == 300


def test_reading_ahead_counts_decoded_bytes(tmp_path, monkeypatch):
    """Silence is very small as FLAC and large when it is decoded."""
    path = tmp_path / "silence.flac"
    soundfile.write(path, np.zeros(60 * RATE), RATE)  # 3.84 MB of float32
    monkeypatch.setattr(workers, "BYTES_AHEAD", 2 * 4 * 60 * RATE)
    read = 0

    def clips():
        nonlocal read
        for _ in range(40):
            read += 1
            yield path

    for given, clip in enumerate(decode_clips(clips(), RATE, 1), 1):
        assert len(clip.waveform) == 60 * RATE
        assert read - given <= 2 + workers.MOST_UNDECODED
    assert given == 40


def test_a_file_above_the_limit_comes_with_its_source(files):
    """Samples in memory are returned as a whole, because they are in memory already."""
    large = soundfile.read(files[39], dtype="float32")[0]
    for num_workers in (0, 1):
        given = [files[0], files[39], files[39].read_bytes(), large]
        short, *long, whole = decode_clips(given, RATE, num_workers, max_bytes=4 * 4000)
        assert not short.is_long and len(short.waveform) == 400
        assert [clip.is_long for clip in long] == [True, True]
        assert [clip.source.content for clip in long] == [str(given[1]), given[2]]
        assert all(clip.waveform is None and clip.error is None for clip in long)
        assert len(whole.waveform) == len(large) == 4300


@pytest.mark.parametrize("place", ["no such folder", "no room"])
def test_samples_come_through_a_pipe_where_there_is_no_shared_memory(files, monkeypatch, place):
    if place == "no such folder":
        monkeypatch.setattr(workers, "SHARED_MEMORY", files[0].parent / "none")
    else:

        def no_room(**kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        # The workers are forked and have this too.
        monkeypatch.setattr(workers.tempfile, "NamedTemporaryFile", no_room)
        if multiprocessing.get_start_method() != "fork":
            pytest.skip("a worker that is not forked finds the room")
    check(decode_clips(files, RATE, 2), files)


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    """A folder in the place of /dev/shm, which other tests use at the same time."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(workers, "SHARED_MEMORY", folder)
    return folder


def test_workers_end_with_a_caller_that_stops_early(files, shared_memory):
    clips = decode_clips(files * 10, RATE, 2)
    next(clips)
    assert len(list(shared_memory.iterdir())) == 1
    clips.close()
    assert not multiprocessing.active_children()
    assert not list(shared_memory.iterdir())


ENDLESS = """
import itertools, multiprocessing, pathlib, sys, time
from modeling_ast import workers
workers.SHARED_MEMORY = pathlib.Path(sys.argv[1])
clips = workers.decode_clips(itertools.cycle(sys.argv[2:]), 16000, 2)
next(clips)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
for clip in clips:
    time.sleep(0.1)
"""


@contextmanager
def endless_run(shared_memory, files):
    """A run in a session of its own that has read some clips; it is killed in any case."""
    command = [sys.executable, "-c", ENDLESS, str(shared_memory), *map(str, files)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_workers_end_with_a_killed_caller(files, shared_memory):
    with endless_run(shared_memory, files) as process:
        pids = process.stdout.readline().split()
        assert len(pids) == 2 and len(list(shared_memory.iterdir())) == 1
        process.kill()
        # The workers hold this pipe too, so that it ends with the last of them.
        assert process.stdout.read() == ""
    assert not list(shared_memory.iterdir())


def test_the_memory_of_a_run_that_was_killed_with_its_workers_is_given_back(files, shared_memory):
    with endless_run(shared_memory, files) as process:
        process.stdout.readline()
        (folder,) = shared_memory.iterdir()
        check(decode_clips(files, RATE, 2), files)
        assert folder.exists()  # it is in use
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.read()
    assert folder.exists()
    check(decode_clips(files, RATE, 2), files)
    assert not folder.exists()


def test_a_folder_that_another_run_removes_before_it_is_locked(files, shared_memory, monkeypatch):
    make = workers.tempfile.mkdtemp
    removed = []

    def make_and_lose(**kwargs):
        path = make(**kwargs)
        if not removed:
            os.rmdir(path)
            removed.append(path)
        return path

    monkeypatch.setattr(workers.tempfile, "mkdtemp", make_and_lose)
    check(decode_clips(files, RATE, 2), files)
    assert removed and not list(shared_memory.iterdir())


def test_a_daemonic_process_decodes_by_itself(files):
    """A daemonic process, such as one of multiprocessing.Pool, cannot start others."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        lengths = pool.apply(lengths_of, (files, 2))
    assert lengths == [400 + 100 * number for number in range(40)]


def lengths_of(files, num_workers):
    assert multiprocessing.current_process().daemon
    return [len(clip.waveform) for clip in decode_clips(files, RATE, num_workers)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_tensors_that_must_be_resampled_reach_a_worker(num_workers):
    x = torch.linspace(-1, 1, 8000)
    forms = [x, x.double(), x.bfloat16(), (torch.stack([x, x]) * 2**14).short()]
    forms.append(x.clone().requires_grad_())
    clips = list(decode_clips([(form, 8000) for form in forms], RATE, num_workers))
    assert [clip.error for clip in clips] == [None] * 5
    assert all(len(clip.waveform) == 16000 for clip in clips)
    tolerances = [0, 1e-6, 2**-8, 2**-13, 0]  # bfloat16 has 8 bits; the last but one is half of x
    shares = [1, 1, 1, 0.5, 1]
    for clip, tolerance, share in zip(clips, tolerances, shares, strict=True):
        expected = torch.as_tensor(clips[0].waveform) * share
        torch.testing.assert_close(clip.waveform, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_no_worker_can_be_sent_is_that_clips_error(files, num_workers):
    bad = [
        ([lambda: 0] * 500, 8000),
        (np.array([open, open]), 8000),
        {"array": np.zeros(9000), "sampling_rate": np.array([8000, 8000])},
        (torch.zeros(9000, device="meta"), 8000),
        torch.zeros(9000).to_sparse(),
        (torch.zeros(9000, dtype=torch.int64), 8000),
        (torch.zeros(9000, dtype=torch.complex64), 8000),
    ]
    clips = list(decode_clips([files[0], *bad, files[1]], RATE, num_workers))
    assert [clip.error is None for clip in clips] == [True] + [False] * 7 + [True]
    assert all("\n" not in clip.error for clip in clips[1:-1])


def test_a_decoder_that_breaks_is_that_clips_reason(files):
    class Broken:
        def get_all_samples(self):
            raise RuntimeError("Could not open input file\nand a long story")

    clips = list(decode_clips([files[0], Broken(), files[1]], RATE, 0))
    assert [clip.error for clip in clips] == [
        None,
        "clip 1 cannot be read (Could not open input file); drop it",
        None,
    ]
