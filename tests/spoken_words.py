"""Writes ten spoken words as one folder of WAV files per word, offline, with espeak-ng.

    python tests/spoken_words.py OUTPUT_DIR

    OUTPUT_DIR/train/WORD/VOICE_TAKE.wav
    OUTPUT_DIR/test/WORD/VOICE_TAKE.wav

Words from a synthesiser, in the form of Speech Commands: one second, 16 kHz, and voices in the
test that are not in the training. A voice is a variant of espeak-ng, that is its formants, its
glottal source and its range of pitch; accent, pitch and speed vary from take to take.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from numpy.random import Generator
from tqdm.auto import tqdm

from modeling_ast import read_audio

PROGRAM = "espeak-ng"
INSTALL = f"{PROGRAM} is not installed; get it with: apt-get install {PROGRAM}"
RATE = 16_000
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
# Some variants are nearly one voice (edward2 is edward, Diogo is michel, aunty is f4). Such voices
# are in one split. Left out are whispers, effects, and caleb and klatt, which equal adam.
TRAIN_VOICES = (
    "m1 m4 m5 m6 m7 f2 f4 Alex Andrea Annie Denis Diogo Gene Gene2 Henrique Hugo Lee Marco Mario "
    "Michael Nguyen adam anika antonio aunty benjamin david edward edward2 grandma grandpa gustave "
    "iven iven2 iven3 iven4 john kaukovalta klatt2 klatt3 klatt4 linda marcelo max michel miguel "
    "paul rob robert robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 "
    "robosoft8 shelby steph steph2 steph3 victor zac"
)
TEST_VOICES = (
    "m2 m3 m8 f1 f3 f5 Alicia Andy Jacky Mike belinda boris ed norbert pablo pedro quincy sandro "
    "travis"
)
ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
TAKES = 5
# On espeak-ng's own scales: 50 and 175 are its defaults.
PITCH = (25, 75)
WORDS_PER_MINUTE = (120, 200)
PEAK_DB = (-20.0, -2.0)
NOISE_BELOW_PEAK_DB = (30.0, 60.0)
# Largest distance of a word from the middle of its clip.
SHIFT_SECONDS = 0.1
# Samples below this share of the peak count as silence around the word.
SILENCE = 0.01


class Take(NamedTuple):
    """One clip, in which a voice says a word once."""

    split: str
    word: str
    voice: str
    number: int

    @property
    def path(self) -> Path:
        """The path in the data set's folder."""
        return Path(self.split) / self.word / f"{self.voice}_{self.number}.wav"

    def generator(self, seed: int) -> Generator:
        """The clip's random numbers, which do not depend on other clips."""
        name = zlib.crc32(f"{self.word} {self.voice} {self.number}".encode())
        return np.random.default_rng([seed, name])


def speak(word: str, voice: str, accent: str, pitch: int, words_per_minute: int) -> np.ndarray:
    """A word by espeak-ng: (S,) at 16 kHz, without the silence before and after it."""
    command = [PROGRAM, "--stdout", "-v", f"{accent}+{voice}", "-p", pitch, "-s", words_per_minute]
    run = subprocess.run([*map(str, command), word], capture_output=True, check=True)
    speech = read_audio(run.stdout)
    (loud,) = np.nonzero(np.abs(speech) > SILENCE * np.abs(speech).max())
    return speech[loud[0] : loud[-1] + 1]


def place(speech: np.ndarray, rng: Generator) -> np.ndarray:
    """Puts a word near the middle of one second of soft noise, (16000,), at a random level.

    A longer word loses as much of its beginning as of its end.
    """
    excess = max(0, len(speech) - RATE)
    speech = speech[excess // 2 :][:RATE]
    peak_db = rng.uniform(*PEAK_DB)
    noise_db = peak_db - rng.uniform(*NOISE_BELOW_PEAK_DB)
    clip = 10 ** (noise_db / 20) * rng.standard_normal(RATE)
    space = RATE - len(speech)
    shift = round(RATE * rng.uniform(-SHIFT_SECONDS, SHIFT_SECONDS))
    onset = min(max(0, space // 2 + shift), space)
    clip[onset : onset + len(speech)] += 10 ** (peak_db / 20) * speech / np.abs(speech).max()
    return clip.clip(-1, 1)


def make_clip(take: Take, seed: int) -> np.ndarray:
    """A word with the accent, the pitch and the speed that are drawn for this take: (16000,)."""
    rng = take.generator(seed)
    accent = ACCENTS[rng.integers(len(ACCENTS))]
    pitch = rng.integers(*PITCH, endpoint=True)
    words_per_minute = rng.integers(*WORDS_PER_MINUTE, endpoint=True)
    return place(speak(take.word, take.voice, accent, pitch, words_per_minute), rng)


def check_voices(voices: Sequence[str]) -> None:
    """Refuses voices that this espeak-ng lacks, as it would use its default voice instead.

    Raises:
        FileNotFoundError: There is no espeak-ng.
        ValueError: It does not have all the voices.
    """
    if shutil.which(PROGRAM) is None:
        raise FileNotFoundError(INSTALL)
    command = [PROGRAM, "--voices=variant"]
    table = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    missing = sorted(set(voices) - set(re.findall(r"!v/(\S+)", table)))
    if missing:
        raise ValueError(f"{PROGRAM} has no voice {', '.join(missing)}; update it to 1.51 or newer")


def write_data_set(
    folder: str | Path,
    takes: int = TAKES,
    seed: int = 0,
    train_voices: str = TRAIN_VOICES,
    test_voices: str = TEST_VOICES,
    progress: bool = True,
) -> Path:
    """Writes the data set; the same arguments write the same bytes.

    Args:
        folder: New or empty.
        takes: Number of times that each voice says each word.
        seed: Another seed gives other accents, pitches, speeds, places and levels.
        train_voices, test_voices: Variants of espeak-ng, separated by spaces; none may be in both.
        progress: Whether a progress bar is shown.
    Returns:
        `folder`, with train/WORD/*.wav and test/WORD/*.wav.
    Raises:
        FileExistsError: `folder` is not empty.
        FileNotFoundError: There is no espeak-ng.
        ValueError: A voice is in both splits, or espeak-ng does not have it.
    """
    folder = Path(folder)
    voices = {"train": train_voices.split(), "test": test_voices.split()}
    if both := sorted({*voices["train"]} & {*voices["test"]}):
        raise ValueError(f"{', '.join(both)} is in train and in test; give it to one of them")
    check_voices(voices["train"] + voices["test"])
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    clips = [
        Take(split, word, voice, number)
        for split in voices
        for word in WORDS
        for voice in voices[split]
        for number in range(takes)
    ]
    for parent in {take.path.parent for take in clips}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    # Threads are enough, because each clip waits for a process of espeak-ng.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda take: make_clip(take, seed), clips)
        for take, clip in tqdm(zip(clips, made), "clips", len(clips), disable=not progress):
            sf.write(folder / take.path, clip, RATE, subtype="PCM_16")
    return folder


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Write ten spoken words as one folder of WAV files per word, with espeak-ng.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="folder to write, new or empty")
    parser.add_argument("--takes", type=int, default=TAKES, help="of each word by each voice")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="K", help="the same seed gives the same bytes"
    )
    return parser.parse_args()


def main() -> None:
    """Writes the data set; an error that the user can correct is shown as one line."""
    arguments = parse_arguments()
    try:
        folder = write_data_set(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{folder}: clips of {len(WORDS)} words by train and test voices\n")


if __name__ == "__main__":
    main()
