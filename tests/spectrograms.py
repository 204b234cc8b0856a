"""Made-up inputs of the network, and how close two ways of computing must come."""

import torch

from tests.conftest import TINY

# float32 sums in another order over a few dozen values of size 1.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def spectrogram(batch, frames, bins=TINY["num_mel_bins"], seed=0):
    return torch.randn(batch, frames, bins, generator=torch.Generator().manual_seed(seed))


def mask_of(lengths, frames):
    """(B, T): ones for each clip's frames, on the left."""
    return (torch.arange(frames) < torch.tensor(lengths).unsqueeze(1)).long()
