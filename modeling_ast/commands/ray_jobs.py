"""The jobs of `--engine ray` for tag and detect: their stages, and the settings of their rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..events import EventDetector
from ..tag_files import EARLIER
from ..tag_rows import SETTINGS
from ..tag_rows import settings_of as tag_settings
from .model_flags import load_tagger

if TYPE_CHECKING:
    from ..corpus import Job, Resources


def tag_job(options: argparse.Namespace, resources: Resources) -> Job:
    """The rows of `tag`.

    Raises:
        OSError, ValueError: The model cannot be loaded.
    """
    from ..corpus import Job, tag_dataset

    tagger = load_tagger(options, num_workers=0)
    stages = partial(
        tag_dataset,
        model=tagger,
        embeddings=options.embeddings,
        resources=resources,
        name=options.model,
        batch_frames=options.batch_frames,
    )
    settings = tag_settings(tagger, options.embeddings)
    return Job(stages, options.model, settings, SETTINGS, EARLIER)


def detect_job(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], EventDetector],
    settings_of: Callable[[EventDetector, argparse.Namespace], Mapping[str, Any]],
    flags: Mapping[str, str],
    resources: Resources,
) -> Job:
    """The rows of `detect`, in Parquet.

    Args:
        load: Makes the detector that the flags describe.
        settings_of: Returns the settings that decide the events of a row.
        flags: The flag that sets each of them.
    Raises:
        OSError, ValueError, RuntimeError: The model cannot be loaded, or a number is impossible.
    """
    from ..corpus import Job, detect_dataset

    detector = load(options)
    settings = settings_of(detector, options)

    stages = partial(
        detect_dataset,
        detector=detector,
        settings={"model": options.model, **settings},
        resources=resources,
        batch_frames=options.batch_frames,
    )
    return Job(stages, options.model, settings, flags)


__all__ = ["detect_job", "tag_job"]
