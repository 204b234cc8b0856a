"""Times of known sounds, against the steps of the windows that hold them, computed by hand."""

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import ASTFeatureExtractor, Event, EventDetector
from modeling_ast.recordings import BAD_SAMPLES, BLOCK_SECONDS, BadStretch
from modeling_ast.tagging import AudioTagger
from tests.loud_model import LABELS, loud_tagger

RATE = 16_000
FRAME = 0.025
PLAIN = {"min_gap": 0.0, "min_length": 0.0}


def detector(**rules):
    return EventDetector(loud_tagger(), **{**PLAIN, **rules})


def noise(seconds, rate=RATE, seed=0):
    """A noise far below the level that the model reacts to."""
    rng = np.random.default_rng(seed)
    return 1e-4 * rng.standard_normal(round(seconds * rate)).astype(np.float32)


def with_sound(onset, offset, seconds=10.0, rate=RATE):
    """A loud noise in a soft one."""
    x = noise(seconds, rate)
    start, stop = round(onset * rate), round(offset * rate)
    x[start:stop] = 0.5 * np.random.default_rng(1).standard_normal(stop - start)
    return x


def loud(events):
    return [event for event in events if event.label == "loud"]


def all_scores(detector, clip):
    return np.concatenate([block.scores for block in detector.scores(clip)])


def covering_fractions(onset, offset, seconds, window, hop):
    """The scores by definition: the share of the windows over each step that touch the sound."""
    num_covering = max(1, int(np.ceil(window / hop - 0.5)))
    shares = []
    for step in range(int(np.ceil(seconds / hop - 1e-9))):
        starts = [(step - back) * hop for back in range(num_covering)]
        touched = [start < offset and onset < start + window for start in starts]
        shares.append(np.mean(touched))
    return np.array(shares)


@pytest.mark.parametrize(
    ("window", "hop"), [(1.0, 0.1), (0.5, 0.25), (2.0, 0.5), (1.0, 0.3), (0.4, 0.4)]
)
def test_a_step_is_the_mean_of_the_windows_that_cover_it(window, hop):
    onset, offset, seconds = 4.03, 5.21, 10.0
    scores = all_scores(detector(window=window, hop=hop), with_sound(onset, offset, seconds))
    expected = covering_fractions(onset, offset, seconds, window, hop)
    assert scores.shape == (len(expected), len(LABELS))
    # A frame reaches up to 25 ms beyond the sound; a window that touches less may miss it.
    wrong = np.abs(scores[:, 0] - expected) > 1e-6
    assert wrong.sum() <= 4
    np.testing.assert_allclose(scores[:, 0], expected, atol=2 * hop / window + 1e-6)


def test_the_maximum_is_1_wherever_a_window_touches_the_sound():
    scores = all_scores(detector(combine="max"), with_sound(4.05, 5.15))[:, 0]
    heard = np.flatnonzero(scores > 0.5) * 0.1
    assert heard[0] == pytest.approx(3.1, abs=0.11) and heard[-1] == pytest.approx(6.0, abs=0.11)


@pytest.mark.parametrize("onset", [0.0, 0.4, 4.05, 8.5])
@pytest.mark.parametrize("hop", [0.05, 0.1, 0.25])
def test_an_event_is_where_the_sound_is_whatever_its_place(onset, hop):
    """At the edge of a sound, half of the windows over a step touch it."""
    offset = onset + 1.5
    (event,) = loud(detector(hop=hop, threshold=0.999)(with_sound(onset, offset)))
    assert event.onset == pytest.approx(onset, abs=hop + FRAME)
    assert event.offset == pytest.approx(offset, abs=hop + FRAME)
    assert event.score == 1.0


@pytest.mark.parametrize("depth", np.linspace(0.02, 0.98, 10))
@pytest.mark.parametrize("is_silent", [True, False])
def test_a_needle_is_found_where_it_is(depth, is_silent):
    """A sound of one second in ten is found within a frame at both ends, for any steps."""
    onset = depth * 9
    x = with_sound(onset, onset + 1)
    if is_silent:
        x[np.abs(x) < 1e-3] = 0
    for hop in (0.1, 0.25):
        (event,) = loud(detector(hop=hop)(x))
        assert event.onset == pytest.approx(onset, abs=FRAME)
        assert event.offset == pytest.approx(onset + 1, abs=FRAME)
    (by_scores,) = loud(detector(edges="scores")(x))
    for time in (by_scores.onset, by_scores.offset):
        assert round(time / 0.1, 6) % 1 == 0


@pytest.mark.parametrize("window", [0.5, 0.51, 1.0])
def test_many_blocks_do_not_move_edges(window, monkeypatch, tmp_path):
    """This is so even if windows do not overlap and none holds a sound on their border."""
    monkeypatch.setattr("modeling_ast.recordings.BLOCK_SECONDS", 1.0)
    soundfile.write(tmp_path / "a.wav", with_sound(55.2, 56.4, 60), RATE, subtype="FLOAT")
    (event,) = loud(detector(window=window, hop=0.5)(tmp_path / "a.wav"))
    assert event.onset == pytest.approx(55.2, abs=FRAME)
    assert event.offset == pytest.approx(56.4, abs=FRAME)


def test_a_sound_without_an_edge_reaches_to_the_end_of_the_recording():
    """A sound may also reach a stretch that cannot be used, because it went on there."""
    (event,) = loud(detector()(with_sound(0, 5, 5)))
    assert (event.onset, event.offset) == (0.0, 5.0)
    x = with_sound(0, 8, 8)
    x[3 * RATE : 5 * RATE] = np.nan
    events = loud(detector()(x))
    assert [(event.onset, event.offset) for event in events] == [(0.0, 3.0), (5.0, 8.0)]


def test_a_slow_sound_keeps_the_edges_of_its_scores():
    x = with_sound(0, 10)
    decibels = np.interp(np.arange(10 * RATE) / RATE, [0, 4, 6, 10], [-120, 0, 0, -120])
    x *= 10 ** (decibels / 20)
    assert loud(detector()(x)) == loud(detector(edges="scores")(x)) != []


RATES = (8_000, 16_000, 44_100, 48_000)
CLICKS = [
    (suffix, rate)
    for suffix in ("wav", "flac", "mp3", "ogg", "opus")
    for rate in RATES
    if (suffix, rate) != ("opus", 44_100)  # a rate that Opus does not have
]


@pytest.mark.parametrize(("suffix", "rate"), CLICKS)
def test_a_click_comes_back_at_its_time(rate, suffix, tmp_path):
    """Its event lies around it: the middle is off by at most half a step and a frame.

    The decoders take off what the encoders put before the sound.
    """
    is_opus = suffix == "opus"
    file_format, subtype = ("OGG", "OPUS") if is_opus else (suffix.upper(), None)
    name = tmp_path / f"click.{suffix}"
    for seconds in (0.5, 3.217, 9.4):
        x = noise(10, rate)
        x[round(seconds * rate)] = 1.0
        soundfile.write(name, x, rate, format=file_format, subtype=subtype)
        for window, hop in ((1.0, 0.1), (0.5, 0.05), (0.2, 0.02)):
            find = detector(window=window, hop=hop, threshold=0.7)
            (event,) = loud(find(name))
            middle = (max(event.onset, 0) + event.offset) / 2
            assert middle == pytest.approx(seconds, abs=hop / 2 + FRAME)


@pytest.mark.parametrize("seconds", [BLOCK_SECONDS - 0.01, BLOCK_SECONDS, 2 * BLOCK_SECONDS + 3.7])
def test_blocks_cannot_be_heard(seconds, monkeypatch, tmp_path):
    """The scores equal those of a single block, so that a sound on a border is found."""
    x = with_sound(BLOCK_SECONDS - 1.3, BLOCK_SECONDS - 0.1, seconds)
    soundfile.write(tmp_path / "a.wav", x, RATE, subtype="FLOAT")
    in_blocks = all_scores(detector(), tmp_path / "a.wav")
    monkeypatch.setattr("modeling_ast.recordings.BLOCK_SECONDS", 1000.0)
    np.testing.assert_allclose(all_scores(detector(), x), in_blocks, atol=1e-7)
    assert len(in_blocks) == np.ceil(seconds / 0.1)


def test_windows_are_scored_as_clips_of_their_own(tiny_model, clip):
    """The judge is the tagger that every other tool uses, with its padding and mask."""
    extractor = ASTFeatureExtractor.from_config(tiny_model.config)
    for padding in ("longest", "max_length"):
        tagger = AudioTagger(
            tiny_model, extractor, padding=padding, num_workers=0, scores="sigmoid"
        )
        find = EventDetector(tagger, window=0.5, hop=0.25)
        padded = np.concatenate([np.zeros(4000), clip, np.zeros(8000)]).astype(np.float32)
        windows = [padded[start : start + 8000] for start in range(0, 32000 + 4000, 4000)]
        alone = np.stack([result.scores for result in tagger(windows)])
        expected = (alone[1:] + alone[:-1]) / 2
        np.testing.assert_allclose(all_scores(find, clip), expected, atol=1e-6)


def test_windows_go_through_in_batches_of_the_tagger():
    tagger = loud_tagger(batch_frames=500)
    list(EventDetector(tagger).scores(noise(3)))
    assert set(tagger.model.num_frames) == {100}
    assert len(tagger.model.num_frames) == -(-39 // 5)
    padded = loud_tagger(padding="max_length")
    list(EventDetector(padded).scores(noise(3)))
    assert set(padded.model.num_frames) == {200}


def test_hysteresis_keeps_an_event_going():
    x = with_sound(3, 4)
    (strict,) = loud(detector(threshold=0.9)(x))
    (kept,) = loud(detector(threshold=0.9, hysteresis=0.5)(x))
    assert kept.onset < strict.onset and kept.offset > strict.offset


def test_gaps_are_closed_and_short_events_dropped():
    x = with_sound(3, 3.4)
    x[round(3.7 * RATE) : round(4.2 * RATE)] = with_sound(0, 0.5, 0.5)
    rules = {"window": 0.1, "hop": 0.05, "threshold": 0.9}
    assert len(loud(detector(**rules)(x))) == 2
    (whole,) = loud(detector(**rules, min_gap=0.5)(x))
    assert whole.onset == pytest.approx(3, abs=0.1) and whole.offset == pytest.approx(4.2, abs=0.1)
    assert len(loud(detector(**rules, min_length=0.45)(x))) == 1
    assert len(loud(detector(**rules, median=0.85)(x))) == 1


def test_thresholds_of_labels():
    x = noise(2)
    assert {event.label for event in detector()(x)} == {"quiet"}
    labels = {event.label for event in detector(label_thresholds={"never": 1e-10})(x)}
    assert labels == {"quiet", "never"}
    assert detector(threshold=1e-10).thresholds.tolist() == [1e-10] * 3


def test_events_are_sorted_and_end_with_the_recording():
    events = detector()(with_sound(3, 4, 10.05))
    assert events == sorted(events)
    assert max(event.offset for event in events) == 10.05


@pytest.mark.parametrize("num_samples", [1, 399, 400, 1600, 1601, 16000])
def test_a_recording_shorter_than_a_window(num_samples):
    (detection,) = detector().detect([with_sound(0, 1, 1)[:num_samples]])
    assert detection.error is None and detection.seconds == num_samples / RATE
    assert all_scores(detector(), noise(1)[:num_samples]).shape[0] == -(-num_samples // 1600)


def test_silence_is_no_error():
    (detection,) = detector().detect([np.zeros(3 * RATE)])
    assert loud(detection.events) == [] and detection.bad_stretches == []


def test_what_is_nan_is_reported_and_the_rest_is_used(caplog):
    x = with_sound(2, 4, 40)
    x[round(5 * RATE) : round(6.5 * RATE)] = np.nan
    x[round(29.9 * RATE) : round(30.1 * RATE)] = 3e20
    x[round(30.1 * RATE) : round(30.4 * RATE)] = np.inf  # over the border of two blocks
    (detection,) = detector(threshold=0.9).detect([x])
    assert detection.bad_stretches == [
        BadStretch(5.0, 6.5, BAD_SAMPLES),
        BadStretch(29.9, 30.4, BAD_SAMPLES),
    ]
    (event,) = loud(detection.events)
    assert event.onset == pytest.approx(2, abs=0.15)
    for event in detection.events:
        assert not 5.0 < event.onset < 6.5 and not 5.0 < event.offset < 6.5
    events = detector(threshold=0.9)(x)
    assert events == detection.events
    assert ": from 5.000 s to 6.500 s: NaN, infinity" in caplog.text


def test_nan_in_a_file_of_another_rate(tmp_path):
    """The resampler spreads NaN by less than a tenth of a second."""
    x = with_sound(2, 4, 10, 48_000)
    x[5 * 48_000 : 6 * 48_000] = np.nan
    soundfile.write(tmp_path / "a.wav", x, 48_000, subtype="FLOAT")
    (detection,) = detector(threshold=0.9).detect([tmp_path / "a.wav"])
    (stretch,) = detection.bad_stretches
    assert 4.9 < stretch.onset <= 5.0 and 6.0 <= stretch.offset < 6.1
    assert len(loud(detection.events)) == 1


def test_bad_recordings_do_not_stop_the_others(tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    clips = [
        np.zeros(0),
        np.full(RATE, np.nan),
        tmp_path / "text.wav",
        tmp_path / "missing.wav",
        {"nothing": 1},
        with_sound(1, 2, 3),
    ]
    *bad, good = detector().detect(clips)
    for detection in bad:
        assert detection.error and detection.seconds is None and detection.events == []
    assert good.name == "clip 5" and good.error is None and loud(good.events)
    assert "no file at" in bad[3].error and bad[0].name == "clip 0"


def test_every_form_of_a_clip(tmp_path):
    x = with_sound(1, 2, 3)
    soundfile.write(tmp_path / "a.wav", x, RATE, subtype="FLOAT")
    expected = detector()(x)
    for clip in (
        tmp_path / "a.wav",
        (tmp_path / "a.wav").read_bytes(),
        torch.from_numpy(x),
        x.tolist(),
        (RATE, x),
        {"array": x, "sampling_rate": RATE},
        np.stack([x, x]),
    ):
        assert detector()(clip) == expected


def test_scores_are_given_while_they_come():
    seen = []
    x = noise(2 * BLOCK_SECONDS)
    list(detector().detect([x], lambda name, block: seen.append((name, block.first))))
    assert [name for name, _ in seen] == ["clip 0"] * len(seen)
    firsts = [first for _, first in seen]
    assert firsts[0] == 0 and firsts == sorted(firsts) and len(firsts) >= 2


def test_default_window_is_the_length_of_a_shorter_model():
    assert detector().window == 1.0
    tagger = loud_tagger()
    tagger.extractor.max_length = 60
    assert EventDetector(tagger, hop=0.1).window == 0.6


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"combine": "median"}, "combine is 'median'; it must be mean or max"),
        ({"edges": "sharp"}, "edges is 'sharp'; it must be spectrum or scores"),
        ({"hop": 0.125}, "hop is 0.125 s; give a whole number of frames of 0.01 s, such as 0.12"),
        ({"hop": 0.0}, "hop is 0.0 s; give a whole number"),
        ({"hop": float("nan")}, "hop is nan s; give a whole number"),
        ({"hop": -0.1}, "hop is -0.1 s; give a whole number"),
        ({"window": 0.05}, "window is 0.05 s; give at least the hop, 0.1 s, and at most the model"),
        ({"window": 3.0}, "at most the model's length, 2 s"),
        ({"window": float("nan")}, "window is nan s"),
        ({"hysteresis": 0.0}, "hysteresis is 0.0; give more than 0 and at most 1"),
        ({"median": -1.0}, "median is -1.0 s; give 0 or more seconds"),
        ({"min_gap": float("inf")}, "min_gap is inf s; give 0 or more seconds"),
        ({"threshold": 0.0}, "a threshold is 0.0; give more than 0 and at most 1"),
        ({"label_thresholds": {"loud": 1.5}}, "a threshold is 1.5; give more than 0"),
        ({"label_thresholds": {"dog": 0.5}}, "the model has no label 'dog'; it has"),
    ],
)
def test_refused(rules, message):
    with pytest.raises(ValueError) as refused:
        detector(**rules)
    assert message in str(refused.value)


def test_one_clip_is_no_list():
    with pytest.raises(TypeError, match="clips is a single str; give a list of clips"):
        detector().detect("a.wav")


def test_a_model_that_gives_nan_is_one_bad_recording(monkeypatch):
    find = detector()
    monkeypatch.setattr(
        find.tagger.model, "forward", lambda **inputs: _nan_logits(inputs["input_values"])
    )
    (detection,) = find.detect([noise(2)])
    assert "the model gives NaN for clip 0 in torch.float32" in detection.error


def _nan_logits(values):
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=torch.full((len(values), 3), torch.nan))


def test_a_checkpoint_is_loaded_with_padding_to_the_longest(tiny_folder):
    assert EventDetector.from_pretrained(tiny_folder, hop=0.1).tagger.padding == "longest"
    padded = EventDetector.from_pretrained(tiny_folder, padding="max_length", window=0.5)
    assert padded.tagger.padding == "max_length" and padded.window == 0.5


def test_an_event_is_a_plain_row():
    assert Event(0.1, 0.2, "Dog", 0.5)._asdict() == {
        "onset": 0.1,
        "offset": 0.2,
        "label": "Dog",
        "score": 0.5,
    }
