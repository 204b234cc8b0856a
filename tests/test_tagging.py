"""AudioTagger. Judge: the extractor and the model, called clip by clip."""

import io
import itertools
import math
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
import transformers

from modeling_ast import AudioTagger, quantize_int8, read_audio, stream_audio
from modeling_ast.clip_parts import equal_parts, mean_logits
from modeling_ast.tagging import default_workers

RATE = 16000


def noise(seconds, seed=0, rate=RATE):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        "float32"
    )


@pytest.fixture
def tagger(tiny_folder):
    """A tagger with batches of two seconds, so that ten clips need many of them."""
    return AudioTagger.from_pretrained(
        tiny_folder,
        "cpu",
        batch_frames=200,
        num_workers=0,
        top_k=5,
        scores="sigmoid",
        padding="longest",
    )


def alone(tagger, waveform):
    """Logits (C,) of one clip."""
    inputs = tagger.extractor(
        waveform, sampling_rate=RATE, padding="longest", return_tensors="pt", truncation=False
    )
    with torch.no_grad():
        return tagger.model(**inputs).logits[0]


def as_logits(tagger, result):
    """Logits (C,), computed from the sigmoid scores of all labels."""
    index_of = tagger.model.config.label2id
    scores = torch.zeros(len(index_of), dtype=torch.float64)
    for label, score in result.labels.items():
        scores[index_of[label]] = score
    return scores.logit().float()


# Samples that the model's 97 frames cover.
LONGEST = 96 * 160 + 400


def in_parts(tagger, waveform):
    """Scores (C,) of one clip: the mean over its equal parts."""
    count = math.ceil(len(waveform) / LONGEST)
    bounds = np.round(np.linspace(0, len(waveform), count + 1)).astype(int)
    parts = [waveform[start:stop] for start, stop in itertools.pairwise(bounds)]
    return torch.stack([alone(tagger, part).double().sigmoid() for part in parts]).mean(0)


# 0.03 s is less than a patch; 1.1 s and more is longer than the position table (0.97 s).
LENGTHS = [0.5, 3.0, 0.03, 0.9, 0.7, 1.1, 0.16, 0.5, 2.0, 0.4, 0.35, 1.9]


def test_a_batch_has_the_logits_of_each_clip_alone(tagger):
    waveforms = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate(LENGTHS)]
    together = tagger.logits(waveforms)
    for row, waveform in zip(together, waveforms, strict=True):
        torch.testing.assert_close(row, alone(tagger, waveform), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batches_ahead", [0, 1])
def test_results_are_those_of_each_clip_alone_and_in_order(tagger, num_workers, batches_ahead):
    tagger.num_workers, tagger.batches_ahead = num_workers, batches_ahead
    waveforms = [noise(seconds, seed) for seed, seconds in enumerate(LENGTHS * 4)]
    results = list(tagger(iter(waveforms)))
    assert [result.name for result in results] == [f"clip {n}" for n in range(len(waveforms))]
    for result, waveform in zip(results, waveforms, strict=True):
        assert result.error is None and result.seconds == len(waveform) / RATE
        assert list(result.labels.values()) == sorted(result.labels.values(), reverse=True)
        # The logarithm of 1 - score magnifies float32's rounding; the logits are compared above.
        expected = in_parts(tagger, waveform)
        torch.testing.assert_close(
            as_logits(tagger, result), expected.logit().float(), atol=1e-4, rtol=1e-4
        )
        np.testing.assert_allclose(result.scores, expected, atol=1e-5)


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
        (samples, 44100),
        (44100, samples),
        {"array": samples.T, "sampling_rate": 44100},
        {"bytes": path.read_bytes(), "path": "from a data set"},
        {"path": str(path), "bytes": None},
        {"audio": {"array": waveform, "sampling_rate": RATE}, "label": 3},
    ]
    results = [*tagger(clips), *tagger(rows)]
    assert [result.error for result in results] == [None] * 15
    assert results[0].name == str(path) and results[11].name == "from a data set"
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
        np.zeros((RATE, 2, 3)),
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
            strict=True,
        ):
            assert reason in result.error and not result.labels and result.seconds is None


def test_the_window_is_bounded_and_the_oldest_comes_next(tagger):
    """Only as many clips are read ahead as the window holds, whatever their number."""
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
    # The window has 32 batches of 200 frames; clips have 83 frames on average.
    assert given == read == 1000 and ahead <= 200
    # The first result comes when a quarter of it is filled: 1600 frames, 20 clips.
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


@pytest.mark.parametrize("num_samples", [1, 400, LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST])
@pytest.mark.parametrize("more", [0, 1, 12345, 45 * RATE])
def test_equal_parts_are_the_whole_clip(num_samples, more):
    num_samples += more
    parts = equal_parts(num_samples, LONGEST)
    assert len(parts) == math.ceil(num_samples / LONGEST)
    assert parts[0][0] == 0 and parts[-1][1] == num_samples
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(parts))
    lengths = [stop - start for start, stop in parts]
    assert max(lengths) <= LONGEST and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("scale", [1, 60])
def test_logits_of_clips_have_the_mean_scores_of_their_parts(sigmoid, scale):
    """The order is right even if a float32 score would be 1."""
    logits = scale * torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    num_parts = [1, 3, 4, 1]
    found = mean_logits(logits, num_parts, sigmoid)

    def score(x):
        return x.double().sigmoid() if sigmoid else x.double().softmax(-1)

    expected = torch.stack([score(parts).mean(0) for parts in logits.split(num_parts)])
    torch.testing.assert_close(score(found), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found[[0, 3]], logits[[0, 8]]) and torch.isfinite(found).all()
    if sigmoid:
        below = torch.stack([score(-parts).mean(0) for parts in logits.split(num_parts)])
        torch.testing.assert_close(score(-found), below, atol=1e-6, rtol=1e-5)


def test_a_clip_beyond_the_trained_length_is_heard_in_parts_all_of_it(tagger):
    waveform = noise(2.57)
    assert tagger.extractor.max_samples == LONGEST and math.ceil(len(waveform) / LONGEST) == 3
    (result,) = tagger([waveform])
    np.testing.assert_allclose(result.scores, in_parts(tagger, waveform), atol=1e-5)
    # A change in any second changes the scores, even at the border of two parts.
    for second in np.arange(0.05, 2.5, 0.1):
        changed = waveform.copy()
        changed[int(second * RATE) :][:160] += 0.5
        (other,) = tagger([changed])
        assert other.labels != pytest.approx(result.labels, abs=1e-6), second


def test_padding_is_the_saved_one_unless_another_is_given(tiny_folder, caplog):
    clip = noise(0.3)
    model = AudioTagger.from_pretrained(tiny_folder, "cpu", num_workers=0)
    tight = AudioTagger.from_pretrained(tiny_folder, "cpu", num_workers=0, padding="longest")
    assert (model.padding, tight.padding) == ("max_length", "longest")
    scores = []
    for padding in ("max_length", "longest"):
        inputs = model.extractor(clip, sampling_rate=RATE, padding=padding, return_tensors="pt")
        with torch.no_grad():
            scores.append(model.model(**inputs).logits[0].softmax(-1))
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    for tagger, expected in zip((model, tight), scores, strict=True):
        (result,) = tagger([clip])
        np.testing.assert_allclose(result.scores, expected, atol=1e-6)
    model.extractor.padding = "longest"
    assert AudioTagger(model.model, model.extractor).padding == "longest"


@pytest.mark.parametrize(("padding", "seconds"), [("max_length", 0.2), ("longest", 0.2)])
@pytest.mark.parametrize("count", [9, 10, 250])
def test_one_line_says_what_padding_costs(tagger, caplog, padding, seconds, count):
    tagger.padding = padding
    list(tagger([noise(seconds)] * count))
    lines = [record.getMessage() for record in caplog.records]
    if padding == "longest" or count < 10:
        assert not lines
        return
    (line,) = lines
    # Each clip is padded from 20 to 97 frames.
    assert "the median clip lasts 0.2 s but each is padded to 0.98 s" in line
    assert "about 4.8 times as fast" in line


def test_no_line_where_padding_costs_little(tagger, caplog):
    tagger.padding = "max_length"
    list(tagger([noise(0.6)] * 12))
    list(tagger([]))
    tagger.hint_at_padding = False
    list(tagger([noise(0.2)] * 12))
    assert not caplog.records


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
    assert "the model gives NaN for clip 0 in torch.float32; check the weights" in result.error
    assert not result.labels and result.seconds is None


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.float32, "check the weights"),
        (torch.bfloat16, 'try "float32"'),
        (torch.float16, 'try "bfloat16" or "float32"'),
    ],
)
def test_the_remedy_for_nan_is_another_dtype_than_the_one_in_use(tagger, dtype, remedy):
    tagger.model.to(dtype)
    assert tagger.nan_reason("a.wav").startswith(
        f"the model gives NaN for a.wav in {dtype}; {remedy}"
    )


def test_each_bad_argument_is_named(tagger, tiny_folder):
    for given, message in [
        ({"batch_frames": 0}, "batch_frames is 0; give at least 1"),
        ({"num_workers": -1}, "num_workers is -1; give at least 0"),
        ({"top_k": 0}, "top_k is 0; give at least 1"),
        ({"scores": "logits"}, "scores is 'logits'; it must be one of auto"),
        ({"padding": "short"}, "padding is 'short'; it must be"),
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
    for ours, theirs in zip(*(tagger(clips) for tagger in taggers), strict=True):
        assert ours.labels == pytest.approx(theirs.labels, abs=1e-3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_long_file_has_the_scores_of_its_whole(tagger, tmp_path, monkeypatch, num_workers):
    """It comes between short clips, in order, and is read in blocks that are not its parts."""
    tagger.num_workers = num_workers
    path, content = tmp_path / "long.flac", io.BytesIO()
    soundfile.write(path, noise(23.4, 7, 44100), 44100)
    soundfile.write(content, noise(12, 8), RATE, format="WAV")
    clips = [noise(0.5), path, noise(0.7, 1), content.getvalue(), noise(3, 2)]
    whole = list(tagger(clips))
    monkeypatch.setattr("modeling_ast.tagging.LONG_FILE_BYTES", 4 * 10 * RATE)
    monkeypatch.setattr(
        "modeling_ast.clip_parts.stream_audio", partial(stream_audio, block_seconds=1)
    )
    streamed = list(tagger(clips))
    assert [result.name for result in streamed] == [result.name for result in whole]
    for result, expected in zip(streamed, whole, strict=True):
        assert result.error is None and result.seconds == expected.seconds
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)


def test_a_long_file_whose_header_is_wrong_has_the_scores_of_what_is_there(
    tagger, tmp_path, monkeypatch
):
    """An MP3 that was cut off, and a FLAC that does not state its length."""
    soundfile.write(tmp_path / "cut.mp3", noise(30), RATE)
    content = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    soundfile.write(tmp_path / "pipe.flac", noise(12, 1), RATE)
    content = bytearray((tmp_path / "pipe.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(content)
    files = [tmp_path / "cut.mp3", tmp_path / "pipe.flac"]
    whole = list(tagger(files))
    assert 10 < whole[0].seconds < 20 and whole[1].seconds == 12
    monkeypatch.setattr("modeling_ast.tagging.LONG_FILE_BYTES", 4 * 5 * RATE)
    for result, expected in zip(tagger(files), whole, strict=True):
        assert result.error is None and result.seconds == expected.seconds
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)


def test_a_long_file_that_is_bad_in_the_middle_is_one_bad_clip(tagger, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_ast.tagging.LONG_FILE_BYTES", 4 * 5 * RATE)
    wave = noise(20)
    wave[15 * RATE] = 3e20
    soundfile.write(tmp_path / "spike.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "half.flac", noise(20), RATE)
    content = (tmp_path / "half.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    clips = [noise(0.5), tmp_path / "spike.wav", tmp_path / "half.flac", noise(0.7)]
    first, spike, half, last = tagger(clips)
    assert "spike.wav holds samples of up to 3e+20 but audio lies in" in spike.error
    assert "half.flac' cannot be decoded as audio after" in half.error
    assert first.error is None and last.error is None and spike.scores is None


def test_workers_by_default(tiny_folder, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert (default_workers(True), default_workers(False)) == (8, 15)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    assert (default_workers(True), default_workers(False)) == (1, 1)
    assert AudioTagger.from_pretrained(tiny_folder, "cpu").num_workers == 1


def test_embeddings_are_the_pooled_outputs_of_transformers(tagger, tiny_folder, tmp_path):
    """There is one for each part, and their mean; the scores do not change."""
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(3.0, 1), RATE, subtype="FLOAT")
    clips = [noise(seconds, seed) for seed, seconds in enumerate(LENGTHS)] + [path]
    plain = list(tagger(clips))
    assert all(result.embeddings is None and result.embedding is None for result in plain)
    tagger.embeddings = True
    results = list(tagger([*clips, np.zeros(3)]))
    assert results.pop().embeddings is None  # a bad clip
    theirs = transformers.ASTModel.from_pretrained(tiny_folder).eval()
    clips[-1], _ = soundfile.read(path, dtype="float32")
    for clip, before, result in zip(clips, plain, results, strict=True):
        np.testing.assert_allclose(result.scores, before.scores, atol=1e-6)
        parts = equal_parts(len(clip), LONGEST)
        assert result.embeddings.dtype == np.float32 and len(result.embeddings) == len(parts)
        for (start, stop), vector in zip(parts, result.embeddings):
            part = clip[start:stop]
            frames = tagger.extractor(
                part, sampling_rate=RATE, padding="longest", return_tensors="pt"
            )
            with torch.no_grad():
                ours = tagger.model.audio_spectrogram_transformer(**frames).pooler_output[0]
            np.testing.assert_allclose(vector, ours, atol=1e-5)
        np.testing.assert_allclose(result.embedding, result.embeddings.mean(0), atol=1e-6)
    # transformers' own model has no mask, so that only clips without padding are compared.
    whole = noise(LONGEST / RATE, 7)
    frames = tagger.extractor(whole, sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        expected = theirs(frames).pooler_output[0]
    (result,) = tagger([whole])
    np.testing.assert_allclose(result.embedding, expected, atol=1e-5)


def test_embeddings_of_a_file_that_is_read_in_parts(tagger, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(30.0), RATE, subtype="FLOAT")
    tagger.embeddings = True
    (whole,) = tagger([path])
    monkeypatch.setattr("modeling_ast.tagging.LONG_FILE_BYTES", 4 * 5 * RATE)
    (streamed,) = tagger([path])
    assert streamed.embeddings.shape == (math.ceil(30 * RATE / LONGEST), 36)
    np.testing.assert_allclose(streamed.embeddings, whole.embeddings, atol=1e-6)


def test_embeddings_of_a_quantized_model(tagger):
    tagger.model, tagger.embeddings = quantize_int8(tagger.model), True
    (result,) = tagger([noise(0.5)])
    assert result.embedding.shape == (36,) and np.isfinite(result.embedding).all()
