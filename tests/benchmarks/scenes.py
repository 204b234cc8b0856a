"""Scenes with sounds at known times, for the evaluation of detection.

A scene is a minute of a soft rumble with 5 to 15 of the embedded sounds, one after the other, or
at random places, so that they may overlap. Sounds of one class never overlap: they would be one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from examples.embedded_data import (
    BELOW_SCENE_DB,
    NOISE_FLOOR_DB,
    PEAK,
    SCENE_DB,
    SOUNDS,
    at_level,
)
from modeling_ast.events import Event

RATE = 16_000
SCENE_SECONDS = 60.0
NUM_SOUNDS = (5, 15)
SOUND_SECONDS = (1.0, 3.0)
# Gap between sounds that do not overlap, and between two of one class, to keep them apart.
LEAST_GAP_SECONDS = 0.5
# A sound starts where it reaches this share of its peak.
HEARD = 0.01


class Scene(NamedTuple):
    """A recording and its events."""

    waveform: np.ndarray  # (S,), float32, at `RATE`
    events: list[Event]  # by onset; the score is 1


def rumble(rng: Generator, num_samples: int) -> np.ndarray:
    """A soft rumble, which is not one of the classes, as in the embedded clips."""
    size = 1 << (num_samples - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    slope = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 20.0) ** (-rng.uniform(1.5, 2.0) / 2)
    floor = np.fft.irfft(spectrum * slope, size)[:num_samples]
    return at_level(floor, rng.uniform(*NOISE_FLOOR_DB))


def make_scene(seed: int, overlapping: bool = False, seconds: float = SCENE_SECONDS) -> Scene:
    """A scene; the same arguments give the same scene."""
    rng = np.random.default_rng([seed, overlapping])
    scene = rumble(rng, round(seconds * RATE))
    num_sounds = int(rng.integers(NUM_SOUNDS[0], NUM_SOUNDS[1] + 1))
    lengths = rng.uniform(*SOUND_SECONDS, num_sounds)
    classes = rng.integers(len(SOUNDS), size=num_sounds)
    place = _anywhere if overlapping else _one_after_the_other
    loudest_db, events = rng.uniform(*SCENE_DB), []
    for index, onset, length in zip(classes, place(rng, lengths, classes, seconds), lengths):
        start, num_samples = round(onset * RATE), round(length * RATE)
        sound = SOUNDS[index].synthesise(rng, num_samples, RATE)
        level_db = loudest_db - rng.uniform(*BELOW_SCENE_DB)
        scene[start : start + num_samples] += at_level(sound, level_db)
        stop = start + num_samples
        events.append(Event(start / RATE, stop / RATE, SOUNDS[index].name, 1.0))
    scene *= min(1.0, PEAK / np.abs(scene).max())
    return Scene(scene.astype(np.float32), sorted(events, key=lambda event: event.onset))


def needle(seed: int, seconds: float, onset: float, noisy: bool) -> tuple[Scene, float]:
    """A sound of one second, in silence or in a rumble, at a known time.

    Returns:
        The scene, and the audible start of the sound: a clock's first tick comes up to 0.1 s after
        the start of its second.
    """
    rng = np.random.default_rng([seed, round(seconds), noisy])
    num_samples, start = round(seconds * RATE), round(onset * RATE)
    scene = rumble(rng, num_samples) if noisy else np.zeros(num_samples)
    index = seed % len(SOUNDS)
    sound = at_level(SOUNDS[index].synthesise(rng, RATE, RATE), -6.0)
    scene[start : start + RATE] += sound
    event = Event(start / RATE, start / RATE + 1.0, SOUNDS[index].name, 1.0)
    first = int(np.argmax(np.abs(sound) > HEARD * np.abs(sound).max()))
    return Scene(scene.astype(np.float32), [event]), (start + first) / RATE


def _one_after_the_other(
    rng: Generator, lengths: np.ndarray, classes: np.ndarray, seconds: float
) -> np.ndarray:
    """Onsets with random gaps of at least `LEAST_GAP_SECONDS` before, between and after sounds."""
    spare = seconds - lengths.sum() - LEAST_GAP_SECONDS * (len(lengths) + 1)
    gaps = LEAST_GAP_SECONDS + spare * rng.dirichlet(np.ones(len(lengths) + 1))[:-1]
    return np.cumsum(gaps) + np.cumsum(lengths) - lengths


def _anywhere(
    rng: Generator, lengths: np.ndarray, classes: np.ndarray, seconds: float
) -> np.ndarray:
    """Random onsets, but at least `LEAST_GAP_SECONDS` away from sounds of the same class."""
    onsets = np.zeros(len(lengths))
    for number, length in enumerate(lengths):
        same = np.flatnonzero(classes[:number] == classes[number])
        while True:
            onset = rng.uniform(0, seconds - length)
            before = onset + length + LEAST_GAP_SECONDS <= onsets[same]
            behind = onsets[same] + lengths[same] + LEAST_GAP_SECONDS <= onset
            if (before | behind).all():
                break
        onsets[number] = onset
    return onsets


__all__ = ["Scene", "make_scene", "needle", "rumble"]
