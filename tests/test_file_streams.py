"""file_streams: all of a file is decoded. Judges: the lengths and tones that were written."""

import io
import logging
import struct
import time

import numpy as np
import pytest
import soundfile as sf

from modeling_ast import file_streams
from modeling_ast.audio import read_audio, stream_audio
from modeling_ast.decoding import AudioFile, DecodingError
from modeling_ast.file_streams import find_streams

ID3V2 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)  # 2 * 128 bytes
ID3V1 = b"TAG" + bytes(125)


def tone(rate: int, seconds: float, hz: float, channels: int = 1) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, 1).astype(np.float32)


def encode(samples: np.ndarray, rate: int, **kwargs) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, **kwargs)
    return file.getvalue()


def mp3(rate: int, seconds: float, hz: float, channels: int = 1, counted: bool = True) -> bytes:
    """An MP3 of varying bit rate, with or without a first frame that counts the others."""
    kwargs = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.2}
    content = encode(tone(rate, seconds, hz, channels), rate, **kwargs)
    if counted:
        return content
    assert b"Xing" in content[:64] or b"Info" in content[:64]
    return content[content.index(content[:2], 4) :]


def check(content: bytes, tones: list[tuple[float, float]], slack: float = 0.08) -> None:
    """The file has these tones (seconds, Hz) in order; an MP3 may have a frame more or less."""
    heard = read_audio(content)
    total = sum(seconds for seconds, _ in tones)
    assert len(heard) / 16000 == pytest.approx(total, abs=slack)
    assert AudioFile(content).length_at(16000) == len(heard)
    assert len(np.concatenate(list(stream_audio(content, block_seconds=0.3)))) == len(heard)
    begin = 0.0
    for seconds, hz in tones:
        inner = heard[int(16000 * (begin + 0.15)) : int(16000 * (begin + seconds - 0.1))]
        peak = np.abs(np.fft.rfft(inner * np.hanning(len(inner)))).argmax() * 16000 / len(inner)
        assert peak == pytest.approx(hz, abs=3)
        begin += seconds


@pytest.mark.parametrize("kwargs", [{"subtype": "VORBIS"}, {"subtype": "OPUS"}])
def test_every_link_of_a_chained_ogg_file(tmp_path, kwargs):
    """Internet radio writes such files; the links may have different rates."""
    first = encode(tone(48000, 2, 440), 48000, format="OGG", **kwargs)
    second = encode(tone(24000, 1, 880, 2), 24000, format="OGG", **kwargs)
    check(first, [(2, 440)], slack=0.001)
    check(first + second + first, [(2, 440), (1, 880), (2, 440)], slack=0.001)
    # Bytes between two pages that are no page are skipped.
    check(first + bytes(1000) + second, [(2, 440), (1, 880)], slack=0.001)
    path = tmp_path / "radio.ogg"
    path.write_bytes(first + second)
    assert len(read_audio(path)) == 48000


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000])
def test_joined_mp3_files(rate):
    first, second = mp3(rate, 1, 440), mp3(rate, 2, 880)
    check(first, [(1, 440)], slack=0.001)
    check(first + second, [(1, 440), (2, 880)], slack=0.001)
    tagged = ID3V2 + first + ID3V1 + ID3V2 + second + ID3V1
    check(tagged, [(1, 440), (2, 880)], slack=0.001)


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_joined_files_without_loss(kind):
    first = encode(tone(44100, 1.0, 440), 44100, format=kind)
    second = encode(tone(16000, 0.5, 880, 2), 16000, format=kind)
    third = encode(tone(16000, 0.7, 1320), 16000, format=kind)
    check(first, [(1.0, 440)], slack=0.001)
    check(first + second + third, [(1.0, 440), (0.5, 880), (0.7, 1320)], slack=0.001)


def test_what_stands_behind_the_samples_of_a_wav_is_no_second_file():
    content = encode(tone(16000, 0.5, 440), 16000, format="WAV")
    for tail in (
        b"LIST\4\0\0\0INFO",
        bytes(5000),
        b"id3 \xff\xff\xff\x7f",
        b"RI",
    ):
        assert len(find_streams(io.BytesIO(content + tail))[0]) == 1
        check(content + tail, [(0.5, 440)], slack=0.001)


def test_an_mp3_that_does_not_count_its_frames():
    """An encoder that writes to a pipe makes such files; libsndfile guesses their length."""
    silence_first = np.concatenate([np.zeros((88200, 1), np.float32), tone(44100, 3, 440)])
    kwargs = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.2}
    counted = encode(silence_first, 44100, **kwargs)
    bare = counted[counted.index(counted[:2], 4) :]
    assert len(read_audio(bare)) / 16000 == pytest.approx(5, abs=0.08)
    for channels in (1, 2):
        check(mp3(44100, 4, 440, channels, counted=False), [(4, 440)])
    check(ID3V2 + mp3(48000, 4, 440, counted=False) + ID3V1, [(4, 440)])


def test_joined_mp3_files_of_every_kind():
    bare, other = mp3(44100, 2, 440, counted=False), mp3(48000, 1, 880, counted=False)
    stereo, counted = mp3(44100, 1, 880, 2, counted=False), mp3(48000, 1, 1320)
    check(bare + other, [(2.04, 440), (1.04, 880)], slack=0.1)
    check(bare + stereo, [(2.04, 440), (1.04, 880)], slack=0.1)
    check(counted + bare, [(1, 1320), (2.04, 440)])
    check(bare + counted + other, [(2.04, 440), (1, 1320), (1.04, 880)], slack=0.15)


def test_a_wav_whose_recorder_died(caplog):
    logging.getLogger("transformers").propagate = True
    whole = encode(tone(16000, 2, 440), 16000, format="WAV")
    rf64 = encode(tone(16000, 2, 440), 16000, format="RF64")
    place, ds64 = whole.index(b"data") + 4, rf64.index(b"ds64") + 8

    def sized(num_bytes: int) -> bytes:
        return whole[:place] + struct.pack("<I", num_bytes) + whole[place + 4 :]

    for content, said in [
        (whole, ""),
        (sized(0), "its header announces no samples; the 64,000 bytes after it are used"),
        (rf64[:ds64] + bytes(24) + rf64[ds64 + 24 :], "the 64,000 bytes after it are used"),
        (sized(10**9), "its header announces 1,000,000,000 bytes of samples, 64,000 are there"),
        (sized(2**32 - 1), ""),  # from a pipe, which is how it should be
    ]:
        caplog.clear()
        np.testing.assert_array_equal(read_audio(content), read_audio(whole))
        assert said in caplog.text and (said or not caplog.text)
    for rest in (b"", b"LIST\x04\0\0\0abcd"):
        with pytest.raises(ValueError, match="is audio of zero length"):
            read_audio(sized(0)[: place + 4] + rest)


def test_a_flac_of_unknown_length():
    wave = tone(16000, 3, 440)
    content = bytearray(encode(wave, 16000, format="FLAC"))
    # STREAMINFO: 36 bits of the number of samples, 0 if unknown, begin in the middle of byte 21.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert AudioFile(bytes(content)).length_at(16000) is None
    np.testing.assert_allclose(read_audio(bytes(content)), wave[:, 0], atol=2**-15)
    with pytest.raises(ValueError, match="at most 100,000 bytes are read at once"):
        read_audio(bytes(content), max_bytes=100_000)


JUNK = np.random.default_rng(0).bytes(3000)


@pytest.mark.parametrize(
    "tail", [ID3V1, ID3V2, b"APETAGEX" + bytes(24), bytes(5000), b"\n", JUNK, b"fLaC\0\0\0\x22"]
)
def test_what_stands_around_the_frames_of_a_flac(tail):
    """Tags, filling, and the first bytes of another file."""
    first = encode(tone(16000, 1.0, 440), 16000, format="FLAC")
    second = encode(tone(16000, 0.7, 880), 16000, format="FLAC")
    check(first + tail, [(1.0, 440)], slack=0)
    check(first + tail + second + tail, [(1.0, 440), (0.7, 880)], slack=0)
    check(ID3V2 + first + tail + second, [(1.0, 440), (0.7, 880)], slack=0)


@pytest.mark.parametrize("kind", [1, 2, 6], ids=["filling", "application", "picture"])
def test_a_flac_in_a_block_of_a_flac_is_not_heard(kind):
    first = encode(tone(16000, 1.0, 440), 16000, format="FLAC")
    second = encode(tone(16000, 0.7, 880), 16000, format="FLAC")
    # A picture has its kind, the lengths of two texts, four sizes and the length of its data.
    head = bytes(28) + len(second).to_bytes(4, "big") if kind == 6 else b""
    size = len(head + second).to_bytes(3, "big")
    whole = first[:42] + bytes([kind]) + size + head + second + first[42:]
    check(whole, [(1.0, 440)], slack=0)
    check(whole + second, [(1.0, 440), (0.7, 880)], slack=0)


def test_joined_flac_files_at_the_ends_of_what_is_searched_at_once():
    first = encode(tone(16000, 1.0, 440), 16000, format="FLAC")
    second = encode(tone(16000, 0.7, 880), 16000, format="FLAC")
    place, block = AudioFile(first).streams[0].stretch.start, file_streams.SEARCH_BYTES
    filling = bytes(block - len(first))
    for before in range(-10, 3):
        content = first + filling[: len(filling) + before] + bytes(max(0, before)) + second
        begin = len(content) - len(second)
        assert place == 0 and abs(begin - block) <= 10
        assert [part.start for part in find_streams(io.BytesIO(content))[0]] == [0, begin]


def test_the_place_of_a_damage_is_that_in_the_whole_file():
    first = encode(tone(16000, 1.0, 440), 16000, format="FLAC")
    second = encode(tone(16000, 2.0, 880), 16000, format="FLAC")
    cut = second[: len(second) // 2]
    with pytest.raises(DecodingError, match=r"after [12]\.\d\d s") as error:
        read_audio(first + cut)
    assert 1.0 < error.value.seconds < 3.0


def test_the_search_in_a_damaged_mp3_takes_no_minutes():
    frame = b"\xff\xfb\x10\0" + bytes(100)
    begin = time.process_time()
    for content in (
        (frame * 2 + b"x") * 40_000,
        b"\xff" * 10_000_000,
        b"\xff\xfb\x90\0" * 2_000_000,
    ):
        assert len(find_streams(io.BytesIO(frame + content))[0]) == 1
    # It takes 0.1 s; it took 80 s when each damage cost a search of 4 MB.
    assert time.process_time() - begin < 20


def test_damaged_headers_end_the_search():
    for head in (
        b"OggS",
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0WAVEdata",
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
    ):
        for rest in (b"", bytes(100), b"\xff" * 1000, b"OggS" * 50):
            assert find_streams(io.BytesIO(head + rest))[0]


@pytest.mark.parametrize("format", ["AIFF", "AU", "W64"])
def test_a_file_that_is_cut_off_is_used_with_a_note(format, caplog):
    whole = encode(tone(16000, 2.0, 440), 16000, format=format)
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "modeling_ast"):
        assert len(read_audio(whole)) == 32_000 and not caplog.text
        half = read_audio(whole[: len(whole) // 2])
    assert 15_500 < len(half) < 16_000
    assert f"its header announces {len(whole):,} bytes" in caplog.text


def test_bytes_behind_a_w64_file_are_no_samples():
    whole = encode(tone(16000, 1.0, 440), 16000, format="W64")
    np.testing.assert_array_equal(read_audio(whole + JUNK), read_audio(whole))


def test_samples_behind_those_that_a_wav_announces_are_named(caplog):
    content = bytearray(encode(tone(16000, 2.0, 440), 16000, format="WAV"))
    content[40:44] = (3200).to_bytes(4, "little")
    with caplog.at_level(logging.WARNING, "modeling_ast"):
        assert len(read_audio(bytes(content))) == 1600
    assert "announces 3,200 bytes of samples; 60,800 bytes behind these are not used" in caplog.text
