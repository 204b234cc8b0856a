"""What a clip is. Judges: the written samples, soundfile's own header, soxr."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch

from modeling_ast.audio import is_single_clip, read_audio, read_clip, stream_audio
from modeling_ast.decoding import DecodingError


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def encode(samples: np.ndarray, rate: int, **kwargs) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"format": "WAV", "subtype": "FLOAT"}, 0.0),
        ({"format": "WAV", "subtype": "PCM_16"}, 2.0**-15),
        ({"format": "FLAC", "subtype": "PCM_24"}, 2.0**-23),
        # Lossy codecs keep the sound, not the samples.
        ({"format": "OGG", "subtype": "VORBIS"}, 0.05),
        ({"format": "OGG", "subtype": "OPUS"}, 0.05),
        ({"format": "MP3"}, 0.05),
    ],
)
def test_a_file_and_its_bytes_give_the_samples(tmp_path, kwargs, error):
    wave = tone(16000)
    content = encode(wave, 16000, **kwargs)
    path = tmp_path / "clip.bin"
    path.write_bytes(content)
    for source in (content, path, str(path), bytearray(content), memoryview(content)):
        read = read_audio(source)
        assert read.dtype == np.float32 and read.shape == wave.shape
        assert np.abs(read - wave)[200:-200].max() <= error


def test_channels_are_averaged():
    left, right = tone(16000), tone(16000, hz=1000)
    content = encode(np.stack([left, right], 1), 16000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content), (left + right) / 2, atol=1e-7)


def test_files_need_no_torchaudio(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    assert len(read_audio(encode(tone(22050), 22050, format="WAV"))) == 8000


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("kwargs", [{"format": "WAV"}, {"format": "FLAC"}, {"format": "MP3"}])
def test_blocks_are_the_whole(kwargs, rate):
    """All but the last have one length, and each has memory of its own."""
    content = encode(np.stack([tone(rate, 3), tone(rate, 3, 1234)], 1), rate, **kwargs)
    whole = read_audio(content)
    for seconds in (0.01, 0.7, 1.0, 3.0, 99.0):
        blocks = list(stream_audio(content, 16000, block_seconds=seconds))
        size = round(16000 * seconds)
        assert {len(block) for block in blocks[:-1]} <= {size} and 0 < len(blocks[-1]) <= size
        np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def test_a_stream_keeps_what_read_clip_refuses():
    wave = tone(16000)
    wave[100] = np.nan
    (block,) = stream_audio(encode(wave, 16000, format="WAV", subtype="FLOAT"))
    assert np.isnan(block).nonzero()[0].tolist() == [100]


def test_what_comes_before_damage_is_given_and_the_time_said(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    content = encode(noise, 16000, format="FLAC", subtype="PCM_16")
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    blocks = []
    with pytest.raises(DecodingError, match=r"half.flac' cannot .* after 1\.\d+ s") as caught:
        for block in stream_audio(tmp_path / "half.flac", block_seconds=0.25):
            blocks.append(block)
    heard = np.concatenate(blocks)
    assert caught.value.seconds == pytest.approx(len(heard) / 16000) and len(heard) > 20000
    np.testing.assert_allclose(heard, noise[: len(heard)], atol=2**-15)


def test_a_stream_refuses_at_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at"):
        stream_audio(tmp_path / "missing.wav")
    with pytest.raises(ValueError, match=r"block_seconds is 0; at 16000 Hz give at least 6.3e-05"):
        stream_audio(b"abc", block_seconds=0)


def test_each_bad_file_is_named(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.flac").touch()
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    (tmp_path / "half.flac").write_bytes(encode(tone(16000), 16000, format="FLAC")[:4000])
    sf.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    for name, error, message in [
        ("text.wav", ValueError, r"text.wav' cannot be decoded as audio .*Format not recognised"),
        ("samples.raw", ValueError, r"samples.raw' cannot be decoded as audio"),
        ("half.flac", ValueError, r"half.flac' cannot be decoded as audio"),
        ("empty.flac", ValueError, r"empty.flac' is empty \(0 bytes\)"),
        ("silent.wav", ValueError, r"silent.wav' is audio of zero length"),
        ("missing.wav", FileNotFoundError, r"no file at .*missing.wav'"),
        ("", ValueError, r"is a folder; give the path of one audio file, or take all"),
    ]:
        with pytest.raises(error, match=message):
            read_audio(tmp_path / name)


def test_each_bad_argument_is_named():
    for source, error, message in [
        (b"", ValueError, "the audio of 0 bytes is empty"),
        (b"abc", ValueError, "the audio of 3 bytes cannot be decoded"),
        (None, TypeError, "source is a NoneType"),
    ]:
        with pytest.raises(error, match=message):
            read_audio(source)


class Decoder:
    """A stand-in with the attributes of torchcodec's AudioDecoder."""

    def __init__(self, samples, rate):
        self.samples, self.rate = samples, rate

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(self.samples), sample_rate=self.rate)


def forms_of(stereo, rate, path):
    """One clip (channels, S) in every form, each with its rate."""
    pcm = np.round(stereo * 2**15).astype(np.int16)
    content = path.read_bytes()
    return {
        "path": path,
        "text": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "open file": io.BytesIO(content),
        "array and rate": (stereo, rate),
        "rate and array": (rate, stereo),
        "columns and rate": (stereo.T, rate),
        "numpy's rate": (np.int64(rate), stereo),
        "librosa's rate": (stereo, float(rate)),
        "tensor and rate": (torch.from_numpy(stereo), rate),
        "float64": (stereo.astype(np.float64), rate),
        "list and rate": (stereo.tolist(), rate),
        "gradio": (rate, pcm.T),
        "int32": (rate, pcm.astype(np.int32) * 2**16),
        "int16 tensor": (torch.from_numpy(pcm), rate),
        "array dict": {"array": stereo, "sampling_rate": rate},
        "raw dict": {"raw": stereo, "sampling_rate": rate},
        "bytes dict": {"bytes": content, "path": "a.wav"},
        "path dict": {"bytes": None, "path": str(path)},
        "row": {"audio": {"array": stereo, "sampling_rate": rate, "path": None}, "label": 1},
        "row of a path": {"audio": str(path), "label": 1},
        "row of a decoder": {"audio": Decoder(stereo, rate)},
        "decoder": Decoder(stereo, rate),
    }


FORMS = [
    "path", "text", "bytes", "bytearray", "memoryview", "open file", "array and rate",
    "rate and array", "columns and rate", "numpy's rate", "librosa's rate", "tensor and rate",
    "float64", "list and rate", "gradio", "int32", "int16 tensor", "array dict", "raw dict",
    "bytes dict", "path dict", "row", "row of a path", "row of a decoder", "decoder",
]  # fmt: skip


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_clip_is_the_same_waveform(tmp_path, form, rate):
    """Samples rounded to 16 bits, so that all forms can hold them."""
    stereo = np.stack([tone(rate), tone(rate, hz=1234)])
    stereo = (np.round(stereo * 2**15) / 2**15).astype(np.float32)
    sf.write(tmp_path / "a.wav", stereo.T, rate, subtype="FLOAT")
    forms = forms_of(stereo, rate, tmp_path / "a.wav")
    assert list(forms) == FORMS
    waveform = read_clip(forms[form], 16000)
    expected = torch.from_numpy(soxr.resample(stereo.mean(0), rate, 16000))
    assert waveform.dtype == torch.float32
    torch.testing.assert_close(waveform, expected, atol=1e-6, rtol=0)
    assert is_single_clip(forms[form])


def test_a_file_says_which_axis_holds_its_channels(tmp_path):
    """The axis of channels is known, even if there are fewer samples than channels."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 60))
    sf.write(tmp_path / "wide.wav", samples, 1000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "wide.wav", 1000), samples.mean(1), atol=1e-6)
    samples = samples.T.astype(np.float32)  # torchcodec: (channels, S)
    waveform = read_clip(Decoder(samples, 1000), 1000)
    np.testing.assert_allclose(waveform, samples.mean(0), atol=1e-6)


def test_what_is_one_clip_and_what_are_many():
    one = [0.0] * 9000, (0.0, 0.5), np.zeros(9000), torch.zeros(9000), np.zeros((9000, 2))
    assert all(map(is_single_clip, one))
    many = [], ["a.wav"], ("a.wav", "b.wav"), [np.zeros(9000)], np.zeros((2, 9000)), iter([])
    assert not any(map(is_single_clip, many))


def test_reasons_are_one_sentence_each(tmp_path):
    short, nan = np.zeros(399, np.float32), np.full(9000, np.nan, np.float32)
    sf.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    sf.write(tmp_path / "short.wav", short, 16000)
    for clip, error, message in [
        (short, ValueError, "dog has 399 samples but one window needs 400"),
        ((np.zeros(1000, np.float32), 48000), ValueError, "dog has 333 samples"),
        (tmp_path / "short.wav", ValueError, "short.wav has 399 samples"),
        (tmp_path / "nan.wav", ValueError, "nan.wav holds NaN or infinity in 9000 of 9000"),
        (np.zeros(0), ValueError, "dog is empty but one window needs 400"),
        (np.zeros((2, 0)), ValueError, "dog is empty"),
        (np.zeros((0, 2)), ValueError, "dog is empty"),
        (nan, ValueError, "dog holds NaN or infinity in 9000 of 9000"),
        ((nan, 48000), ValueError, "dog holds NaN or infinity in 9000 of 9000"),
        (np.zeros((100, 100)), ValueError, r"shape \(100, 100\) .* at most 64 channels"),
        ({"array": "a.wav"}, TypeError, "dog has a str in the place of samples"),
        (np.ma.masked_array(np.zeros(9000)), ValueError, "dog is a masked array"),
        (torch.zeros(9000, device="meta"), ValueError, "dog is a tensor without values"),
        (torch.zeros(9000).to_sparse(), ValueError, "dog is a tensor without values"),
        ([torch.zeros(500, requires_grad=True)] * 2, TypeError, "a list that holds no numbers"),
        (Decoder(None, 8000), ValueError, "dog cannot be read"),
        ("", ValueError, "'' is no file"),
        ("https://x.org/a.wav", ValueError, "'https://x.org/a.wav' is a URL, which is not read"),
        (np.array({}, object), TypeError, "holds no numbers .its type is object."),
        ((np.zeros(9000), True), TypeError, "dog is a tuple that holds no numbers"),
        (np.float32(1), TypeError, "dog is a float32; give a path, bytes, an array"),
        (np.zeros(()), ValueError, r"dog has shape \(\)"),
        ([0, 1, 0, 1], ValueError, "dog holds torch.int64 values, whose scale is unknown"),
        ({"path": None, "bytes": None}, ValueError, r"dog has the keys \['bytes', 'path'\] but"),
        ({"path": 3.5}, TypeError, "dog is a float; give a path"),
        ({"bytes": 5}, TypeError, "dog is a int"),
        ({3: 4}, ValueError, r"dog has the keys \['3'\]"),
        (io.StringIO("text"), TypeError, "dog is a StringIO"),
        ((np.zeros(9000), "fast"), TypeError, "dog is a tuple that holds no numbers"),
        ({"array": np.zeros(9000), "sampling_rate": "fast"}, ValueError, "rate is fast; it must"),
        ((np.zeros(9000), float("nan")), ValueError, "rate is nan; it must be a positive whole"),
    ]:
        with pytest.raises(error, match=message) as caught:
            read_clip(clip, 16000, "dog")
        assert "\n" not in str(caught.value), clip
