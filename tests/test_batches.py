"""AudioCollator in one process, in workers, and under Trainer."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.training.augmentation import Augmentation, mixup
from modeling_ast.training.batches import AudioCollator, LabelEncoder, add_features
from modeling_ast.training.clips import BadClips, ClipReader, TooManyBadClips, undecoded
from modeling_ast.training.metrics import compute_metrics
from tests.test_clips import audio_set, flac, noise

NAMES = {"/m/09x0r": 0, "Speech": 0, "/m/0cj0r": 1, "Pink noise": 1, "/m/028v0c": 2}
MAX_LENGTH = 16
# The number of samples in 16 frames.
MAX_SAMPLES = 15 * 160 + 400


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, as in a DataLoader's worker; threads only cost time with tiny tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def extractor(**kwargs) -> ASTFeatureExtractor:
    return ASTFeatureExtractor(max_length=MAX_LENGTH, num_mel_bins=32, **kwargs)


def rows_of(waves: list[np.ndarray], labels: list) -> list[dict]:
    return [
        {"audio": {"bytes": flac(wave), "path": f"{i}.flac"}, "labels": label}
        for i, (wave, label) in enumerate(zip(waves, labels))
    ]


@pytest.mark.parametrize(
    ("labels", "indices"),
    [
        (["/m/09x0r", "Pink noise"], [0, 1]),
        ([], []),
        ([2, 0], [0, 2]),
        (np.array([1]), [1]),
        (torch.tensor([1, 1]), [1]),
        ("Speech", [0]),
    ],
)
def test_labels_become_multi_hot(labels, indices):
    encoded = LabelEncoder(NAMES, multi_label=True, num_labels=4)(labels)
    assert encoded.dtype == torch.float32 and encoded.shape == (4,)
    assert encoded.nonzero().flatten().tolist() == indices and encoded.sum() == len(indices)


@pytest.mark.parametrize("label", [1, np.int64(1), "Pink noise", ["/m/0cj0r"], torch.tensor(1)])
def test_a_label_becomes_an_index(label):
    encoded = LabelEncoder(NAMES, multi_label=False)(label)
    assert encoded.dtype == torch.int64 and encoded.shape == () and encoded == 1


def test_each_bad_label_is_named():
    encode = LabelEncoder(NAMES, multi_label=False)
    for labels, message in [
        ("Dog", "'Dog' is not among the 5 of label2id"),
        (3, "3 is not a class index; .* from 0 to 2"),
        (0.5, "0.5 is not a class index"),
        (None, "None is not a class index"),
        ([0, 1], r"has the labels \[0, 1\]; it must have exactly one"),
        ([], "must have exactly one"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(labels)
    with pytest.raises(ValueError, match="label2id is empty"):
        LabelEncoder({}, multi_label=True)


@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_a_batch_is_what_the_extractor_gives(padding):
    waves = [noise(0, 0.06), noise(1, 0.11)]
    features = extractor(padding=padding)
    collate = AudioCollator(features, LabelEncoder(NAMES, multi_label=True))
    batch = collate(rows_of(waves, [["Speech"], ["/m/028v0c", "Speech"]]))
    wanted = features(waves, sampling_rate=16000, return_tensors="pt")
    assert set(batch) == set(wanted) | {"labels"}
    for name, values in wanted.items():
        torch.testing.assert_close(batch[name], values, rtol=0, atol=0)
    assert batch["labels"].tolist() == [[1, 0, 0], [1, 0, 1]]
    assert set(AudioCollator(features)(rows_of(waves, [0, 1]))) == set(wanted)


@pytest.mark.parametrize(("crop", "start"), [("start", 0), ("random", None)])
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_a_long_clip_is_cropped_where_it_was_asked(crop, start, padding):
    wave = noise(0, (MAX_SAMPLES + 1200) / 16000)
    collate = AudioCollator(extractor(padding=padding), crop=crop, seed=3)
    rows = rows_of([wave], [0])
    values = collate(rows)["input_values"]
    starts = range(1201) if start is None else [start]
    # The first frame identifies the crop; then all frames must be those of this crop.
    firsts = np.stack([wave[i : i + 400] for i in starts])
    first_frames = extractor()(firsts, sampling_rate=16000, return_tensors="pt").input_values[:, 0]
    found = starts[int((first_frames - values[0, 0]).abs().sum(1).argmin())]
    wanted = extractor(padding=padding)(
        wave[found : found + MAX_SAMPLES], sampling_rate=16000, return_tensors="pt"
    )
    torch.testing.assert_close(values, wanted.input_values, rtol=0, atol=1e-5)
    torch.testing.assert_close(collate(rows)["input_values"], values, rtol=0, atol=0)


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_a_long_clip_is_cut_into_parts_all_of_it(padding, features):
    samples = [400, MAX_SAMPLES, MAX_SAMPLES + 1, 3 * MAX_SAMPLES + 7]
    waves = [noise(seed, count / 16000 + 1e-6) for seed, count in enumerate(samples)]
    assert [len(wave) for wave in waves] == samples
    encode = LabelEncoder({"a": 0, "b": 1, "c": 2}, multi_label=True)
    collate = AudioCollator(extractor(padding=padding), encode, crop="parts", features=features)
    rows = [
        {"audio": {"array": wave, "sampling_rate": 16000}, "labels": labels}
        for wave, labels in zip(waves, ("a", "b", "c", "a"))
    ]
    batch = collate(rows)
    assert next(iter(batch)) == "num_parts" and batch["num_parts"].tolist() == [1, 1, 2, 4]
    assert batch["labels"].argmax(1).tolist() == [0, 1, 2, 2, 0, 0, 0, 0]
    parts = [part for wave in waves for part in np.array_split(wave, -(-len(wave) // MAX_SAMPLES))]
    if features:
        wanted = extractor(padding=padding)(parts, sampling_rate=16000, return_tensors="pt")
        # Lengths are equal, except for one sample by rounding.
        assert batch["input_values"].shape == wanted.input_values.shape
        first = torch.tensor([0, 1, 2, 4])
        torch.testing.assert_close(
            batch["input_values"][first, 0], wanted.input_values[first, 0], rtol=0, atol=1e-5
        )
    else:
        heard = [x[:n] for x, n in zip(batch["waveforms"], batch["num_samples"].tolist())]
        np.testing.assert_array_equal(torch.cat(heard), np.concatenate(waves))
        assert max(map(len, heard)) <= MAX_SAMPLES
    with pytest.raises(ValueError, match="give it without an augmentation"):
        AudioCollator(extractor(), encode, crop="parts", augmentation=Augmentation())


def test_random_crops_are_spread_evenly_and_follow_the_seed():
    collate = AudioCollator(extractor(), crop="random")
    ramp = torch.arange(MAX_SAMPLES + 10)
    starts = []
    for seed in range(1100):
        starts.append(int(collate._cropped(ramp, torch.Generator().manual_seed(seed))[0]))
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11
    # Chi-square with 10 degrees of freedom is above 29.6 once in a thousand times.
    assert ((counts - 100) ** 2 / 100).sum() < 29.6


def bad_case(tmp_path, num_clips: int = 96, num_bad: int = 3, max_share: float = 0.04):
    """A data set in which clips 7, 27, ... are bad, and its list."""
    good = [flac(noise(i, 0.05)) for i in range(5)]
    contents = [good[i % 5] for i in range(num_clips)]
    for i in range(num_bad):
        contents[20 * i + 7] = b"not audio"
    dataset = undecoded(audio_set(contents)).add_column("labels", [i % 5 for i in range(num_clips)])
    return dataset, BadClips(tmp_path / "bad_clips.txt", num_clips, max_share)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_clips_are_replaced_and_listed_by_all_workers(tmp_path, num_workers):
    dataset, bad = bad_case(tmp_path)
    encode = LabelEncoder({str(i): i for i in range(5)}, multi_label=False)
    collate = AudioCollator(extractor(), encode, bad_clips=bad)
    strict = AudioCollator(extractor(), encode)
    loader = DataLoader(dataset, batch_size=8, collate_fn=collate, num_workers=num_workers)
    for _ in range(2):
        for k, batch in enumerate(loader):
            rows = [dataset[i] for i in range(8 * k, 8 * k + 8)]
            for i, row in enumerate(rows):
                if row["audio"]["bytes"] == b"not audio":
                    good = [r for r in rows if r["audio"]["bytes"] != b"not audio"]
                    rows[i] = good[i % len(good)]
            wanted = strict(rows)
            torch.testing.assert_close(batch["labels"], wanted["labels"])
            torch.testing.assert_close(batch["input_values"], wanted["input_values"])
    assert sorted(bad.read()) == ["27.flac", "47.flac", "7.flac"]
    assert len(bad.file.read_text().splitlines()) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_clips_stop_the_run(tmp_path, num_workers):
    dataset, bad = bad_case(tmp_path, num_bad=4)
    collate = AudioCollator(extractor(), bad_clips=bad)
    loader = DataLoader(dataset, batch_size=8, collate_fn=collate, num_workers=num_workers)
    with pytest.raises(TooManyBadClips, match=r"4 of 96 clips .*4.00%(.|\n)*7.flac: "):
        list(loader)


@pytest.mark.parametrize("crop", ["start", "random"])
def test_a_changed_speed_keeps_the_length_of_long_clips(crop):
    """A long tone is cropped to the same length at every speed; a short one changes its length."""
    tone = np.sin(2 * np.pi * 600 / 16000 * np.arange(32_000)).astype(np.float32)
    short, shortest = tone[:2000], tone[:402]
    rows = rows_of([tone, short, shortest] * 20, [0] * 60)
    augmentation = Augmentation(mixup_rate=0, frequency_mask=0, time_mask=0, max_speed_change=0.25)
    collate = AudioCollator(extractor(), crop=crop, augmentation=augmentation, features=False)
    batch = collate(rows)
    lengths, longest = batch["num_samples"], collate.extractor.max_samples
    assert set(lengths[::3].tolist()) == {longest}
    ratios = lengths[1::3] / len(short)
    assert ratios.min() < 0.9 and ratios.max() > 1.1
    assert ratios.min() >= 0.799 and ratios.max() <= 1.251
    assert lengths[2::3].min() >= 400 and lengths[2::3].max() > 402
    zero_crossings = (batch["waveforms"][::3, :-1].sign().diff() != 0).sum(1) / longest * 16000 / 2
    assert zero_crossings.min() < 540 and zero_crossings.max() > 660
    again = collate(rows)
    assert torch.equal(batch["waveforms"], again["waveforms"])


MIXING = Augmentation(mixup_rate=0.5, frequency_mask=8, time_mask=5, max_gain_db=3.0)


def mixing_case(count: int = 40):
    """Rows in which clip i has only label i, and an encoder for them."""
    waves = [noise(i, 0.05 + 0.01 * (i % 3)) for i in range(count)]
    encode = LabelEncoder({str(i): i for i in range(count)}, multi_label=True)
    return rows_of(waves, list(range(count))), encode


def own_shares(labels: torch.Tensor) -> torch.Tensor:
    """The share of its own label that each row of (B, C) keeps; all rows sum to 1."""
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))
    return labels.diagonal()


def test_one_label_is_mixed_and_smoothed_as_shares():
    """Mixed as clips with multi-hot labels are, and smoothed as by torch's cross entropy."""
    rows, encode = mixing_case(24)
    one = LabelEncoder(encode.label2id, multi_label=False, shares=True)
    mixing = Augmentation(mixup_rate=0.5, frequency_mask=0, time_mask=0)
    several, single = (
        AudioCollator(extractor(), x, augmentation=mixing)(rows) for x in (encode, one)
    )
    assert all(torch.equal(several[name], single[name]) for name in several)
    smoothing = Augmentation(mixup_rate=0, frequency_mask=0, time_mask=0, label_smoothing=0.3)
    labels = AudioCollator(extractor(), one, augmentation=smoothing)(rows)["labels"]
    logits = torch.randn(24, 24)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(24), label_smoothing=0.3)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, labels), expected)
    with pytest.raises(ValueError, match=r"has the labels \[1, 2\]; it must have exactly one"):
        one([1, 2])


def test_clips_of_a_batch_are_mixed_and_the_labels_tell_how():
    rows, encode = mixing_case()
    only_mixup = Augmentation(mixup_rate=0.5, frequency_mask=0, time_mask=0)
    collate = AudioCollator(extractor(), encode, augmentation=only_mixup)
    batch = collate(rows)
    plain = AudioCollator(extractor(), encode, features=False)(rows)
    clips = [w[:n] for w, n in zip(plain["waveforms"], plain["num_samples"])]
    labels = batch["labels"]
    assert 8 < (own_shares(labels) < 1).sum() < 32
    # The labels show the shares, so the mix can be repeated here.
    partners = torch.where(labels.diagonal() < 1, (labels - labels.diag().diag()).argmax(1), 0)
    others = [clips[j] for j in partners]
    mixed, _ = mixup(clips, plain["labels"], others, plain["labels"], labels.diagonal())
    wanted = extractor()(mixed, sampling_rate=16000, return_tensors="pt").input_values
    torch.testing.assert_close(batch["input_values"], wanted, rtol=0, atol=1e-4)


def test_partners_are_drawn_from_the_whole_set():
    rows, encode = mixing_case()
    augmentation = Augmentation(mixup_rate=1.0, frequency_mask=0, time_mask=0)
    counts = np.zeros(40)
    for seed in range(100):
        collate = AudioCollator(
            extractor(), encode, augmentation=augmentation, partners=rows, features=False, seed=seed
        )
        labels = collate(rows[:4])["labels"]
        own = own_shares(labels)
        others = (labels - F.pad(own.diag(), (0, 36))).argmax(1)
        # A clip that drew itself as its partner still has one label.
        counts += np.bincount(np.where(own == 1, range(4), others), minlength=40)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_bad_partner_is_listed_and_leaves_the_clip_as_it_is(tmp_path):
    rows, encode = mixing_case(4)
    bad = BadClips(tmp_path / "bad_clips.txt", 4, max_share=1.0)
    partners = [{"audio": {"bytes": b"?", "path": "bad.flac"}, "labels": 3}]
    augmentation = Augmentation(mixup_rate=1.0, frequency_mask=0, time_mask=0)
    collate = AudioCollator(
        extractor(), encode, bad_clips=bad, augmentation=augmentation, partners=partners
    )
    batch = collate(rows)
    assert torch.equal(batch["labels"], torch.eye(4))
    assert list(bad.read()) == ["bad.flac"]
    plain = AudioCollator(extractor(), encode)(rows)
    torch.testing.assert_close(batch["input_values"], plain["input_values"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_draws_depend_on_seed_and_batch_alone(num_workers):
    rows, encode = mixing_case(24)
    batches = {}
    for seed in (0, 1):
        collate = AudioCollator(extractor(), encode, augmentation=MIXING, seed=seed)
        # The state of the global generators does not matter.
        torch.manual_seed(num_workers + seed)
        loader = DataLoader(rows, 6, collate_fn=collate, num_workers=num_workers)
        batches[seed] = list(loader)
        for k, batch in enumerate(batches[seed]):
            again = collate(rows[6 * k : 6 * k + 6])
            assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert not torch.equal(batches[0][0]["input_values"], batches[1][0]["input_values"])
    collate = AudioCollator(extractor(), encode, augmentation=MIXING)
    assert not torch.equal(collate(rows)["labels"], collate(rows[::-1])["labels"].flip(0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_epoch_has_its_own_draws_even_of_a_single_clip(num_workers):
    rows, encode = mixing_case(3)
    collate = AudioCollator(extractor(), encode, augmentation=MIXING)
    loader = DataLoader(
        rows, 1, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    epochs = []
    for epoch in (0, 1, 0):
        collate.set_epoch(epoch)
        epochs.append(torch.cat([batch["input_values"] for batch in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert all(not torch.equal(first, second) for first, second in zip(epochs[0], epochs[1]))


@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_features_may_be_computed_later(padding):
    rows, encode = mixing_case(5)
    features = extractor(padding=padding)
    later = AudioCollator(features, encode, features=False)(rows)
    assert set(later) == {"waveforms", "num_samples", "labels"}
    wanted = AudioCollator(features, encode)(rows)
    done = add_features(later, features)
    assert set(done) == set(wanted) and set(later) == {"waveforms", "num_samples", "labels"}
    for name, values in wanted.items():
        torch.testing.assert_close(done[name], values, rtol=0, atol=0)
    # Masked values are a log-mel of 0.
    masked = add_features(
        later, features, Augmentation(frequency_mask=30, time_mask=0), torch.Generator()
    )["input_values"]
    hidden = masked != wanted["input_values"]
    silence = ASTConfig().padding_value
    assert hidden.any() and torch.allclose(masked[hidden], torch.tensor(silence))


@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_features_of_a_batch_on_a_device_read_nothing_back(padding):
    rows, encode = mixing_case(5)
    features = extractor(padding=padding)
    later = AudioCollator(features, encode, features=False)(rows)
    wanted = add_features(later, features)
    # A tensor on "meta" has no values, so code that reads one would fail.
    done = add_features({name: x.to("meta") for name, x in later.items()}, features)
    assert {name: (x.shape, x.dtype) for name, x in done.items()} == {
        name: (x.shape, x.dtype) for name, x in wanted.items()
    }
    assert all(x.is_meta for x in done.values())


@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_random_lengths_are_padded_with_a_mask_and_without(padding):
    """The saved padding does not matter: each clip gets one of the two kinds at random."""
    longest = ASTFeatureExtractor(max_length=48, num_mel_bins=32, padding=padding)
    waves = [noise(i, 0.45) for i in range(40)]
    rows = rows_of(waves, list(range(40)))
    encode = LabelEncoder({str(i): i for i in range(40)}, multi_label=True)
    cut = AudioCollator(longest, encode, min_length=16, features=False)(rows)
    assert set(cut) == {"labels", "waveforms", "num_samples", "is_masked"}
    assert torch.equal(cut["labels"], torch.eye(40))
    counts = cut["num_samples"]
    # A quarter of the clips are cut, to a whole number of frames.
    assert 3 < (counts < 7200).sum() < 20 and set((counts[counts < 7200] % 160).tolist()) == {0}
    assert 2560 <= counts.min() < 4000 and 10 < cut["is_masked"].sum() < 30
    for wave, part, count in zip(waves, cut["waveforms"], counts.tolist()):
        wanted = np.lib.stride_tricks.sliding_window_view(wave, count)
        assert (wanted == part[:count].numpy()).all(1).any()
    batch = AudioCollator(longest, encode, min_length=16)(rows)
    parts = [part[:count].numpy() for part, count in zip(cut["waveforms"], counts.tolist())]
    wanted = longest(
        parts,
        sampling_rate=16000,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    assert torch.equal(batch["input_values"], wanted.input_values)
    for mask, own, is_masked in zip(
        batch["attention_mask"], wanted.attention_mask, cut["is_masked"]
    ):
        assert torch.equal(mask, own if is_masked else torch.ones_like(own))
    assert (longest.padding, longest.return_attention_mask) == (padding, False)


def test_a_short_clip_is_rolled_and_masked_in_itself():
    features = ASTFeatureExtractor(max_length=48, num_mel_bins=32)
    rows = rows_of([noise(i, 0.45) for i in range(40)], [0] * 40)
    augmentation = Augmentation(mixup_rate=0, frequency_mask=0, time_mask=40, max_roll=20)
    plain = AudioCollator(features, min_length=16)(rows)
    changed = AudioCollator(features, min_length=16, augmentation=augmentation)(rows)
    silence = features.padded_frame
    is_padding = (plain["input_values"] == silence).all(2)
    assert is_padding.any() and torch.equal(plain["attention_mask"], changed["attention_mask"])
    still = (changed["input_values"] == silence).all(2)
    assert still[is_padding].all() and still.sum() > is_padding.sum()
    # At most the share that is masked in a whole clip.
    own = (~is_padding).sum(1)
    assert ((still.sum(1) - is_padding.sum(1)) <= own * 40 / 48).all()


def test_random_lengths_that_cannot_be_meant():
    for min_length in (15, 17):
        with pytest.raises(ValueError, match=rf"min_length is {min_length} frames; give at least"):
            AudioCollator(extractor(), min_length=min_length)
    with pytest.raises(ValueError, match="give it without min_length"):
        AudioCollator(extractor(), crop="parts", min_length=16)


def test_a_batch_without_a_good_clip_takes_that_of_an_earlier_one(tmp_path):
    """Such as the last batch of an epoch, if it has one clip and this is bad."""
    collate = AudioCollator(extractor(), bad_clips=BadClips(tmp_path / "bad.txt", 10, 1.0))
    bad = [{"audio": {"bytes": b"?", "path": "bad.flac"}, "label": 1}]
    good = [{"audio": {"bytes": flac(noise(0))}, "label": 0}]
    before = collate(good)["input_values"]
    for _ in range(2):
        torch.testing.assert_close(collate(bad)["input_values"], before)


def test_each_bad_argument_is_named(tmp_path):
    rows = [{"audio": {"bytes": b"?", "path": f"{i}.flac"}, "label": 0} for i in range(2)]
    with pytest.raises(ValueError, match=r"clip 0.flac cannot be used: .*pass bad_clips="):
        AudioCollator(extractor())(rows)
    bad = BadClips(tmp_path / "bad_clips.txt", 10, max_share=1.0)
    with pytest.raises(ValueError, match="none of the first 2 clips can be decoded"):
        AudioCollator(extractor(), bad_clips=bad)(rows)
    good = [{"audio": {"bytes": flac(noise(0))}, "label": 0}]
    with pytest.raises(KeyError, match=r"\['audio', 'label'\] but not 'labels'"):
        AudioCollator(extractor(), LabelEncoder(NAMES, multi_label=False))(good)
    with pytest.raises(ValueError, match=r"mixup_rate is 0.5 but labels are class indices"):
        one = LabelEncoder(NAMES, multi_label=False)
        AudioCollator(extractor(), one, augmentation=Augmentation())
    with pytest.raises(ValueError, match="crop is 'end'"):
        AudioCollator(extractor(), crop="end")
    with pytest.raises(ValueError, match="at 8000 Hz but the extractor wants 16000 Hz"):
        AudioCollator(extractor(), reader=ClipReader(8000))


def test_trainer_trains_and_evaluates_with_it(tmp_path):
    dataset, bad = bad_case(tmp_path, num_bad=1)
    config = ASTConfig(
        num_mel_bins=32,
        max_length=MAX_LENGTH,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
    )
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=16,
        max_steps=3,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        dataloader_num_workers=1,
    )
    encode = LabelEncoder({str(i): i for i in range(5)}, multi_label=False)
    trainer = Trainer(
        ASTForAudioClassification(config),
        arguments,
        data_collator=AudioCollator(extractor(), encode, bad_clips=bad),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(20, 50)),
        compute_metrics=compute_metrics,
    )
    assert trainer.train().global_step == 3
    assert {"eval_accuracy", "eval_mAP", "eval_undefined_classes"} <= set(trainer.evaluate())
