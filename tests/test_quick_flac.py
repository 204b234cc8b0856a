"""Quick FLAC: the samples are libsndfile's, and a damaged file is left to libsndfile."""

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from modeling_ast.decoding import mean_of_columns
from modeling_ast.flac_files import first_frame, flac_start, frames
from modeling_ast.quick_flac import MOST_SAMPLES, DamagedFlacError, decode_quickly

pytest.importorskip("miniaudio", reason="miniaudio is not built for this machine")


def sound(rng, num_samples: int, channels: int) -> np.ndarray:
    """(S, channels): noise, a tone, silence or steps, which the encoder packs differently."""
    time = np.arange(num_samples)[:, None] / 16000
    kinds = [
        rng.standard_normal((num_samples, channels)) * 10.0 ** -rng.uniform(0, 4),
        np.sin(2 * np.pi * rng.uniform(50, 3000, channels) * time),
        np.zeros((num_samples, channels)),
        np.round(rng.standard_normal((num_samples, channels))) / 4,
    ]
    return np.clip(kinds[rng.integers(len(kinds))] * 0.5, -1, 1)


def encode(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16", level: float = 0.5):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype, compression_level=level)
    return buffer.getvalue()


def plain(content: bytes) -> np.ndarray:
    """(S,), by libsndfile."""
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return mean_of_columns(samples)


def quick(content: bytes) -> np.ndarray | None:
    try:
        return decode_quickly(content, 2**12, mean_of_columns)
    except DamagedFlacError:
        return None


def frame_bounds(content: bytes) -> list[int]:
    """Where each frame begins, and the end of the file."""
    first = first_frame(io.BytesIO(content), 0)
    return [f.place for f in frames(content, flac_start(content), first)] + [len(content)]


@pytest.mark.parametrize("seed", range(60))
def test_the_samples_are_those_of_libsndfile(seed):
    rng = np.random.default_rng(seed)
    samples = sound(rng, int(rng.integers(1, 30000)), int(rng.integers(1, 9)))
    subtype = rng.choice(["PCM_S8", "PCM_16", "PCM_24"])
    rate = int(rng.choice([8000, 11025, 16000, 44100, 48000, 96000, 12345]))
    content = encode(samples, rate, subtype, level=rng.integers(9) / 8)
    np.testing.assert_array_equal(quick(content), plain(content))


def damage(rng, content: bytes) -> bytes:
    """Flipped bits, or parts that are cut, zeroed, doubled, moved or added; of bytes or frames."""
    kind, bounds = rng.integers(8), frame_bounds(content)
    begin = int(rng.integers(bounds[0], len(content)))
    end = min(len(content), begin + int(rng.integers(1, 3000)))
    if kind == 0:
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 20))):
            changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == 1:
        return content[:begin] + content[end:]
    if kind == 2:
        return content[:begin] + bytes(end - begin) + content[end:]
    if kind == 3:
        return content[:end] + content[begin:]
    if kind == 4:
        return content[:begin] + rng.bytes(end - begin) + content[begin:]
    parts = [content[a:b] for a, b in pairwise(bounds)]
    here, there = (int(rng.integers(len(parts))) for _ in range(2))
    if kind == 5:
        parts[here], parts[there] = parts[there], parts[here]
    elif kind == 6:
        parts[here] = parts[there]
    else:
        parts.insert(here, parts[there])
    return content[: bounds[0]] + b"".join(parts)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_never_gives_wrong_samples(seed):
    rng = np.random.default_rng(seed)
    content = encode(sound(rng, 30000, 2), level=rng.integers(9) / 8)
    whole = plain(content)
    for _ in range(30):
        result = quick(damage(rng, content))
        assert result is None or np.array_equal(result, whole)


def test_what_is_left_to_libsndfile():
    samples = np.random.default_rng(0).uniform(-1, 1, (20000, 2))
    content = encode(samples)
    unknown = bytearray(content)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    assert quick(bytes(unknown)) is None
    assert quick(content + content) is None  # joined files
    assert quick(content[:-100]) is None
    assert quick(b"") is None and quick(b"fLaC") is None
    assert quick(encode(np.zeros(MOST_SAMPLES + 1, np.int16))) is None


def test_what_stands_around_the_frames_does_no_harm():
    content = encode(np.random.default_rng(0).uniform(-1, 1, (20000, 2)))
    np.testing.assert_array_equal(quick(content + b"TAG" + bytes(125)), plain(content))
