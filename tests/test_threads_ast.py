"""A forked process finishes what it computes with torch."""

import multiprocessing

import pytest
import torch

from modeling_ast import ASTFeatureExtractor

RATE = 16000


def noise(samples):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
def test_a_forked_process_does_not_wait_for_its_parents_threads():
    """As in `datasets.map(num_proc=...)`; torch's own threads do not outlive the fork."""
    extractor = ASTFeatureExtractor()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    clips = [noise(1_000_000), noise(RATE)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="pt", padding="longest")
    found = torch.zeros_like(expected.input_values).share_memory_()
    numbers = torch.zeros(2, dtype=torch.long).share_memory_()

    def child():
        numbers[0] = torch.get_num_threads()
        inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt", padding="longest")
        numbers[1] = torch.get_num_threads()
        found.numpy()[:] = inputs.input_values.numpy()  # numpy has no threads

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(60)
    torch.set_num_threads(before)
    assert process.exitcode == 0 and torch.equal(found, expected.input_values)
    assert numbers.tolist() == [2, 2]
