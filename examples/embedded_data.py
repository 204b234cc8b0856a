"""Writes a small synthetic data set in the schema of the Hub's agkphysics/AudioSet, offline.

    python examples/embedded_data.py OUTPUT_DIR [--events]
    >>> datasets.load_dataset("OUTPUT_DIR", "balanced")   # splits train and test

Every clip is a scene of one to three sounds over a soft rumble; the sounds are classes of AudioSet
that can be synthesised. Code that reads AudioSet or trains on it can be tried at once: there are
parquet shards with FLAC bytes, MIDs, display names, and the class list `class_labels_indices.csv`.
Source of schema and layout: https://huggingface.co/datasets/agkphysics/AudioSet; of the classes:
Gemmeke et al., "Audio Set: An ontology and human-labeled dataset for audio events", 2017.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from datasets import Audio, Features, List, Value
from numpy.random import Generator
from tqdm.auto import tqdm

FEATURES = Features(
    {
        "video_id": Value("string"),
        "audio": Audio(),
        "labels": List(Value("string")),
        "human_labels": List(Value("string")),
    }
)
# The column that --events adds, with the names of AudioSet's strong labels (Hershey et al., "The
# benefit of temporally-strong labels in audio event classification", 2021); `label` is a MID.
EVENTS = {
    "events": List(
        {
            "start_time_seconds": Value("float64"),
            "end_time_seconds": Value("float64"),
            "label": Value("string"),
        }
    )
}
# Names of the splits' folders, as on the Hub; `datasets` calls these splits train and test.
TRAIN_FOLDER, TEST_FOLDER = "bal_train", "eval"
CLASS_LIST = "class_labels_indices.csv"
CARD = f"""---
pretty_name: Embedded AudioSet
license: cc0-1.0
task_categories:
- audio-classification
configs:
- config_name: balanced
  default: true
  data_files:
  - split: train
    path: data/{TRAIN_FOLDER}/*.parquet
  - split: test
    path: data/{TEST_FOLDER}/*.parquet
---

# Embedded AudioSet

Synthetic scenes in the schema of `agkphysics/AudioSet`, written by `examples/embedded_data.py`.
No clip comes from YouTube: the values of `video_id` only look like YouTube's.
"""

# The defaults, for the function and the command line.
NUM_TRAIN, NUM_TEST, SECONDS, SAMPLING_RATE = 1600, 400, 2.0, 16_000
CLIPS_PER_SHARD = 200
# Below 1 s a busy signal has no rhythm; below 16 kHz the highest chirps would be aliased.
SECONDS_RANGE = (1.0, 60.0)
SAMPLING_RATE_RANGE = (16_000, 192_000)
SOUNDS_PER_SCENE_ODDS = (0.45, 0.4, 0.15)
# Levels of peaks, in dB relative to full scale. With equal peaks a tick, a tone and a noise can all
# be heard; with equal power the noise would mask the other two.
SCENE_DB = (-20.0, -2.0)
BELOW_SCENE_DB = (0.0, 12.0)
NOISE_FLOOR_DB = (-70.0, -45.0)
PEAK = 0.95


# Parts of sounds. Times are in seconds, frequencies in Hz, n is a number of samples.


def _times(n: int, rate: int) -> np.ndarray:
    return np.arange(n) / rate


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _fade(sound: np.ndarray, rate: int, seconds: float = 0.01) -> np.ndarray:
    """Fades both ends in and out, because a hard edge would sound like a click."""
    edge = min(round(seconds * rate), len(sound) // 2)
    ramp = np.sin(np.pi / 2 * np.arange(edge) / max(edge, 1)) ** 2
    envelope = np.ones(len(sound))
    envelope[:edge] = ramp
    envelope[len(sound) - edge :] = ramp[::-1]
    return sound * envelope


def _tones(rng: Generator, n: int, rate: int, partials: list[tuple[float, float]]) -> np.ndarray:
    """Steady partials of (Hz, amplitude) in random phase; none above the Nyquist frequency."""
    times, sound = _times(n, rate), np.zeros(n)
    for hz, amplitude in partials:
        if hz < rate / 2:
            sound += amplitude * np.sin(2 * np.pi * (hz * times + rng.uniform()))
    return sound


def _filtered_noise(
    rng: Generator, n: int, rate: int, response: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """White noise through a filter given by its amplitude at each frequency."""
    # A power of two, because the FFT of a long prime length takes ten times as long.
    size = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    return np.fft.irfft(spectrum * response(np.fft.rfftfreq(size, 1 / rate)), size)[:n]


def _coloured_noise(rng: Generator, n: int, rate: int, exponent: float) -> np.ndarray:
    """Noise whose power falls as 1 / f ** exponent above 20 Hz, where hearing starts."""
    return _filtered_noise(rng, n, rate, lambda hz: np.maximum(hz, 20.0) ** (-exponent / 2))


def _decaying(sound: np.ndarray, rate: int, decay: float) -> np.ndarray:
    """Makes a sound decay by a factor e every `decay` seconds, after an attack of 0.5 ms."""
    times = _times(len(sound), rate)
    return sound * np.exp(-times / decay) * np.minimum(times / 0.0005, 1.0)


def _repeat(
    event: np.ndarray, starts: np.ndarray, gains: np.ndarray, n: int, rate: int
) -> np.ndarray:
    """Adds an event at each start, with its gain, and cuts everything after n samples."""
    sound = np.zeros(n)
    for start, gain in zip((starts * rate).astype(int), gains):
        length = min(len(event), n - start)
        sound[start : start + length] += gain * event[:length]
    return _fade(sound, rate, 0.002)


def _cadence(n: int, rate: int, on: float, period: float) -> np.ndarray:
    """An envelope that is on for `on` seconds in every `period` seconds, with edges of 5 ms."""
    phase = _times(n, rate) % period
    return np.clip(np.minimum(phase, on - phase) / 0.005, 0.0, 1.0)


# The sounds. Each fills n samples. The scene decides the level, the onset and n; the sound decides
# everything else.


def dial_tone(rng: Generator, n: int, rate: int) -> np.ndarray:
    """Two steady tones: 350 + 440 Hz (North America) or 350 + 450 Hz (Britain)."""
    line = rng.uniform(0.99, 1.01)
    low_hz, high_hz = 350 * line, rng.choice([440, 450]) * line
    sound = _tones(rng, n, rate, [(low_hz, 1.0), (high_hz, rng.uniform(0.7, 1.3))])
    return _fade(sound, rate)


def busy_signal(rng: Generator, n: int, rate: int) -> np.ndarray:
    """480 + 620 Hz, equally long on and off: 0.5 s for a busy line, 0.25 s for a busy network."""
    line = rng.uniform(0.99, 1.01)
    on = rng.choice([0.25, 0.5]) * rng.uniform(0.95, 1.05)
    sound = _tones(rng, n, rate, [(480 * line, 1.0), (620 * line, rng.uniform(0.7, 1.3))])
    return _fade(sound * _cadence(n, rate, on, 2 * on), rate)


def siren(rng: Generator, n: int, rate: int) -> np.ndarray:
    """A harmonic horn whose pitch wails up and down, smoothly or in straight lines."""
    turns = rng.uniform(1.2, 4.0) * _times(n, rate) + rng.uniform()
    smooth = np.sin(2 * np.pi * turns)
    straight = 2 / np.pi * np.arcsin(smooth)
    shape = smooth if rng.uniform() < 0.5 else straight
    hz = rng.uniform(650, 1100) * rng.uniform(1.4, 1.9) ** shape
    phase = 2 * np.pi * np.cumsum(hz) / rate
    # Three harmonics stay below 8 kHz at the highest pitch.
    sound = sum(np.sin(k * phase) / k ** rng.uniform(0.5, 1.0) for k in (1, 2, 3))
    return _fade(sound, rate, 0.03)


def whistle(rng: Generator, n: int, rate: int) -> np.ndarray:
    """One lip-whistled pitch with vibrato, a glide into and out of it, and breath around it."""
    times, centre_hz = _times(n, rate), _log_uniform(rng, 900, 2600)
    vibrato = rng.uniform(0.015, 0.035) * np.sin(2 * np.pi * rng.uniform(4.5, 7.0) * times)
    scoop = rng.uniform(0.1, 0.25) * np.exp(-times / rng.uniform(0.05, 0.12))
    fall = rng.uniform(0.0, 0.2) * np.exp(-times[::-1] / 0.08)
    hz = centre_hz * (1 + vibrato - scoop - fall)
    tone = np.sin(2 * np.pi * np.cumsum(hz) / rate + rng.uniform(0, 2 * np.pi))
    width_hz = 0.3 * centre_hz
    breath = _filtered_noise(rng, n, rate, lambda hz: 1 / (1 + ((hz - centre_hz) / width_hz) ** 2))
    return _fade(tone + rng.uniform(0.2, 0.6) * breath, rate, 0.05)


def tick(rng: Generator, n: int, rate: int) -> np.ndarray:
    """A clock: four or five short wooden knocks a second, every other one a little duller."""
    starts = np.arange(rng.uniform(0.0, 0.1), n / rate, rng.uniform(0.2, 0.27))
    case_hz = _log_uniform(rng, 1500, 3500)
    partials = [(case_hz, 1.0), (case_hz * rng.uniform(1.5, 2.1), 0.7)]
    knock = _decaying(_tones(rng, round(0.15 * rate), rate, partials), rate, 0.012)
    gains = np.where(np.arange(len(starts)) % 2 == 0, 1.0, rng.uniform(0.5, 0.9))
    return _repeat(knock, starts, gains, n, rate)


def beep(rng: Generator, n: int, rate: int) -> np.ndarray:
    """A piezo buzzer in bursts: odd harmonics, short notes of one pitch."""
    hz = _log_uniform(rng, 900, 2500)
    on = rng.uniform(0.05, 0.13)
    notes = _tones(rng, n, rate, [(hz, 1.0), (3 * hz, 0.35), (5 * hz, 0.15)])
    return _fade(notes * _cadence(n, rate, on, on + rng.uniform(0.05, 0.15)), rate)


def ding(rng: Generator, n: int, rate: int) -> np.ndarray:
    """A small bell, struck repeatedly; its partials are inharmonic, and high ones decay faster."""
    hz, decay = _log_uniform(rng, 500, 1400), rng.uniform(0.2, 0.5)
    bell = np.zeros(n)
    # Ratios of a free bar (Fletcher and Rossing, The Physics of Musical Instruments).
    for ratio, amplitude in ((1.0, 1.0), (2.76, 0.8), (5.40, 0.6)):
        partial = _tones(rng, n, rate, [(hz * ratio * rng.uniform(0.98, 1.02), amplitude)])
        bell += _decaying(partial, rate, decay / ratio**0.5)
    starts = np.arange(0.0, n / rate, rng.uniform(0.4, 0.8))
    gains = rng.uniform(0.6, 1.0, len(starts))
    return _repeat(bell, starts, gains, n, rate)


def clicking(rng: Generator, n: int, rate: int) -> np.ndarray:
    """Rapid, nearly regular dry clicks, 9 to 18 a second."""
    starts = np.arange(rng.uniform(0.0, 0.05), n / rate - 0.01, 1 / rng.uniform(9, 18))
    starts = starts + rng.uniform(0.0, 0.004, len(starts))
    burst = _decaying(rng.standard_normal(round(0.01 * rate)), rate, 0.0015)
    body_hz = rng.uniform(1000, 3000)
    burst = burst + _decaying(_tones(rng, len(burst), rate, [(body_hz, 1.0)]), rate, 0.002)
    return _repeat(burst, starts, rng.uniform(0.6, 1.0, len(starts)), n, rate)


def sine_wave(rng: Generator, n: int, rate: int) -> np.ndarray:
    """One pure steady tone."""
    return _fade(_tones(rng, n, rate, [(_log_uniform(rng, 300, 3000), 1.0)]), rate)


def chirp_tone(rng: Generator, n: int, rate: int) -> np.ndarray:
    """One pure tone that sweeps over two to three octaves, up or down."""
    low_hz = _log_uniform(rng, 250, 900)
    high_hz = low_hz * rng.uniform(4, 8)
    way = np.linspace(0.0, 1.0, n)
    linear, exponential = low_hz + (high_hz - low_hz) * way, low_hz * (high_hz / low_hz) ** way
    hz = linear if rng.uniform() < 0.5 else exponential
    hz = hz if rng.uniform() < 0.5 else hz[::-1]
    return _fade(np.sin(2 * np.pi * np.cumsum(hz) / rate), rate)


def static(rng: Generator, n: int, rate: int) -> np.ndarray:
    """Radio crackle: sparks at random times and of very unequal strength, over a faint hiss."""
    num_sparks = rng.poisson(rng.uniform(30, 90) * n / rate) + 2
    starts = rng.uniform(0.0, n / rate, num_sparks)
    strengths = rng.choice([-1, 1], num_sparks) * rng.lognormal(0.0, 0.8, num_sparks)
    spark = _decaying(rng.standard_normal(round(0.006 * rate)), rate, rng.uniform(0.0006, 0.0015))
    sparks = _repeat(spark, starts, strengths, n, rate)
    return _fade(sparks + 0.01 * rng.standard_normal(n), rate)


def mains_hum(rng: Generator, n: int, rate: int) -> np.ndarray:
    """50 or 60 Hz and its harmonics; the even ones are stronger, as from a transformer core."""
    mains_hz, slope = rng.choice([50, 60]) * rng.uniform(0.998, 1.002), rng.uniform(0.7, 1.3)
    partials = [
        (k * mains_hz, rng.uniform(0.6, 1.0) * (1.0 if k % 2 == 0 else 0.5) / k**slope)
        for k in range(1, 13)
    ]
    return _fade(_tones(rng, n, rate, partials), rate, 0.05)


def white_noise(rng: Generator, n: int, rate: int) -> np.ndarray:
    """Equal power in every hertz."""
    return _fade(rng.standard_normal(n), rate, 0.02)


def pink_noise(rng: Generator, n: int, rate: int) -> np.ndarray:
    """Equal power in every octave."""
    return _fade(_coloured_noise(rng, n, rate, 1.0), rate, 0.02)


class Sound(NamedTuple):
    """A class of AudioSet and how to make it: (rng, number of samples, rate in Hz) -> waveform."""

    mid: str
    name: str
    synthesise: Callable[[Generator, int, int], np.ndarray]


# In the order of AudioSet's own class list.
SOUNDS: tuple[Sound, ...] = (
    Sound("/m/015jpf", "Dial tone", dial_tone),
    Sound("/m/01z47d", "Busy signal", busy_signal),
    Sound("/m/03kmc9", "Siren", siren),
    Sound("/m/0l156k", "Whistle", whistle),
    Sound("/m/07qjznt", "Tick", tick),
    Sound("/m/02fs_r", "Beep, bleep", beep),
    Sound("/m/07phxs1", "Ding", ding),
    Sound("/m/07qc9xj", "Clicking", clicking),
    Sound("/m/01v_m0", "Sine wave", sine_wave),
    Sound("/m/0hdsk", "Chirp tone", chirp_tone),
    Sound("/m/07rgkc5", "Static", static),
    Sound("/m/06xkwv", "Mains hum", mains_hum),
    Sound("/m/0chx_", "White noise", white_noise),
    Sound("/m/0cj0r", "Pink noise", pink_noise),
)


def at_level(sound: np.ndarray, level_db: float) -> np.ndarray:
    """Scales a sound so that its highest peak lies at `level_db` relative to full scale."""
    return sound * (10 ** (level_db / 20) / np.abs(sound).max())


class PlacedSound(NamedTuple):
    """A sound of a scene."""

    index: int  # into `SOUNDS`
    start: int  # first sample
    stop: int  # the sample after its last one


def make_scene(
    rng: Generator, first: int, seconds: float, rate: int
) -> tuple[np.ndarray, list[PlacedSound]]:
    """Mixes one to three different sounds, each at its own onset and level, over a noise floor.

    Args:
        rng: Source of all random numbers of the scene.
        first: Index into `SOUNDS` of a sound that must be in the scene; the others are drawn.
        seconds: Length of the clip.
        rate: In Hz.
    Returns:
        The waveform (S,), within +-0.95, and its sounds, `first` first.
    """
    num_samples = round(seconds * rate)
    num_others = rng.choice(len(SOUNDS_PER_SCENE_ODDS), p=SOUNDS_PER_SCENE_ODDS)
    others = rng.permutation([i for i in range(len(SOUNDS)) if i != first])[:num_others]
    present = [first, *map(int, others)]
    levels_db = rng.uniform(*SCENE_DB) - rng.uniform(*BELOW_SCENE_DB, len(present))
    # A dull rumble, because white or pink noise would be a class itself.
    floor = _coloured_noise(rng, num_samples, rate, rng.uniform(1.5, 2.0))
    scene = at_level(floor, rng.uniform(*NOISE_FLOOR_DB))
    placed = []
    for index, level_db in zip(present, levels_db):
        length = round(rng.uniform(0.5, 1.0) * num_samples)
        onset = rng.integers(num_samples - length + 1)
        sound = SOUNDS[index].synthesise(rng, length, rate)
        scene[onset : onset + length] += at_level(sound, level_db)
        placed.append(PlacedSound(index, int(onset), int(onset) + length))
    return scene * min(1.0, PEAK / np.abs(scene).max()), placed


def make_row(
    split: str, index: int, seconds: float, rate: int, seed: int, events: bool = False
) -> dict:
    """Makes clip `index` of a split: one row of the data set, which does not depend on other rows.

    Args:
        events: Whether the row says when each sound begins and ends.
    """
    # Eight hashed bytes in URL-safe base 64, the form of YouTube's ids.
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=8).digest()
    video_id = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    rng = np.random.default_rng([seed, (TRAIN_FOLDER, TEST_FOLDER).index(split), index])
    waveform, placed = make_scene(rng, index % len(SOUNDS), seconds, rate)
    flac = io.BytesIO()
    sf.write(flac, waveform, rate, format="FLAC", subtype="PCM_16")
    sounds = [SOUNDS[sound.index] for sound in placed]
    row = {
        "video_id": video_id,
        "audio": {"bytes": flac.getvalue(), "path": f"audio/{split}/{video_id}.flac"},
        "labels": [sound.mid for sound in sounds],
        "human_labels": [sound.name for sound in sounds],
    }
    if events:
        row["events"] = [
            {
                "start_time_seconds": start / rate,
                "end_time_seconds": stop / rate,
                "label": SOUNDS[i].mid,
            }
            for i, start, stop in placed
        ]
    return row


def _check_numbers(
    num_train: int, num_test: int, seconds: float, sampling_rate: int, seed: int
) -> None:
    for name, value, (low, high) in (
        ("num_train", num_train, (1, 1_000_000)),
        ("num_test", num_test, (1, 1_000_000)),
        ("seconds", seconds, SECONDS_RANGE),
        ("sampling_rate", sampling_rate, SAMPLING_RATE_RANGE),
        ("seed", seed, (0, 2**63 - 1)),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; give a number from {low} to {high}")


def _prepare_folder(folder: Path, force: bool) -> None:
    """Makes the folders of the data set, and deletes only the shards of an earlier run."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a new or empty folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise FileExistsError(
            f"{folder} is not empty; give a new folder, or overwrite its data set with --force"
        )
    for split in (TRAIN_FOLDER, TEST_FOLDER):
        shards = folder / "data" / split
        shards.mkdir(parents=True, exist_ok=True)
        for shard in shards.glob("*.parquet"):
            shard.unlink()


def write_data_set(
    folder: str | Path,
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    seconds: float = SECONDS,
    sampling_rate: int = SAMPLING_RATE,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
    events: bool = False,
) -> Path:
    """Writes the data set; the same arguments write the same bytes.

    Clip i of a split always holds sound i modulo the number of sounds, so a split of at least
    `len(SOUNDS)` clips has every class.

    Args:
        folder: Must be new or empty, unless `force`.
        num_train, num_test: Numbers of clips in the splits, which share no random numbers.
        seconds: Length of every clip, 1 to 60.
        sampling_rate: In Hz, 16000 to 192000. If it is not the model's rate (AudioSet's clips are
            mostly at 48000), the reader of the clips must resample them.
        seed: Another seed gives other clips and ids.
        progress: Whether a progress bar is shown.
        force: Whether a data set already in `folder` is overwritten.
        events: Whether a column `events` says when each sound of a clip begins and ends, in
            seconds. The other columns do not depend on it.
    Returns:
        `folder`, ready for `datasets.load_dataset(folder, "balanced")`.
    Raises:
        FileExistsError: `folder` is not empty and `force` is not set.
        NotADirectoryError: `folder` is a file.
        ValueError: A number is out of its range.
    """
    folder = Path(folder)
    _check_numbers(num_train, num_test, seconds, sampling_rate, seed)
    _prepare_folder(folder, force)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    # As in AudioSet's own list, every name has quotes, not only those with a comma.
    lines = [f'{i},{sound.mid},"{sound.name}"' for i, sound in enumerate(SOUNDS)]
    class_list = "\n".join(["index,mid,display_name", *lines, ""])
    (folder / CLASS_LIST).write_text(class_list, encoding="utf-8")
    features = Features({**FEATURES, **EVENTS}) if events else FEATURES
    with tqdm(total=num_train + num_test, unit="clip", disable=not progress) as bar:
        for split, num_clips in ((TRAIN_FOLDER, num_train), (TEST_FOLDER, num_test)):
            for start in range(0, num_clips, CLIPS_PER_SHARD):
                rows = []
                for index in range(start, min(start + CLIPS_PER_SHARD, num_clips)):
                    rows.append(make_row(split, index, seconds, sampling_rate, seed, events))
                    bar.update()
                # The schema carries the features, so that loading gives Audio, not a plain struct.
                # `Dataset.from_list` would encode the audio, which in datasets 5 needs torchcodec.
                table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
                shard = folder / "data" / split / f"{start // CLIPS_PER_SHARD:03d}.parquet"
                pq.write_table(table, shard)
    return folder


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Write a small synthetic data set in the schema of agkphysics/AudioSet.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="folder to write, new or empty")
    for flag, kind, default, metavar, meaning in (
        ("--num-train", int, NUM_TRAIN, "N", "number of clips in the split train"),
        ("--num-test", int, NUM_TEST, "N", "number of clips in the split test"),
        ("--seconds", float, SECONDS, "S", "length of a clip, from 1 to 60"),
        ("--sampling-rate", int, SAMPLING_RATE, "HZ", "from 16000 to 192000 (AudioSet: 48000)"),
        ("--seed", int, 0, "K", "the same seed gives the same bytes"),
    ):
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=meaning)
    parser.add_argument("--force", action="store_true", help="overwrite a data set in OUTPUT_DIR")
    parser.add_argument(
        "--events",
        action="store_true",
        help="add a column with the start and end of each sound, with AudioSet-strong's names",
    )
    return parser.parse_args()


def main() -> None:
    """Writes the data set; an error that the user can correct is shown as one line."""
    arguments = parse_arguments()
    try:
        folder = write_data_set(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f'{folder}: load it with datasets.load_dataset("{folder}", "balanced")\n')


if __name__ == "__main__":
    main()
