"""Against transformers' own extractor for the values, against the specification for the rest."""

import json

import hypothesis
import numpy as np
import pytest
import soundfile
import torch
import torchaudio.compliance.kaldi as kaldi
import transformers
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_ast import ASTConfig, ASTFeatureExtractor, resample

RATE = 16000


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.fixture
def extractor():
    return ASTFeatureExtractor()


@pytest.mark.parametrize("fields", [{}, {"max_length": 64, "num_mel_bins": 40, "mean": -6.0}])
@pytest.mark.parametrize("samples", [400, 16000, 175000])
def test_max_length_equals_transformers(fields, samples):
    theirs = transformers.ASTFeatureExtractor(**fields)
    ours = ASTFeatureExtractor(**fields)
    clips = [noise(samples), np.zeros(3000, np.float32)]
    expected = theirs(clips, sampling_rate=RATE, return_tensors="np")
    result = ours(clips, sampling_rate=RATE, return_tensors="np")
    assert result.keys() == expected.keys()
    assert result.input_values.dtype == np.float32
    np.testing.assert_allclose(result.input_values, expected.input_values, atol=1e-4, rtol=0)


def test_without_normalisation_too():
    fields = {"do_normalize": False, "max_length": 120}
    expected = transformers.ASTFeatureExtractor(**fields)(noise(9000), sampling_rate=RATE)
    result = ASTFeatureExtractor(**fields)(noise(9000), sampling_rate=RATE)
    assert isinstance(result.input_values, list)
    np.testing.assert_allclose(result.input_values[0], expected.input_values[0], atol=1e-4, rtol=0)


def forms_of(clip):
    pcm16 = np.round(clip * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    return {
        "float64": clip.astype(np.float64),
        "big endian": clip.astype(">f4"),
        "reversed view": clip[::-1].copy()[::-1],
        "list of floats": clip.tolist(),
        "tuple of floats": tuple(clip.tolist()),
        "tensor": torch.from_numpy(clip),
        "tensor with channel": torch.from_numpy(clip)[None],
        "batch array": clip[None],
        "list of arrays": [clip],
        "list of (1, S) tensors": [torch.from_numpy(clip)[None]],
        "list of lists": [clip.tolist()],
        "dict": {"array": clip, "sampling_rate": RATE},
        "dict with path": {"path": "a.wav", "array": clip, "sampling_rate": RATE},
        "raw dict": {"raw": clip, "sampling_rate": RATE},
        "row of a data set": {"audio": {"array": clip, "sampling_rate": RATE}, "label": 3},
        "array and rate": (clip, RATE),
        "rate and array": (RATE, clip),
        "list of pairs": [(RATE, clip)],
        "two equal channels": [np.stack([clip, clip])],
        "three equal channels, as files have them": np.stack([clip, clip, clip], 1),
        "list of dicts": [{"array": clip, "sampling_rate": RATE}],
        "int16 PCM": pcm16,
        "int32 PCM": pcm16.astype(np.int32) * 2**16,
        "int16 tensor": torch.from_numpy(pcm16),
        "float16 tensor": torch.from_numpy(clip).half(),
    }


@pytest.mark.parametrize("form", forms_of(noise(1)))
def test_every_form_of_a_clip_gives_the_same(extractor, form):
    clip = np.round(noise(8000) * 2**10) / 2**10  # exact in int16 and in float16
    clip = clip.astype(np.float32)
    expected = extractor(clip, sampling_rate=RATE, return_tensors="np").input_values
    result = extractor(forms_of(clip)[form], sampling_rate=RATE, return_tensors="np").input_values
    np.testing.assert_array_equal(result, expected)


def test_lists_of_different_lengths_and_types(extractor):
    clips = [noise(5000), torch.from_numpy(noise(16000, 1)), noise(700, 2).tolist()]
    together = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_values
    for clip, row in zip(clips, together):
        alone = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_values[0]
        assert torch.equal(row, alone)


def test_tensors_stay_tensors_with_their_gradient(extractor):
    clip = torch.from_numpy(noise(16000)).requires_grad_()
    values = extractor(clip, sampling_rate=RATE).input_values
    assert isinstance(values, torch.Tensor) and values.device == clip.device
    values.sum().backward()
    assert torch.isfinite(clip.grad).all() and clip.grad.abs().sum() > 0
    assert isinstance(
        extractor(clip, sampling_rate=RATE, return_tensors="np").input_values, np.ndarray
    )


UNEQUAL = [5000, 16000, 700, 41234, 400, 16000]
LAYOUTS = [
    {},
    {"padding": "longest"},
    {"max_length": 64},
    {"max_length": 64, "truncation": False},
    {"padding": "longest", "truncation": True, "max_length": 90},
    {"return_attention_mask": True, "max_length": 300},
]


def padded_batch(fill=0.0):
    """Clips of unequal lengths, (B, S) with `fill` behind each, and (B,)."""
    clips = [torch.from_numpy(noise(samples, seed)) for seed, samples in enumerate(UNEQUAL)]
    waveforms = torch.full((len(UNEQUAL), max(UNEQUAL)), fill)
    for row, clip in zip(waveforms, clips):
        row[: len(clip)] = clip
    return clips, waveforms, torch.tensor(UNEQUAL)


class CountedOperations(TorchDispatchMode):
    """Counts torch's operations, and refuses those for which the host waits for a device."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.WAITS, f"{name} waits for the device"
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pass_over_all_clips_gives_what_each_gives_alone(layout, do_normalize):
    extractor = ASTFeatureExtractor(do_normalize=do_normalize)
    clips, _, _ = padded_batch()
    expected = extractor(clips, sampling_rate=RATE, **layout)
    # With a gradient the batch goes the way it goes on a GPU.
    clips = [clip.requires_grad_() for clip in clips]
    result = extractor(clips, sampling_rate=RATE, **layout)
    assert result.input_values.requires_grad and result.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(result[name], values, atol=4e-6, rtol=0)
    result.input_values[2].sum().backward()
    assert clips[2].grad.abs().sum() > 0 and clips[1].grad.abs().sum() == 0


def test_frames_see_their_own_clip_alone_and_nothing_waits(extractor):
    clips, waveforms, num_samples = padded_batch(fill=torch.nan)
    expected = extractor(clips, sampling_rate=RATE, padding="longest")
    length = expected.input_values.shape[1]
    with CountedOperations() as operations:
        values, mask = extractor._together(waveforms.requires_grad_(), num_samples, length)
    assert operations.counts["_fft_r2c"] == 1  # one pass, not one for each clip
    torch.testing.assert_close(values, expected.input_values, atol=1e-6, rtol=0)
    assert torch.equal(mask, expected.attention_mask)


@pytest.mark.parametrize("layout", [{}, {"padding": "longest"}, {"max_length": 64}])
def test_a_padded_batch_gives_what_the_list_gives(layout):
    extractor = ASTFeatureExtractor(**layout)
    clips, waveforms, num_samples = padded_batch(fill=torch.nan)
    expected = extractor(clips, sampling_rate=RATE)
    result = extractor.extract_padded(waveforms, num_samples)
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    # A tensor on "meta" has no values, so that code which waits for one fails.
    with CountedOperations():
        shapes = extractor.extract_padded(waveforms.to("meta"), num_samples.to("meta"))
    assert {name: x.shape for name, x in shapes.items()} == {
        name: x.shape for name, x in expected.items()
    }


def test_padded_batches_that_cannot_be_right_are_refused(extractor):
    with pytest.raises(
        ValueError, match=r"shape \(5000,\) and num_samples \(1,\) but they must be"
    ):
        extractor.extract_padded(torch.zeros(5000), torch.tensor([5000]))
    with pytest.raises(
        ValueError, match=r"\(2, 5000\) and num_samples \(1,\) but .* call the extr"
    ):
        extractor.extract_padded(torch.zeros(2, 5000), torch.tensor([5000]))
    with pytest.raises(
        ValueError, match=r"waveforms are torch.uint8 values, whose scale is unknown"
    ):
        extractor.extract_padded(
            torch.zeros(1, 5000, dtype=torch.uint8, device="meta"), torch.tensor([5000])
        )
    with pytest.raises(ValueError, match="clip 1 has 300 samples"):
        extractor.extract_padded(torch.zeros(2, 5000), torch.tensor([5000, 300]))


def test_the_saved_device_does_not_move_a_padded_batch():
    """A DataLoader's worker cannot use a GPU."""
    extractor = ASTFeatureExtractor(device="meta")
    _, waveforms, num_samples = padded_batch()
    assert extractor.extract_padded(waveforms, num_samples).input_values.is_cpu


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
def test_each_clip_goes_to_the_device_in_one_copy(extractor, form):
    clips = [form(noise(samples, seed)) for seed, samples in enumerate(UNEQUAL)]
    options = {"sampling_rate": RATE, "padding": "longest", "return_tensors": "pt"}
    extractor(clips, device="meta", **options)  # makes the tables
    with CountedOperations() as operations:
        # The checks of the clips read the CPU's memory, which no device is waited for.
        operations.WAITS = ()
        on_device = extractor(clips, device="meta", **options)
    # The clips and their lengths; the mask becomes int64, here and in the pass, and goes there too.
    assert operations.counts["_to_copy"] == len(clips) + 1 + 3
    expected = extractor(clips, **options)
    for name, values in expected.items():
        assert on_device[name].device.type == "meta" and on_device[name].shape == values.shape
    assert extractor(clips, device="cpu", **options).input_values.equal(expected.input_values)
    assert extractor(clips, device=torch.device("cpu"), **options).input_values.is_cpu


def test_the_device_is_saved_if_it_is_given(tmp_path, extractor):
    assert "device" not in extractor.to_dict()
    ASTFeatureExtractor(device="cpu").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["device"] == "cpu"
    assert ASTFeatureExtractor.from_pretrained(tmp_path).device == "cpu"
    assert ASTFeatureExtractor.from_pretrained(tmp_path, device="meta").device == "meta"
    clip = noise(9000)
    expected = transformers.ASTFeatureExtractor.from_pretrained(tmp_path)(clip, sampling_rate=RATE)
    result = ASTFeatureExtractor.from_pretrained(tmp_path)(clip, sampling_rate=RATE)
    np.testing.assert_allclose(result.input_values, expected.input_values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", torch.device("cuda", 99)])
def test_a_device_that_is_not_there_is_named(extractor, device):
    given = str(device)
    for call in (
        lambda: extractor(noise(9000), sampling_rate=RATE, device=device),
        lambda: ASTFeatureExtractor(device=given)(noise(9000), sampling_rate=RATE),
    ):
        with pytest.raises(ValueError, match=f"device is '{given}' but .* here: cpu.*; pass one"):
            call()


def test_arrays_are_read_where_they_are_and_stay_as_they_were(extractor):
    clip = noise(16000)
    before = clip.copy()
    read_only = before.copy()
    read_only.flags.writeable = False
    values = extractor(clip, sampling_rate=RATE, return_tensors="np").input_values
    np.testing.assert_array_equal(clip, before)
    again = extractor(read_only, sampling_rate=RATE, return_tensors="np").input_values
    np.testing.assert_array_equal(again, values)


def test_samples_up_to_a_million_are_taken(extractor):
    loud = np.full(9000, 1e6, np.float32)
    assert np.isfinite(extractor(loud, sampling_rate=RATE).input_values).all()
    with pytest.raises(ValueError, match="samples of up to 1e\\+35 but audio lies in"):
        extractor(np.full(9000, 1e35, np.float32), sampling_rate=RATE)


def test_inference_mode_and_autocast_change_nothing(extractor):
    clips = [noise(50_000), noise(90_000, 1)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_values
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        values = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_values
    assert torch.equal(values, expected)


def test_a_subclass_may_normalise_each_bin():
    class PerBin(ASTFeatureExtractor):
        def normalize(self, input_values):
            return input_values - torch.arange(128)

    plain = ASTFeatureExtractor(do_normalize=False)(noise(9000), sampling_rate=RATE)
    result = PerBin()(noise(9000), sampling_rate=RATE)
    bins = np.arange(128, dtype=np.float32)
    np.testing.assert_array_equal(result.input_values[0], plain.input_values[0] - bins)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gpu_gives_what_the_cpu_gives(extractor, layout):
    clips, _, _ = padded_batch()
    expected = extractor(clips, sampling_rate=RATE, **layout)
    for given, device in ((clips, "cuda"), ([clip.cuda() for clip in clips], None)):
        result = extractor(given, sampling_rate=RATE, device=device, **layout)
        assert result.keys() == expected.keys()
        for name, values in expected.items():
            assert result[name].is_cuda
            torch.testing.assert_close(result[name].cpu(), values, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_nobody_waits_for_a_gpu(padding):
    extractor = ASTFeatureExtractor(padding=padding)
    clips, waveforms, num_samples = padded_batch()
    waveforms, num_samples = waveforms.cuda(), num_samples.cuda()
    expected = extractor.extract_padded(waveforms, num_samples)  # makes the tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = extractor.extract_padded(waveforms, num_samples)
        from_cpu = extractor(clips, sampling_rate=RATE, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, values in expected.items():
        assert torch.equal(result[name], values) and torch.equal(from_cpu[name], values)


@pytest.mark.gpu
def test_copies_beside_a_busy_gpu_are_read_before_they_are_written_over(extractor):
    """The batches come while the GPU still computes; each takes memory that others gave back."""
    batches = [[noise(30000 - 500 * batch, 9 * batch + n) for n in range(9)] for batch in range(20)]
    options = {"sampling_rate": RATE, "padding": "longest", "device": "cuda"}
    expected = []
    for clips in batches:
        expected.append(extractor(clips, return_tensors="pt", **options).input_values.cpu())
    work, results = torch.randn(4096, 4096, device="cuda"), []
    for clips in batches:
        for _ in range(20):
            work = (work @ work).clamp(-1, 1)
        results.append(extractor(clips, return_tensors="pt", **options).input_values)
    assert all(torch.equal(result.cpu(), values) for result, values in zip(results, expected))


@pytest.mark.gpu
def test_the_gradient_comes_back_from_a_gpu(extractor):
    gradients = []
    for device in ("cpu", "cuda"):
        clips = [torch.from_numpy(noise(samples)).requires_grad_() for samples in (9000, 5000)]
        options = {"sampling_rate": RATE, "padding": "longest", "device": device}
        extractor(clips, **options).input_values.square().sum().backward()
        gradients += [torch.cat([clip.grad for clip in clips])]
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-3)


@pytest.mark.gpu
def test_nan_on_a_gpu_is_refused_too(extractor):
    clips, _, _ = padded_batch()
    clips[3][100] = torch.nan
    with pytest.raises(ValueError, match="clip 3 holds NaN or infinity in 1 of 41234"):
        extractor([clip.cuda() for clip in clips], sampling_rate=RATE)


@pytest.mark.gpu
def test_tensors_stay_on_their_gpu(extractor):
    clips = torch.from_numpy(noise(32000).reshape(2, 16000))
    expected = extractor(clips, sampling_rate=RATE).input_values
    values = extractor(clips.cuda(), sampling_rate=RATE, padding="longest")
    assert values.input_values.is_cuda and values.attention_mask.is_cuda
    torch.testing.assert_close(values.input_values.cpu(), expected[:, :100], atol=1e-3, rtol=0)


def test_a_clip_with_its_own_rate_is_resampled(extractor):
    clip = noise(44100)
    expected = extractor(resample(clip, 44100, RATE), sampling_rate=RATE, return_tensors="np")
    for given in ((clip, 44100), (44100, clip), {"array": clip, "sampling_rate": 44100}):
        for options in ({}, {"sampling_rate": RATE}):
            values = extractor(given, return_tensors="np", **options).input_values
            np.testing.assert_array_equal(values, expected.input_values)
    # On its way a tensor keeps its gradient.
    tensor = torch.from_numpy(clip).requires_grad_()
    extractor((tensor, 44100)).input_values.sum().backward()
    assert tensor.grad.abs().sum() > 0


def test_files_are_read(extractor, tmp_path):
    clip = noise(RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([clip, clip], 1), RATE, subtype="FLOAT")
    paths = [tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()]
    expected = extractor(clip, sampling_rate=RATE, return_tensors="np").input_values[0]
    for values in extractor(paths, return_tensors="np").input_values:
        np.testing.assert_array_equal(values, expected)


def test_what_a_call_does_in_two_steps(extractor):
    clips = [torch.from_numpy(noise(samples)) for samples in UNEQUAL]
    for layout in LAYOUTS:
        expected = extractor(clips, sampling_rate=RATE, **layout)
        result = extractor.extract(clips, **layout)
        assert result.keys() == expected.keys()
        assert all(torch.equal(result[name], expected[name]) for name in expected)
        assert (
            extractor.num_frames(
                UNEQUAL,
                **{
                    name: value for name, value in layout.items() if name != "return_attention_mask"
                },
            )
            == expected.input_values.shape[1]
        )


@pytest.mark.parametrize("max_length", [1, 97, 1024])
def test_the_longest_clip_of_one_piece_has_max_length_frames(max_length):
    extractor = ASTFeatureExtractor(max_length=max_length, min_length=1)
    samples = extractor.max_samples
    for padding in ("max_length", "longest"):
        assert extractor.num_frames([samples], padding, truncation=False) == max_length
        assert extractor.num_frames([samples + 160], padding, truncation=False) > max_length


@pytest.mark.parametrize("seconds", [1, 2, 10, 12.34])
def test_longest_gives_100_frames_for_each_second(extractor, seconds):
    clip = noise(int(seconds * RATE))
    inputs = extractor(clip, sampling_rate=RATE, padding="longest", return_tensors="np")
    assert inputs.input_values.shape == (1, round(100 * seconds), 128)
    real = round(100 * seconds) - 2
    assert inputs.attention_mask[0].tolist() == [1] * real + [0] * 2


def test_padding_is_a_log_mel_of_zero(extractor):
    clips = [noise(16000), noise(4000, 1)]
    inputs = extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
    padded = inputs.input_values[inputs.attention_mask == 0]
    assert len(padded) == 2 + 77
    torch.testing.assert_close(padded, torch.full_like(padded, ASTConfig().padding_value))


def test_longest_has_at_least_one_patch(extractor):
    inputs = extractor(noise(480), sampling_rate=RATE, padding="longest", return_tensors="pt")
    assert inputs.input_values.shape == (1, 16, 128) and inputs.attention_mask.sum() == 1
    narrow = ASTFeatureExtractor.from_config(
        ASTConfig(patch_size=(128, 2), frequency_stride=128, time_stride=2)
    )
    inputs = narrow(noise(480), sampling_rate=RATE, padding="longest", return_tensors="pt")
    assert inputs.input_values.shape == (1, 3, 128)


def test_mask_is_on_with_longest_and_on_demand(extractor):
    clip = noise(16000)
    assert "attention_mask" not in extractor(clip, sampling_rate=RATE)
    assert "attention_mask" in extractor(clip, sampling_rate=RATE, padding="longest")
    asked = extractor(clip, sampling_rate=RATE, return_attention_mask=True, return_tensors="np")
    assert asked.attention_mask.sum() == 98 and asked.attention_mask.shape == (1, 1024)
    refused = extractor(clip, sampling_rate=RATE, padding="longest", return_attention_mask=False)
    assert "attention_mask" not in refused


def test_truncation(extractor):
    long = noise(RATE * 12)

    def frames(**options):
        inputs = extractor(long, sampling_rate=RATE, return_tensors="np", **options)
        return inputs.input_values.shape[1]

    assert frames() == 1024
    assert frames(truncation=False) == 1198
    assert frames(padding="longest") == 1200
    assert frames(padding="longest", truncation=True) == 1024
    assert frames(max_length=100) == 100
    whole = extractor(long, sampling_rate=RATE, truncation=False, return_tensors="np").input_values
    cut = extractor(long, sampling_rate=RATE, return_tensors="np").input_values
    np.testing.assert_array_equal(whole[:, :1024], cut)


def test_saved_padding_is_loaded_and_every_client_finds_its_class(tmp_path):
    ASTFeatureExtractor(padding="longest", truncation=True, mean=-6.5).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    # transformers.js refuses a folder without it; transformers has a class of that name too.
    assert written["feature_extractor_type"] == "ASTFeatureExtractor"
    again = ASTFeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == written
    assert (again.padding, again.truncation, again.mean) == ("longest", True, -6.5)
    assert ASTFeatureExtractor.from_pretrained(tmp_path, max_length=300).max_length == 300


def test_from_config_shares_every_number():
    config = ASTConfig(num_mel_bins=64, max_length=500, mean=-6.8459, std=5.5655)
    extractor = ASTFeatureExtractor.from_config(config, padding="longest")
    for name in ("sampling_rate", "num_mel_bins", "max_length", "do_normalize", "mean", "std"):
        assert getattr(extractor, name) == getattr(config, name)
    assert extractor.padding == "longest"


@pytest.mark.parametrize(
    ("audio", "options", "error", "words"),
    [
        (noise(9000), {"sampling_rate": 44100}, ValueError, "44100 Hz .* 16000 Hz; resample"),
        ([np.zeros((3, 2, 9000))], {}, ValueError, r"shape \(3, 2, 9000\) but must be \(sam"),
        ([np.zeros((65, 9000))], {}, ValueError, r"shape \(65, 9000\) .* at most 64 channels"),
        ((noise(9000), -8000), {}, ValueError, "rate is -8000; it must be a positive whole"),
        (noise(0), {}, ValueError, "clip 0 is empty but one window needs 400"),
        ([], {}, ValueError, "list of clips is empty"),
        ([noise(9000), noise(399)], {}, ValueError, "clip 1 has 399 samples .* 400 samples"),
        (np.full(9000, np.nan), {}, ValueError, "NaN or infinity in 9000 of 9000"),
        (np.append(noise(9000), np.inf), {}, ValueError, "NaN or infinity in 1 of 9001"),
        (np.zeros(9000, np.uint8), {}, ValueError, "uint8 values, whose scale is unknown"),
        (np.zeros(9000, np.int64), {}, ValueError, "int64 values.*int16 or int32 PCM"),
        (np.zeros(9000, bool), {}, ValueError, "bool values"),
        (np.zeros(9000, complex), {}, ValueError, "complex128 values"),
        ("dog.wav", {}, FileNotFoundError, "no file at 'dog.wav'"),
        ({"path": "dog.wav"}, {}, FileNotFoundError, "no file at 'dog.wav'"),
        (None, {}, TypeError, "got NoneType"),
        ([None], {}, TypeError, "clip 0 is a NoneType; give a path, bytes, an array"),
        ([["a", "b"]], {}, TypeError, "clip 0 is a list that holds no numbers"),
        ({"label": 3}, {}, ValueError, r"keys \['label'\] but none of audio, array, bytes and"),
        (noise(9000), {"paddding": "longest"}, TypeError, r"unknown keyword\(s\) \['paddding'\]"),
        (noise(9000), {"padding": "shortest"}, ValueError, "padding is 'shortest'.*longest"),
        (noise(9000), {"padding": False}, ValueError, "padding is False"),
        (noise(9000), {"return_tensors": "tf"}, ValueError, "return_tensors is 'tf'"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(extractor, audio, options, error, words):
    with pytest.raises(error, match=words):
        extractor(audio, **options)


def test_impossible_settings_are_refused():
    with pytest.raises(StrictDataclassError, match="std is -1"):
        ASTFeatureExtractor(std=-1.0)
    with pytest.raises(ValueError, match="padding is 'none'"):
        ASTFeatureExtractor(padding="none")
    with pytest.raises(ValueError, match="padding_side is 'top'; give \"right\""):
        ASTFeatureExtractor(padding_side="top")
    with pytest.raises(ValueError, match="padding_value is nan; it must be a finite number"):
        ASTFeatureExtractor(padding_value=float("nan"))


def test_pad_of_transformers_still_works_on_waveforms():
    padded = ASTFeatureExtractor().pad(
        {"input_values": [noise(5), noise(3)]}, padding=True, return_tensors="np"
    )
    assert padded.input_values.shape == (2, 5)


def rows_of(extractor, lengths):
    return [
        {"input_values": torch.randn(length, extractor.num_mel_bins), "label": index}
        for index, length in enumerate(lengths)
    ]


def test_transformers_collator_pads_rows_of_unequal_lengths_along_the_frames():
    extractor = ASTFeatureExtractor(num_mel_bins=40)
    rows = rows_of(extractor, (20, 33, 17))
    batch = transformers.DataCollatorWithPadding(extractor)(rows)
    assert batch["input_values"].shape == (3, 33, 40)
    assert batch["attention_mask"].sum(1).tolist() == [20, 33, 17]
    assert batch["labels"].tolist() == [0, 1, 2]
    for row, values, mask in zip(rows, batch["input_values"], batch["attention_mask"]):
        assert torch.equal(values[mask.bool()], row["input_values"])
        # A log-mel of 0, normalised: what the extractor itself pads with.
        torch.testing.assert_close(
            values[~mask.bool()], torch.full_like(values[~mask.bool()], 0.46703), atol=1e-5, rtol=0
        )


def test_pad_gives_what_a_call_gives(extractor):
    """Rows that were extracted one by one, as by `datasets.map`, and the clips in one call."""
    clips = [noise(16000), noise(8000, 1)]
    rows = [
        {name: values[0] for name, values in extractor(clip, RATE, padding="longest").items()}
        for clip in clips
    ]
    padded = extractor.pad(rows, return_tensors="pt")
    called = extractor(clips, RATE, padding="longest", return_tensors="pt")
    assert padded.keys() == called.keys()
    for name, values in called.items():
        torch.testing.assert_close(padded[name], values)


def test_pad_of_features_as_transformers_pads(extractor):
    rows = rows_of(extractor, (20, 33))
    columns = {"input_values": [row["input_values"].numpy() for row in rows]}
    assert extractor.pad(rows, "max_length", 50).input_values.shape == (2, 50, 128)
    assert extractor.pad(rows, "max_length").input_values.shape == (2, 1024, 128)
    assert extractor.pad(rows, pad_to_multiple_of=32).input_values.shape == (2, 64, 128)
    assert extractor.pad(rows, max_length=25, truncation=True).input_values.shape == (2, 25, 128)
    assert extractor.pad(columns, return_tensors="np").input_values.shape == (2, 33, 128)
    unpadded = extractor.pad(
        columns, padding=False, return_attention_mask=True, return_tensors=None
    )
    assert [len(values) for values in unpadded.input_values] == [20, 33]
    assert [len(mask) for mask in unpadded.attention_mask] == [20, 33]
    assert "attention_mask" not in extractor.pad(rows, "max_length", 50)
    short = extractor.pad(rows_of(extractor, (3, 5)))
    assert short.input_values.shape == (2, 16, 128)  # one patch
    assert short.attention_mask.sum(1).tolist() == [3, 5]


def test_rows_with_an_axis_too_many_are_refused(extractor):
    rows = [{"input_values": torch.zeros(1, 20, 128)}]
    with pytest.raises(ValueError, match=r"row 0 have shape \(1, 20, 128\).* take input_values\[0"):
        extractor.pad(rows)


@pytest.mark.parametrize("frames", [10_240, 480_000])
def test_a_max_length_in_samples_is_warned_of(frames, caplog):
    """Case 13: the audio course's recipe, whose lengths are samples."""
    extractor = ASTFeatureExtractor(max_length=1024)
    extractor.num_frames([16000], max_length=frames)
    extractor(noise(16000), RATE, max_length=frames, truncation=True, return_tensors="pt")
    warning = caplog.text
    assert ("frames" in warning) == (frames > 10_240)
    if warning:
        assert "480000 frames of 10 ms each, 4800 seconds" in warning
        assert "pass max_length=3000" in warning


@pytest.mark.parametrize(("rate", "window", "hop"), [(16000, 0.02, 0.0125), (32000, 0.025, 0.01)])
def test_another_front_end_is_kaldis_too(rate, window, hop):
    config = ASTConfig(
        sampling_rate=rate, window_seconds=window, hop_seconds=hop, num_mel_bins=64, max_length=90
    )
    extractor = ASTFeatureExtractor.from_config(config)
    assert extractor.frames_per_second == config.frames_per_second == 1 / hop
    waveform = torch.from_numpy(noise(rate))
    reference = kaldi.fbank(
        waveform[None],
        window_type="hanning",
        num_mel_bins=64,
        sample_frequency=rate,
        frame_length=1000 * window,
        frame_shift=1000 * hop,
    )
    assert extractor.count_frames(rate) == len(reference)
    for clip in (waveform, waveform.clone().requires_grad_()):  # both ways
        inputs = extractor(clip, rate, padding="longest", truncation=False, return_tensors="pt")
        found = inputs.input_values[0][inputs.attention_mask[0].bool()].detach()
        expected = extractor.normalize(reference)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(
        ValueError, match=rf"needs {round(rate * window)} samples \({1000 * window:g}"
    ):
        extractor(noise(round(rate * window) - 1), rate)


def test_other_frames_are_saved_and_the_usual_ones_are_not(tmp_path):
    fields = {"window_seconds": 0.02, "hop_seconds": 0.0125}
    for given, name in (({}, "usual"), (fields, "other")):
        config = ASTConfig(**given)
        extractor = ASTFeatureExtractor.from_config(config)
        for thing, loaded, file in (
            (config, ASTConfig, "config.json"),
            (extractor, ASTFeatureExtractor, "preprocessor_config.json"),
        ):
            thing.save_pretrained(tmp_path / name)
            written = json.loads((tmp_path / name / file).read_text())
            assert {key: written[key] for key in fields if key in written} == given
            again = loaded.from_pretrained(tmp_path / name)
            assert (again.window_samples, again.hop_samples) == (
                thing.window_samples,
                thing.hop_samples,
            )


NUMBERS = st.one_of(
    st.integers(),
    st.integers(0, 200),
    st.floats(),
    st.booleans(),
    st.sampled_from([np.float32(2), np.float64(0.5), np.int64(40), np.bool_(True)]),
)
ANYTHING = st.one_of(
    st.none(), NUMBERS, st.sampled_from(["", "longest", "cpu", "x"]), st.lists(NUMBERS, max_size=2)
)
SAVED = sorted(ASTFeatureExtractor().to_dict().keys() - {"feature_extractor_type", "feature_size"})


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.dictionaries(st.sampled_from([*SAVED, "device"]), ANYTHING, min_size=1, max_size=2)
)
def test_any_saved_value_is_accepted_or_refused_as_documented(fields):
    """What is accepted can be saved and read again."""
    try:
        extractor = ASTFeatureExtractor(**fields)
    except (StrictDataclassError, ValueError):
        return
    again = ASTFeatureExtractor.from_dict(json.loads(extractor.to_json_string()))
    assert again.to_dict() == extractor.to_dict()
