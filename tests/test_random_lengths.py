"""Random lengths of training clips: the draws and the powers, against scipy and numpy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from modeling_ast.training.random_lengths import (
    MASKED_SHARE,
    WHOLE_SHARE,
    draw_masked,
    loudest_part,
    part_powers,
    shortened,
)

HOP = 160


def test_most_clips_stay_whole_and_the_others_are_uniform_in_the_logarithm():
    generator = torch.Generator().manual_seed(0)
    clip = torch.arange(200 * HOP + 37).float()
    lengths, starts = [], []
    for _ in range(8000):
        part = shortened(clip, 25, HOP, generator)
        if len(part) < len(clip):
            frames, rest = divmod(len(part), HOP)
            assert rest == 0 and 25 <= frames <= 200
            assert torch.equal(part, clip[int(part[0]) :][: len(part)])
            lengths.append(frames)
            starts.append(int(part[0]))
        else:
            assert torch.equal(part, clip)
    assert scipy.stats.binomtest(len(lengths), 8000, 1 - WHOLE_SHARE).pvalue > 1e-3
    # Blurred by what rounding to whole frames took away.
    blurred = np.array(lengths) + np.random.default_rng(0).uniform(-0.5, 0.5, len(lengths))
    wanted = scipy.stats.loguniform(25, 200)
    assert scipy.stats.kstest(blurred, wanted.cdf).statistic < 0.04
    assert all(start % HOP == 0 for start in starts)


def test_places_are_uniform_in_a_steady_sound():
    """All starts of parts of 50 of 53 frames are drawn equally often."""
    steady = torch.ones(53 * HOP) * torch.linspace(1, 1.01, 53 * HOP)
    counts = np.zeros(4)
    for seed in range(6000):
        part = shortened(steady, 50, HOP, torch.Generator().manual_seed(seed))
        if len(part) == 50 * HOP:
            counts[round((float(part[0]) - 1) / 0.01 * 53 / HOP * HOP)] += 1
    assert counts.sum() > 150 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_parts_are_loud():
    """Half a second of sound in five seconds of hiss 60 dB below it; part of it is softer."""
    rng = np.random.default_rng(0)
    clip = 1e-3 * rng.standard_normal(5 * 16000)
    clip[32000:40000] += rng.standard_normal(8000) * np.linspace(0.5, 1.5, 8000)
    clip = clip.astype(np.float32)
    sums = np.concatenate(([0.0], np.square(clip.astype(np.float64)).cumsum()))
    lengths, starts = set(), set()
    for seed in range(600):
        part = shortened(torch.from_numpy(clip), 10, HOP, torch.Generator().manual_seed(seed))
        if len(part) < len(clip):
            loudest = (sums[len(part) :] - sums[: -len(part)])[::HOP].max()
            assert part.square().sum() >= 0.499 * loudest
            lengths.add(len(part))
            starts.add(float(part[0]))
    assert len(lengths) > 50 and len(starts) > 50


def test_silence_and_short_clips():
    silence = torch.zeros(100 * HOP)
    lengths = {
        len(shortened(silence, 16, HOP, torch.Generator().manual_seed(seed))) for seed in range(50)
    }
    assert min(lengths) < 50 * HOP and max(lengths) == 100 * HOP
    for samples in (400, 16 * HOP, 16 * HOP + 100):
        for seed in range(20):
            clip = torch.ones(samples)
            assert shortened(clip, 16, HOP, torch.Generator().manual_seed(seed)) is clip


@pytest.mark.parametrize("frames", [1, 7, 31])
def test_powers_are_mean_squares(frames):
    clip = np.random.default_rng(frames).standard_normal(31 * HOP + 90).astype(np.float32)
    clip[5 * HOP : 20 * HOP] = 0
    powers = part_powers(torch.from_numpy(clip), frames, HOP)
    starts = range(0, (31 - frames) * HOP + 1, HOP)
    wanted = [np.square(clip[i : i + frames * HOP].astype(np.float64)).mean() for i in starts]
    np.testing.assert_allclose(powers.numpy(), wanted, rtol=1e-9, atol=1e-12)
    assert (powers >= 0).all()
    start = int(np.argmax(wanted)) * HOP
    part = loudest_part(torch.from_numpy(clip), frames, HOP)
    np.testing.assert_array_equal(part.numpy(), clip[start : start + frames * HOP])


def test_half_of_the_paddings_are_masked():
    drawn = draw_masked(4000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.bool
    assert abs(int(drawn.sum()) - 4000 * MASKED_SHARE) < 4 * math.sqrt(1000)
