"""Augmentation, against torchaudio's masks, scipy's distributions and closed formulas."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torchaudio.functional import mask_along_axis_iid

from modeling_ast.training.augmentation import (
    Augmentation,
    add_noise,
    change_gain,
    change_speed,
    draw_speed,
    mask_frequency,
    mask_time,
    mixup,
    mixup_shares,
    roll_time,
    smooth_labels,
)

# A correct sampler falls below this for one in ten thousand seeds, and the seeds are fixed.
SMALLEST_P = 1e-4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [1, 3, 10])
def test_shares_are_beta_distributed(alpha):
    shares = mixup_shares(20_000, 1.0, seeded(), alpha)
    wanted = scipy.stats.beta(alpha, alpha)
    assert scipy.stats.kstest(shares.numpy(), wanted.cdf).pvalue > SMALLEST_P
    # Four standard errors of mean and variance.
    assert abs(shares.mean() - 0.5) < 4 * wanted.std() / 20_000**0.5
    assert shares.var().item() == pytest.approx(wanted.var(), rel=4 * (2 / 20_000) ** 0.5)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_rate_decides_how_many_are_mixed(rate):
    shares = mixup_shares(20_000, rate, seeded())
    mixed = int((shares < 1).sum())
    assert scipy.stats.binomtest(mixed, 20_000, rate).pvalue > SMALLEST_P
    assert shares.min() > 0 and shares.max() <= 1


def test_mixup_is_its_formula():
    x, y = torch.randn(3, 50, generator=seeded()) + 3, torch.randn(3, 50, generator=seeded(1)) - 2
    labels, others = torch.eye(3), torch.eye(3)[[1, 1, 0]]
    shares = torch.tensor([0.25, 1.0, 0.5])
    mixed, soft = mixup(x, labels, y, others, shares)
    s = shares.unsqueeze(1)
    wanted = s * (x - x.mean(1, keepdim=True)) + (1 - s) * (y - y.mean(1, keepdim=True))
    torch.testing.assert_close(mixed, wanted)
    torch.testing.assert_close(
        soft, torch.tensor([[0.25, 0.75, 0], [0, 1, 0], [0.5, 0, 0.5]]), rtol=0, atol=0
    )
    assert abs(mixed.mean(1)).max() < 1e-6


def test_clips_of_any_length_are_mixed():
    clips = [torch.randn(n, generator=seeded(n)) for n in (5, 9, 7)]
    partners = [clips[1], clips[0], clips[2]]
    before = [clip.clone() for clip in clips]
    mixed, _ = mixup(clips, torch.eye(3), partners, torch.eye(3), torch.full((3,), 0.4))
    a, b = clips[0] - clips[0].mean(), clips[1] - clips[1].mean()
    torch.testing.assert_close(mixed[0], 0.4 * a + 0.6 * b[:5])
    torch.testing.assert_close(mixed[1], 0.4 * b + 0.6 * F.pad(a, (0, 4)))
    for clip, old in zip(clips, before):
        assert torch.equal(clip, old)


@pytest.mark.parametrize("speed", [0.5, 0.83, 1.0, 1.2, 1.7])
def test_a_faster_clip_is_higher_and_shorter(speed):
    """A tone of 440 Hz, against the tone that it must become."""
    x = torch.sin(2 * torch.pi * 440 / 16000 * torch.arange(8000))
    changed = change_speed(x, speed)
    assert len(changed) == pytest.approx(8000 / speed, abs=1)
    wanted = torch.sin(2 * torch.pi * 440 * speed / 16000 * torch.arange(len(changed)))
    inner = slice(200, -200)  # the filter sees zeros beyond the ends
    torch.testing.assert_close(changed[inner], wanted[inner], rtol=0, atol=2e-3)
    assert change_speed(x, 1.0) is x


def test_speeds_are_uniform_in_the_logarithm():
    g = seeded()
    speeds = np.log2([draw_speed(1.0, g) for _ in range(5000)])
    assert scipy.stats.kstest(speeds, scipy.stats.uniform(-1, 2).cdf).pvalue > SMALLEST_P
    assert draw_speed(0.0, g) == 1.0
    before = seeded(3)
    assert Augmentation().speed(before) == 1.0
    assert torch.equal(before.get_state(), seeded(3).get_state())
    assert Augmentation(max_speed_change=0.2).speed(seeded(5)) == draw_speed(0.2, seeded(5))


@pytest.mark.parametrize("width", [0, 1, 7, 24])
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_torchaudios(width, seed):
    """torchaudio uses the global generator, ours its own; both draw the same numbers."""
    x = torch.randn(40, 31, 24, generator=seeded(9))  # (B, T, F)
    torch.manual_seed(seed)
    wanted = mask_along_axis_iid(x.mT.unsqueeze(1), width, 0.467, axis=2)[:, 0].mT
    assert torch.equal(mask_frequency(x, width, 0.467, seeded(seed)), wanted)
    torch.manual_seed(seed)
    wanted = mask_along_axis_iid(x.mT.unsqueeze(1), width, 0.467, axis=3)[:, 0].mT
    assert torch.equal(mask_time(x, width, 0.467, seeded(seed)), wanted)


@pytest.mark.parametrize(("mask", "axis"), [(mask_frequency, 2), (mask_time, 1)])
def test_widths_are_uniform_and_each_clip_has_one_band_of_its_own(mask, axis):
    x = torch.zeros(12_000, 30, 30)
    hidden = mask(x, 12, 1.0, seeded(2)).amax(3 - axis)  # (B, 30)
    widths = hidden.sum(1).long()
    assert scipy.stats.chisquare(np.bincount(widths, minlength=12)).pvalue > SMALLEST_P
    # One band only: at most one step up and one down.
    assert (F.pad(hidden, (1, 1)).diff().abs().sum(1) == 2 * (widths > 0)).all()
    starts = hidden.argmax(1)[widths == 11]
    assert starts.min() == 0 and starts.max() == 18
    assert len(torch.unique(starts)) == 19


def test_a_mask_wider_than_the_clip_still_fits():
    x = torch.zeros(2000, 8, 30)
    hidden = mask_time(x, 192, 1.0, seeded())[:, :, 0].sum(1).long()
    assert scipy.stats.chisquare(np.bincount(hidden, minlength=8)).pvalue > SMALLEST_P
    assert hidden.max() == 7


def test_noise_has_its_own_level_in_each_clip():
    noise = add_noise(torch.full((4000, 20, 30), 5.0), 0.1, seeded()) - 5
    assert noise.min() >= -1e-6
    # The largest of 600 uniform numbers is nearly the level.
    levels = noise.flatten(1).amax(1).numpy()
    assert scipy.stats.kstest(levels[:1000], scipy.stats.uniform(0, 0.1).cdf).pvalue > SMALLEST_P
    within = (noise.flatten(1) / noise.flatten(1).amax(1, keepdim=True))[:200, :5].flatten()
    assert scipy.stats.kstest(within.numpy(), "uniform").pvalue > SMALLEST_P


@pytest.mark.parametrize("shape", [(5000, 23), (5000, 23, 2)])
def test_rolls_are_uniform_from_minus_ten_to_nine(shape):
    x = torch.arange(23.0).reshape(1, 23, *[1] * (len(shape) - 2)).expand(shape)
    rolled = roll_time(x, 10, seeded())
    # The value of time 0 is now at the shift.
    shifts = (rolled.reshape(5000, 23, -1)[:, :, -1] == 0).long().argmax(1)
    for clip, shift in zip(rolled[:50], shifts[:50].tolist()):
        assert torch.equal(clip, torch.roll(x[0], shift, 0))
    signed = torch.where(shifts > 11, shifts - 23, shifts)
    counts = np.bincount(signed.numpy() + 10, minlength=20)
    assert len(counts) == 20 and scipy.stats.chisquare(counts).pvalue > SMALLEST_P
    assert roll_time(x, 0) is x


def test_short_clips_roll_in_themselves_and_their_padding_stays():
    own = torch.tensor([1, 7, 12, 23]).repeat(300)
    x = torch.arange(23.0).expand(len(own), 23) + 0.5
    rolled = roll_time(x, 10, seeded(), own)
    seen = set()
    for clip, size in zip(rolled, own.tolist()):
        shift = (size - int(clip[0])) % size
        assert torch.equal(clip[:size], torch.roll(x[0, :size], shift, 0))
        assert torch.equal(clip[size:], x[0, size:])
        seen.add((size, shift))
    # The short clips have all shifts, the longest has the twenty from -10 to 9.
    assert len(seen) == 1 + 7 + 12 + 20
    assert torch.equal(
        roll_time(x, 10, seeded(), torch.full((len(x),), 23)), roll_time(x, 10, seeded())
    )


def test_time_masks_of_short_clips_are_narrower_and_lie_in_them():
    own = torch.tensor([0, 10, 40]).repeat_interleave(3000)
    x = torch.zeros(len(own), 40, 2)
    hidden = mask_time(x, 20, 1.0, seeded(), own)[:, :, 0]
    widths = hidden.sum(1).long().view(3, 3000)
    assert widths[0].sum() == 0
    # A clip with a quarter of the frames has masks of a quarter of the width.
    assert scipy.stats.chisquare(np.bincount(widths[1], minlength=5)).pvalue > SMALLEST_P
    assert scipy.stats.chisquare(np.bincount(widths[2], minlength=20)).pvalue > SMALLEST_P
    assert hidden[3000:6000, 10:].sum() == 0 and hidden[3000:6000, 8].sum() > 0
    whole = mask_time(x, 20, 1.0, seeded(), torch.full((len(x),), 40))
    assert torch.equal(whole, mask_time(x, 20, 1.0, seeded()))


@pytest.mark.parametrize("as_list", [True, False])
def test_gains_are_uniform_in_decibels(as_list):
    x = torch.ones(5000, 3)
    changed = change_gain(list(x) if as_list else x, 6.0, seeded())
    assert isinstance(changed, list) == as_list
    gains_db = 20 * torch.stack(list(changed)).log10()
    torch.testing.assert_close(gains_db[:, 0], gains_db[:, 2])
    wanted = scipy.stats.uniform(-6, 12).cdf
    assert scipy.stats.kstest(gains_db[:, 1].numpy(), wanted).pvalue > SMALLEST_P


def test_smoothing_is_that_of_cross_entropy_and_of_bce():
    logits, target = torch.randn(6, 4, generator=seeded()), torch.tensor([0, 3, 1, 1, 2, 0])
    one_hot = F.one_hot(target, 4).float()
    smooth = smooth_labels(one_hot, 0.1, exclusive=True)
    torch.testing.assert_close(
        F.cross_entropy(logits, smooth), F.cross_entropy(logits, target, label_smoothing=0.1)
    )
    assert smooth_labels(one_hot, 0.1)[0].tolist() == pytest.approx([0.95, 0.05, 0.05, 0.05])


def test_a_seed_gives_the_same_draws_and_each_seed_others():
    recipe = Augmentation(max_noise=0.1, max_roll=10)
    x = torch.randn(4, 300, 128, generator=seeded(5))
    first = recipe.features(x, 0.467, seeded(1))
    assert torch.equal(first, recipe.features(x, 0.467, seeded(1)))
    assert not torch.equal(first, recipe.features(x, 0.467, seeded(2)))
    assert torch.equal(recipe.shares(9, seeded(1)), recipe.shares(9, seeded(1)))
    torch.manual_seed(0)
    assert recipe.features(x, 0.467).shape == x.shape


def test_a_recipe_of_zeros_changes_nothing():
    nothing = Augmentation(mixup_rate=0, frequency_mask=0, time_mask=0)
    x, labels = torch.randn(2, 9, 5), torch.eye(2)
    assert nothing.features(x, 0.467) is x
    assert nothing.waveforms(x) is x
    assert nothing.labels(labels) is labels
    assert (nothing.shares(50) == 1).all()


def test_a_recipe_does_what_its_numbers_say():
    recipe = Augmentation(max_gain_db=3, frequency_mask=9, time_mask=4, max_noise=0.2, max_roll=3)
    x = torch.randn(5, 20, 30, generator=seeded())
    g = seeded(7)
    wanted = mask_time(mask_frequency(x, 9, 0.5, g), 4, 0.5, g)
    wanted = roll_time(add_noise(wanted, 0.2, g), 3, g)
    assert torch.equal(recipe.features(x, 0.5, seeded(7)), wanted)
    assert torch.equal(recipe.waveforms(x[0], seeded(1)), change_gain(x[0], 3, seeded(1)))
    smooth = Augmentation(label_smoothing=0.2)
    assert smooth.labels(torch.eye(2)).tolist() == [
        pytest.approx([0.9, 0.1]),
        pytest.approx([0.1, 0.9]),
    ]


def test_each_bad_argument_is_named():
    x, labels = torch.zeros(2, 9), torch.eye(2)
    for call, message in [
        (lambda: mixup_shares(3, 1.5), "rate is 1.5"),
        (lambda: mixup_shares(3, 0.5, alpha=0.5), "alpha is 0.5; it must be a whole number"),
        (
            lambda: mixup(x, torch.tensor([0, 1]), x, labels, torch.ones(2)),
            "the share of each class",
        ),
        (lambda: mixup(x, labels, x[:1], labels, torch.ones(2)), "2 clips with 2 labels, 1 part"),
        (lambda: draw_speed(1.5), "max_change is 1.5"),
        (lambda: Augmentation(max_speed_change=-1), "max_speed_change is -1; it must be from 0"),
        (lambda: Augmentation(mixup_rate=float("nan")), "mixup_rate is nan"),
        (lambda: Augmentation(max_gain_db=float("inf")), "max_gain_db is inf; it must be 0"),
        (lambda: Augmentation(time_mask=-1), "time_mask is -1"),
        (lambda: mask_time(x[None], -1, 0.0), "width of a mask is -1"),
        (lambda: smooth_labels(labels, -0.1), "amount is -0.1"),
        (lambda: Augmentation(label_smoothing=0.1).labels(labels[0]), "label_smoothing_factor"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.gpu
def test_a_seed_on_the_cpu_draws_the_same_for_a_gpu():
    recipe = Augmentation(max_noise=0.1, max_roll=10)
    x = torch.randn(4, 300, 128, generator=seeded(5))
    wanted = recipe.features(x, 0.467, seeded(1))
    torch.testing.assert_close(recipe.features(x.cuda(), 0.467, seeded(1)).cpu(), wanted)
    on_gpu = torch.Generator("cuda").manual_seed(3)
    assert recipe.features(x.cuda(), 0.467, on_gpu).is_cuda
    shares = recipe.shares(4, on_gpu)
    mixed, _ = mixup(
        x[:, :, 0].cuda(), torch.eye(4).cuda(), x[:, :, 1].cuda(), torch.eye(4).cuda(), shares
    )
    wanted, _ = mixup(x[:, :, 0], torch.eye(4), x[:, :, 1], torch.eye(4), shares.cpu())
    torch.testing.assert_close(mixed.cpu(), wanted)
