"""A forked process computes with torch; copies to a GPU do not stop the host."""

import multiprocessing
import timeit
from contextlib import contextmanager

import pytest
import soundfile
import torch

from modeling_ast import ASTFeatureExtractor, AudioTagger, devices
from modeling_ast.commands import main, model_flags
from modeling_ast.devices import sent, sent_together

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


def test_a_gpu_copies_a_batch_beside_its_work_and_reads_it_after(monkeypatch):
    """Without a GPU: the order of the calls on its streams."""
    calls, copy = [], torch.Tensor.copy_

    class Stream:
        def wait_stream(self, other):
            calls.append("wait")

    @contextmanager
    def inside(stream):
        calls.append("begin")
        yield
        calls.append("end")

    def copied(target, source, non_blocking):
        calls.append(f"copy {len(source)}" if non_blocking else "slow copy")
        return copy(target, source)

    def pinned(x):
        calls.append("pin")
        return x

    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(devices, "_copy_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: calls.append("record"))
    padded = sent_together([torch.ones(3), torch.ones(5)], torch.device("cuda", 7))
    assert padded.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert calls == ["begin", "pin", "copy 3", "pin", "copy 5", "end", "wait", "record"]


@pytest.mark.parametrize(("speedup", "dtype"), [(1.6, "bfloat16"), (1.1, "float32")])
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster(
    speedup, dtype, tiny_model, tmp_path, monkeypatch, capsys
):
    """Whatever the checkpoint has: float16 is never computed with on a CPU."""
    tiny_model.half().save_pretrained(tmp_path)
    ASTFeatureExtractor.from_config(tiny_model.config).save_pretrained(tmp_path)
    soundfile.write(tmp_path / "a.wav", noise(RATE).numpy(), RATE)
    for module in (devices, model_flags):
        monkeypatch.setattr(module, "bfloat16_speedup", lambda: speedup)
    assert AudioTagger.from_pretrained(tmp_path, "cpu", "auto").dtype_name == dtype
    words = ["classify", str(tmp_path), str(tmp_path / "a.wav"), "--dtype", "auto"]
    assert main([*words, "--device", "cpu"]) == 0
    line = f"--dtype auto: {dtype}; bfloat16 is {speedup} times as fast as float32\n"
    assert capsys.readouterr().err.endswith(line)
    # Without the flag it is the checkpoint's, and nothing is measured.
    assert AudioTagger.from_pretrained(tmp_path, "cpu").dtype_name == "float16"


def test_the_measurement_is_that_of_two_products():
    speedup = devices.bfloat16_speedup()
    assert 0.01 < speedup < 100 and devices.bfloat16_speedup() == speedup
    with torch.inference_mode():
        x, weight = torch.ones(640, 768), torch.ones(3072, 768)
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, b = x.to(dtype), weight.to(dtype)
            seconds[dtype] = min(timeit.repeat(lambda a=a, b=b: a @ b.T, number=1, repeat=6))
    expected = seconds[torch.float32] / seconds[torch.bfloat16]
    # Far apart on a busy machine, but the same kind of number.
    assert expected / 5 < speedup < expected * 5
