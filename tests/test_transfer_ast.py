"""A GPU fetches what it is sent while the host goes on."""

import torch

from modeling_ast.transfer_ast import sent, sent_together


def test_copies_to_a_gpu_start_from_pinned_memory(monkeypatch):
    calls = []
    pinned = torch.zeros(3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking: calls.append((x, device, non_blocking))
    )
    x = torch.ones(3)
    for kind in ("cuda:0", "cpu", "mps"):
        sent(x, torch.device(kind))
    (first, _, first_free), *others = calls
    assert first is pinned and first_free
    # Elsewhere memory could change before it is read.
    assert all(source is x and not free for source, _, free in others)


def test_a_batch_has_zeros_at_the_end():
    clips = [torch.ones(3), 2 * torch.ones(5), torch.ones(1)]
    padded = sent_together(clips, torch.device("cpu"))
    assert padded.tolist() == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2], [1, 0, 0, 0, 0]]
