"""AudioTagger. Judge: the extractor and the model, called clip by clip."""

import itertools
import math

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import AudioTagger, read_audio

RATE = 16000


def noise(seconds, seed=0, rate=RATE):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        "float32"
    )


@pytest.fixture
def tagger(tiny_folder):
    """Batches of two seconds, so that ten clips need many."""
    return AudioTagger.from_pretrained(
        tiny_folder, "cpu", batch_frames=200, num_workers=0, top_k=5, scores="sigmoid"
    )


def alone(tagger, waveform):
    """Logits (C,) of one clip."""
    inputs = tagger.extractor(
        waveform, sampling_rate=RATE, padding="longest", return_tensors="pt", truncation=False
    )
    with torch.no_grad():
        return tagger.model(**inputs).logits[0]


def as_logits(tagger, result):
    """Logits (C,), taken back from the sigmoid scores of all labels."""
    index_of = tagger.model.config.label2id
    scores = torch.zeros(len(index_of), dtype=torch.float64)
    for label, score in result.labels.items():
        scores[index_of[label]] = score
    return scores.logit().float()


def in_parts(tagger, waveform):
    """Scores (C,) of one clip. Beyond the model's 97 frames those of equal parts, averaged: each
    part is cut out of the frames of the whole clip, at patches, of which no part may have more
    than the model has positions for."""
    config = tagger.model.config
    inputs = tagger.extractor(
        waveform, sampling_rate=RATE, padding="longest", return_tensors="pt", truncation=False
    )
    frames = inputs.input_values[:, : int(inputs.attention_mask.sum())]  # (1, T, F)
    columns = (frames.shape[1] - 16) // 7 + 1
    positions = (config.max_length - 16) // 7 + 1
    if columns <= positions:
        return alone(tagger, waveform).sigmoid()
    count = math.ceil(columns / positions)
    bounds = [columns * part // count for part in range(count + 1)]
    total = 0.0
    for begin, end in itertools.pairwise(bounds):
        with torch.no_grad():
            logits = tagger.model(frames[:, 7 * begin : 7 * (end - 1) + 16]).logits[0]
        total = total + logits.sigmoid() * (end - begin)
    return total / columns


# 0.03 s is less than a patch; 1.1 s and more is longer than the position table (0.97 s).
LENGTHS = [0.5, 3.0, 0.03, 0.9, 0.7, 1.1, 0.16, 0.5, 2.0, 0.4, 0.35, 1.9]


def test_a_batch_has_the_logits_of_each_clip_alone(tagger):
    waveforms = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate(LENGTHS)]
    together = tagger.logits(waveforms)
    for row, waveform in zip(together, waveforms):
        torch.testing.assert_close(row, alone(tagger, waveform), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="clip 1 holds NaN or infinity in 1 of 16000 samples"):
        tagger.logits([torch.zeros(RATE), torch.zeros(RATE).index_fill(0, torch.tensor(7), np.nan)])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batches_ahead", [0, 1])
def test_results_are_those_of_each_clip_alone_and_in_order(tagger, num_workers, batches_ahead):
    tagger.num_workers, tagger.batches_ahead = num_workers, batches_ahead
    waveforms = [noise(seconds, seed) for seed, seconds in enumerate(LENGTHS * 4)]
    results = list(tagger(iter(waveforms)))
    assert [result.name for result in results] == [f"clip {n}" for n in range(len(waveforms))]
    for result, waveform in zip(results, waveforms):
        assert result.error is None and result.seconds == len(waveform) / RATE
        assert list(result.labels.values()) == sorted(result.labels.values(), reverse=True)
        # The logarithm of 1 - score magnifies float32's rounding; the logits are compared above.
        torch.testing.assert_close(
            as_logits(tagger, result), in_parts(tagger, waveform).logit(), atol=1e-4, rtol=1e-4
        )


def test_every_form_of_a_clip(tagger, tmp_path):
    from datasets import Audio, Dataset

    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([noise(0.8, 1, 44100), noise(0.8, 2, 44100)], 1), 44100)
    waveform = read_audio(path)
    rows = Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", Audio())
    samples, _ = soundfile.read(path, dtype="float32")
    clips = [
        path,
        str(path),
        path.read_bytes(),
        waveform,
        torch.from_numpy(waveform),
        waveform.tolist(),
        {"array": waveform},
        {"array": samples.mean(1), "sampling_rate": 44100},
        {"bytes": path.read_bytes(), "path": "from a data set"},
        {"path": str(path), "bytes": None},
        {"audio": {"array": waveform, "sampling_rate": RATE}, "label": 3},
    ]
    results = [*tagger(clips), *tagger(rows)]
    assert [result.error for result in results] == [None] * 12
    assert results[0].name == str(path) and results[8].name == "from a data set"
    for result in results:
        assert result.labels == pytest.approx(results[3].labels, abs=1e-5)


def test_bad_clips_have_a_reason_and_stop_nothing(tagger, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    clips = [
        noise(0.5),
        tmp_path / "text.wav",
        tmp_path / "missing.wav",
        noise(0.01),
        np.full(RATE, np.nan),
        np.zeros((RATE, 2)),
        {"array": noise(0.5), "sampling_rate": -1},
        {"label": 3},
        None,
        [object()],
        noise(0.6),
    ]
    for tagger.num_workers in (0, 1):
        results = list(tagger(clips))
        assert len(results) == len(clips)
        assert results[0].error is None and results[-1].error is None
        for result, reason in zip(
            results[1:-1],
            (
                "cannot be decoded as audio",
                "no file at",
                "clip 3 has 160 samples but one window needs 400",
                "clip 4 holds NaN or infinity",
                "clip 5 has shape",
                "sampling rate is -1",
                "clip 7 has the keys",
                "clip 8 is a NoneType",
                "clip 9 is a list that holds no numbers",
            ),
        ):
            assert reason in result.error and not result.labels and result.seconds is None


def test_the_window_is_bounded_and_the_oldest_comes_next(tagger):
    """However many clips there are, no more are read ahead than the window holds."""
    read = 0

    def clips():
        nonlocal read
        for seed in range(1000):
            read += 1
            yield noise(0.03 + (seed % 17) / 10, seed=0)

    ahead = given = first = 0
    for given, _ in enumerate(tagger(clips()), 1):
        first = first or read
        ahead = max(ahead, read - given)
    # 32 batches of 200 frames, of clips that have 83 frames on average.
    assert given == read == 1000 and ahead <= 200
    # The first comes when a quarter of them is there: 1600 frames, 20 clips.
    assert first <= 30


def test_batches_hold_no_more_than_they_may_and_little_padding(tagger):
    sizes = []
    launch = tagger._launch

    def counted(batch):
        frames = [piece.frames for piece in batch]
        sizes.append((max(frames) * len(frames), sum(frames), len(frames)))
        return launch(batch)

    tagger._launch = counted
    seconds = np.exp(np.random.default_rng(0).uniform(np.log(0.1), np.log(1.5), 400))
    assert len(list(tagger(noise(length) for length in seconds))) == 400
    assert all(padded <= 200 or count == 1 for padded, _, count in sizes)
    padded, real, _ = (sum(column) for column in zip(*sizes))
    assert padded < 1.15 * real


def test_a_clip_beyond_the_trained_length_is_heard_in_parts_all_of_it(tagger):
    """The parts have the patches of the whole clip, and none has more than there are positions."""
    waveform = noise(2.57)
    pieces = tagger._pieces(torch.from_numpy(waveform))
    assert len(pieces) == 3 and sum(piece.share for piece in pieces) == pytest.approx(1)
    patches = [tagger.model.config.patch_grid(piece.frames)[1] for piece in pieces]
    assert max(patches) <= tagger.model.config.patch_grid()[1] + 1  # one of padding at the end
    assert len(pieces[-1].waveform) + 2 * 7 * 160 * 12 == pytest.approx(len(waveform), rel=0.1)
    (result,) = tagger([waveform])
    expected = in_parts(tagger, waveform)
    for label, score in result.labels.items():
        index = tagger.model.config.label2id[label]
        assert score == pytest.approx(expected[index].item(), abs=1e-5)
    # Every second counts: a change anywhere, at a seam too, changes the scores.
    for second in np.arange(0.05, 2.5, 0.1):
        changed = waveform.copy()
        changed[int(second * RATE) :][:160] += 0.5
        (other,) = tagger([changed])
        assert other.labels != pytest.approx(result.labels, abs=1e-6), second


def test_softmax_dtype_and_top_k(tiny_folder):
    tagger = AudioTagger.from_pretrained(
        tiny_folder, "cpu", torch.bfloat16, num_workers=0, top_k=99, scores="auto"
    )
    assert tagger.model.dtype == torch.bfloat16
    (result,) = tagger([noise(0.5)])
    assert len(result.labels) == 5 and sum(result.labels.values()) == pytest.approx(1, abs=1e-5)
    tagger.top_k = 2
    assert len(next(tagger([noise(0.5)])).labels) == 2


def test_scores_that_are_no_numbers_are_an_error(tagger):
    with torch.no_grad():
        tagger.model.classifier.dense.bias[2] = torch.nan
    (result,) = tagger([noise(0.5)])
    assert "the model gives NaN for clip 0 in torch.float32; try" in result.error
    assert not result.labels and result.seconds is None


def test_each_bad_argument_is_named(tagger, tiny_folder):
    for given, message in [
        ({"batch_frames": 0}, "batch_frames is 0; give at least 1"),
        ({"num_workers": -1}, "num_workers is -1; give at least 0"),
        ({"top_k": 0}, "top_k is 0; give at least 1"),
        ({"scores": "logits"}, "scores is 'logits'; it must be one of auto"),
    ]:
        with pytest.raises(ValueError, match=message):
            AudioTagger(tagger.model, tagger.extractor, **given)
    for clip in ("a.wav", noise(1), {"array": noise(1)}):
        with pytest.raises(TypeError, match="give a list of clips"):
            tagger(clip)


@pytest.mark.gpu
def test_the_gpu_gives_the_cpus_scores(tiny_folder):
    clips = [noise(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
    taggers = [AudioTagger.from_pretrained(tiny_folder, name) for name in ("cpu", "cuda")]
    for ours, theirs in zip(*(tagger(clips) for tagger in taggers)):
        assert ours.labels == pytest.approx(theirs.labels, abs=1e-3)
