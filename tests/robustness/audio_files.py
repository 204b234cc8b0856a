"""Hostile, damaged and odd audio files, made from a seed, with the expected result of each kind.

A kind is a function of a random generator that returns `Made`: the content of a file, the suffix of
its name, and the expected result: a number of decoded seconds, or BAD, or EITHER.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile

from modeling_ast.flac_files import with_num_samples

EITHER, BAD = "heard or bad", "bad"


@dataclass
class Made:
    """A file to be written."""

    content: bytes
    suffix: str
    # Number of decoded seconds, or one of the two words above.
    expected: float | str


def sound(rng: np.random.Generator, seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A tone in noise, (S, channels)."""
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, rate / 3) * time)
    noise = 0.05 * rng.standard_normal((len(time), channels))
    return (tone[:, None] + noise).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    """The content of a file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


FORMATS = (
    ("WAV", "PCM_16", ".wav"),
    ("WAV", "PCM_24", ".WAV"),
    ("WAV", "FLOAT", ".wav"),
    ("FLAC", None, ".flac"),
    ("OGG", "VORBIS", ".ogg"),
    ("OGG", "OPUS", ".opus"),
    ("MP3", None, ".mp3"),
    ("AIFF", None, ".aiff"),
    ("W64", None, ".w64"),
    ("CAF", None, ".caf"),
)


def a_file(rng: np.random.Generator, seconds: float, formats=FORMATS) -> tuple[bytes, str]:
    kind, subtype, suffix = formats[rng.integers(len(formats))]
    rates = (8000, 16000, 48000) if subtype == "OPUS" else (8000, 16000, 22050, 44100, 48000)
    rate, channels = int(rng.choice(rates)), int(rng.integers(1, 3))
    return encoded(sound(rng, seconds, rate, channels), rate, kind, subtype), suffix


def whole(rng) -> Made:
    seconds = float(rng.uniform(0.3, 2.5))
    content, suffix = a_file(rng, seconds)
    return Made(content, suffix, seconds)


def cut_off(rng) -> Made:
    content, suffix = a_file(rng, 1.5)
    return Made(content[: rng.integers(1, len(content))], suffix, EITHER)


def flipped_bits(rng) -> Made:
    content, suffix = a_file(rng, 1.0)
    damaged = bytearray(content)
    for place in rng.integers(0, len(damaged), 20):
        damaged[place] ^= 1 << rng.integers(8)
    return Made(bytes(damaged), suffix, EITHER)


def flipped_header(rng) -> Made:
    content, suffix = a_file(rng, 0.5)
    damaged = bytearray(content)
    for place in rng.integers(0, 44, 3):
        damaged[place] ^= 1 << rng.integers(8)
    return Made(bytes(damaged), suffix, EITHER)


def noise_bytes(rng) -> Made:
    suffix = FORMATS[rng.integers(len(FORMATS))][2]
    return Made(rng.bytes(int(rng.integers(1, 5000))), suffix, EITHER)


def nothing(rng) -> Made:
    return Made(b"", ".wav", BAD)


def no_audio(rng) -> Made:
    contents = (
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'{"error": "quota exceeded"}',
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + rng.bytes(500),
        b"\x89PNG\r\n\x1a\n" + rng.bytes(500),
        b"PK\x03\x04" + rng.bytes(500),
        b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom" + rng.bytes(2000),
        b"\x1aE\xdf\xa3" + rng.bytes(500),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        b"text, just text\n" * 30,
    )
    return Made(contents[rng.integers(len(contents))], ".wav", BAD)


def strange_rate(rng) -> Made:
    content = bytearray(encoded(sound(rng, 0.5, 16000), 16000, "WAV", "PCM_16"))
    rate = int(rng.choice([0, 1, 99, 1_000_001, 67_130_914, 2**31 - 1, 2**32 - 1]))
    struct.pack_into("<I", content, 24, rate)
    return Made(bytes(content), ".wav", BAD)


def absurd_samples(rng) -> Made:
    samples = sound(rng, 0.5, 16000)
    samples[rng.integers(len(samples))] = rng.choice([3e20, 1e38, np.nan, np.inf, -np.inf])
    return Made(encoded(samples, 16000, "WAV", "FLOAT"), ".wav", BAD)


def integers_as_float(rng) -> Made:
    """32-bit integers with a header that says float."""
    content = bytearray(encoded(np.zeros((8000, 1)), 16000, "WAV", "FLOAT"))
    values = (sound(rng, 0.5, 16000)[:, 0] * 2**31).astype("<i4").tobytes()
    content[-len(values) :] = values
    return Made(bytes(content), ".wav", BAD)


def wrong_data_size(rng) -> Made:
    """A file of a killed recorder: its header has a size of 0, or one that is too large."""
    content = bytearray(encoded(sound(rng, 1.0, 16000), 16000, "WAV", "PCM_16"))
    place = content.index(b"data") + 4
    struct.pack_into("<I", content, place, int(rng.choice([0, 2**31, 2**32 - 1])))
    return Made(bytes(content), ".wav", 1.0)


def unknown_length(rng) -> Made:
    """FLAC as written to a pipe: 0 samples in STREAMINFO, which means unknown."""
    content = bytearray(encoded(sound(rng, 1.0, 16000), 16000, "FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return Made(bytes(content), ".flac", 1.0)


def too_few_announced(rng) -> Made:
    """FLAC with more samples than its header says."""
    content = encoded(sound(rng, 1.0, 16000), 16000, "FLAC")
    head = with_num_samples(content, int(rng.integers(1, 16000)))
    return Made(head + content[len(head) :], ".flac", 1.0)


def joined(rng) -> Made:
    """Two files joined as by `cat`: chained OGG, joined MP3."""
    kind, subtype, suffix = FORMATS[rng.choice([4, 5, 6])]
    parts = [encoded(sound(rng, 1.0, 48000), 48000, kind, subtype) for _ in range(2)]
    return Made(b"".join(parts), suffix, 2.0)


def expands(rng) -> Made:
    """Minutes of silence in a few kilobytes."""
    return Made(encoded(np.zeros((16000 * 120, 1), np.int16), 16000, "FLAC"), ".flac", 120.0)


def very_short(rng) -> Made:
    samples = int(rng.integers(0, 399))
    return Made(encoded(sound(rng, samples / 16000, 16000), 16000, "WAV", "PCM_16"), ".wav", BAD)


KINDS: dict[str, Callable[[np.random.Generator], Made]] = {
    "whole": whole,
    "cut off": cut_off,
    "flipped bits": flipped_bits,
    "flipped header": flipped_header,
    "noise": noise_bytes,
    "empty": nothing,
    "no audio": no_audio,
    "strange rate": strange_rate,
    "absurd samples": absurd_samples,
    "int32 as float": integers_as_float,
    "wrong data size": wrong_data_size,
    "unknown length": unknown_length,
    "too few announced": too_few_announced,
    "joined": joined,
    "very short": very_short,
    "expands": expands,
}
# Names that may be a problem for a shell, a table or a decoder.
STRANGE_NAMES = (
    b"-0RWZT-miFs",
    b"with space and 'quote'",
    b"two\nlines",
    b"not \xff\xfe unicode",
    "Ünïcödé ✓".encode(),
    b"x" * 240,
    b"#%&{}$!@+`|=",
    b"train",
)
