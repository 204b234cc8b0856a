"""The stages of a corpus on Ray Data: decoding in tasks, the model in actors, each with its own
resources. Ray limits how much data waits between them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from torch import nn

from ..errors import one_line
from ..event_files import as_row
from ..events import EventDetector
from ..tag_rows import NO_EMBEDDINGS, settings_of, tag_row, tag_schema, tag_table
from ..tagging import AudioTagger, ClipTags
from .decoding import Decoder, check_survives, clips_of
from .event_rows import event_schema, event_table
from .reading import AUDIO, KEY

# Clips that an actor takes at once. A GPU needs several batches of them; on a CPU they are few, so
# that little work is lost when a machine dies.
GPU_CLIPS, CPU_CLIPS = 256, 32
# The share of the CPUs that models may take: the rest decode, write, and replace a lost machine.
# One CPU is kept for writing: if decoding took all, shards would only be written at the end.
SHARE_OF_MODELS, CPUS_FOR_WRITING = 0.75, 1
# How many recordings an actor guards itself against after it was started again. Ray gives it those
# first that it had before; they are few.
GUARDED = 16


@dataclass(frozen=True)
class Resources:
    """The part of a cluster that the models take.

    Args:
        device: "cpu", or "cuda", which gives each model a GPU of its own (or the share `gpus`).
        models: Number of models.
        cpus: CPUs of each model; it has as many threads.
        gpus: GPUs of each model; less than 1 if several share one.
        decoders: Number of tasks that decode at the same time.
    """

    device: str
    models: int
    cpus: float = 1
    gpus: float = 0
    decoders: int = 1

    @classmethod
    def of_cluster(
        cls, device: str | None = None, models: int | None = None, cpus: int | None = None
    ) -> Resources:
        """A model for each GPU of the cluster that Ray is connected to. If there is no GPU, or the
        device is "cpu", models of `cpus` CPUs each, on three quarters of the CPUs.

        Raises:
            ValueError: There is no such device, or there are too few CPUs or GPUs.
        """
        total = ray.cluster_resources()
        total_cpus, total_gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
        device, each = device or ("cuda" if total_gpus else "cpu"), cpus or 1
        if device not in ("cpu", "cuda"):
            raise ValueError(f"the device is {device!r}; on a cluster give cuda or cpu")
        free = total_cpus - CPUS_FOR_WRITING
        if device == "cuda":
            models = models or total_gpus
            if not 1 <= models <= total_gpus:
                raise ValueError(
                    f"{models} models need a GPU each but the cluster has {total_gpus}; give fewer "
                    f"--models, or --device cpu"
                )
        else:
            models = models or max(1, min(int(SHARE_OF_MODELS * total_cpus), free - 1) // each)
        decoders = free - models * each
        if decoders < 1:
            raise ValueError(
                f"{models} models of {each} CPUs leave less than two of the cluster's {total_cpus} "
                f"CPUs to decode and to write; give fewer --models or --cpus-per-model"
            )
        return cls(device, models, each, 1 if device == "cuda" else 0, decoders)


def tag_dataset(
    dataset: Dataset,
    model: str | AudioTagger,
    *,
    key: str = KEY,
    audio: str = AUDIO,
    embeddings: str = NO_EMBEDDINGS,
    resources: Resources | None = None,
    name: str | None = None,
    batch_frames: int | None = None,
) -> Dataset:
    """Tags the clips of a Ray data set; nothing runs before the rows of the result are requested.

    Tasks decode and actors have the model. This process sends the model to the actors, so that the
    other machines need neither its folder nor the Hub.

    Args:
        dataset: With a column of keys, and one of audio: bytes, paths, addresses of fsspec,
            {"bytes", "path"} as in `datasets`, or {"array", "sampling_rate"}.
        model: A name on the Hub, a directory, or a tagger, whose settings are then used.
        key, audio: Names of the two columns.
        embeddings: "none", "pooled" or "windows", as in `tag_rows.tag_row`.
        resources: The part of the cluster that the models take; by default all GPUs, or most CPUs.
        name: The model's name in the rows; by default `model`.
        batch_frames: As in `AudioTagger`, on the machines of the models.
    Returns:
        The rows of `modeling-ast tag`, with the columns of `tag_rows.tag_schema`, in any order.
    Raises:
        OSError, ValueError: As `AudioTagger.from_pretrained` and `Resources.of_cluster`.
    """
    tagger = model
    if not isinstance(tagger, AudioTagger):
        tagger = AudioTagger.from_pretrained(tagger, "cpu")
    resources = resources or Resources.of_cluster()
    if tagger.dtype_name == "int8" and resources.device != "cpu":
        raise ValueError("8-bit integers are for a CPU; give Resources.of_cluster('cpu')")
    extractor = tagger.extractor
    decoder = Decoder(extractor.sampling_rate, extractor.window_samples, key, audio)
    decoded = dataset.map_batches(
        decoder.__call__,
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(resources.decoders),
    )
    row = {
        "model": name or getattr(tagger.model, "name_or_path", "") or str(model),
        **settings_of(tagger, embeddings),
    }
    where = {"resources": resources, "batch_frames": batch_frames}
    return _with_model(decoded, TagActor, tagger, where, row=row)


def detect_dataset(
    dataset: Dataset,
    detector: EventDetector,
    *,
    settings: dict[str, Any],
    key: str = KEY,
    audio: str = AUDIO,
    resources: Resources | None = None,
    batch_frames: int | None = None,
) -> Dataset:
    """Finds the events of the recordings of a Ray data set; one actor does a whole recording.

    A recording may last a day. Therefore the actor decodes it block by block, not another stage.

    Args:
        dataset, key, audio, resources, batch_frames: As in `tag_dataset`.
        detector: Its rules are used by all actors.
        settings: What each row states besides the events: the model's name and the rules.
    Returns:
        Rows with the columns of `event_rows.event_schema`, in any order.
    """
    resources = resources or Resources.of_cluster()
    where = {"resources": resources, "batch_frames": batch_frames}
    return _with_model(dataset, DetectActor, detector, where, key=key, audio=audio, row=settings)


def _with_model(
    dataset: Dataset, actor: type, model: Any, where: Mapping[str, Any], **arguments: Any
) -> Dataset:
    resources: Resources = where["resources"]
    clips = GPU_CLIPS if resources.gpus else CPU_CLIPS
    return dataset.map_batches(
        actor,
        # In a list, because Ray would replace a bare reference by the model itself.
        fn_constructor_args=([ray.put(model)], where),
        fn_constructor_kwargs=arguments,
        batch_size=clips if actor is TagActor else 1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=resources.models),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )


class TagActor:
    """A model in a process of its own: decoded clips -> rows."""

    def __init__(self, tagger: list[Any], where: dict[str, Any], row: dict[str, str]):
        self.row = row
        self.tagger = _on_device(ray.get(tagger[0]), **where)
        self.tagger.embeddings = row["embeddings"] != NO_EMBEDDINGS
        self.schema = tag_schema(row["embeddings"])
        self.guard = Guard()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """The rows of some clips."""
        # The waveforms are not copied: numpy reads them from Ray's memory.
        waveforms = decoded.column("waveform")
        rows = decoded.drop_columns("waveform").to_pylist()
        for row, waveform in zip(rows, waveforms):
            row["waveform"] = waveform.as_buffer()
        for row in rows:
            if row["waveform"] is None and row["error"] is None:
                row["error"] = self.guard.reason_against(_clip(row))
        good = [row for row in rows if row["error"] is None]
        tags = iter(self.tagger(map(_clip, good)))
        results = [
            ClipTags(row[KEY], error=row["error"]) if row["error"] is not None else next(tags)
            for row in rows
        ]
        named = (
            {**tag_row(row[KEY], result, self.row["embeddings"]), **self.row}
            for row, result in zip(rows, results)
        )
        return tag_table(named, self.schema)


def _clip(row: dict[str, Any]) -> Any:
    """A decoded row in a form that `AudioTagger` takes."""
    name = os.fsdecode(row["name"])
    if row["waveform"] is not None:
        return {"array": np.frombuffer(row["waveform"], np.float32), "path": name}
    if row["content"] is not None:
        return {"bytes": row["content"], "path": name}
    return os.fsdecode(row["path"])


class DetectActor:
    """A detector in a process of its own: recordings -> rows."""

    def __init__(
        self,
        detector: list[Any],
        where: dict[str, Any],
        key: str,
        audio: str,
        row: dict[str, Any],
    ):
        self.key, self.audio, self.row = key, audio, row
        self.detector: EventDetector = ray.get(detector[0])
        self.detector.tagger = _on_device(self.detector.tagger, **where)
        self.schema = event_schema(row)
        self.guard = Guard()

    def __call__(self, recordings: pa.Table) -> Iterator[pa.Table]:
        """The rows of some recordings."""
        keys = recordings.column(self.key).to_pylist()
        for key, clip in zip(keys, clips_of(recordings, self.audio)):
            found: dict[str, Any]
            is_bad = isinstance(clip, Exception)
            reason = str(clip) if is_bad else self.guard.reason_against(clip)
            if reason is not None:
                found = {"seconds": None, "events": [], "bad_stretches": [], "error": reason}
            else:
                (detection,) = self.detector.detect([clip])
                found = as_row(detection)
            yield event_table([{**found, "file": str(key), **self.row}], self.schema)


class Guard:
    """Keeps a recording that crashes its decoder from killing an actor again and again.

    An actor that decodes a recording dies with its decoder. Ray starts the actor again, and gives
    it the same recording. Therefore an actor that was started again first decodes some recordings
    in another process. The others are not decoded twice, because that takes time.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context() if ray.is_initialized() else None
        is_again = context is not None and context.was_current_actor_reconstructed
        self.num_left = GUARDED if is_again else 0

    def reason_against(self, clip: Any) -> str | None:
        """Why a recording must not be decoded here; None if it may be."""
        if self.num_left == 0:
            return None
        self.num_left -= 1
        try:
            check_survives(clip)
        except (OSError, ValueError, TypeError) as error:
            return one_line(error)
        return None


def _on_device(tagger: AudioTagger, resources: Resources, batch_frames: int | None) -> AudioTagger:
    """The same tagger with its model on the device of this actor."""
    torch.set_num_threads(max(1, int(resources.cpus)))
    # transformers wraps `to` without its types.
    module: nn.Module = tagger.model
    module.to(resources.device)
    moved = AudioTagger(
        tagger.model,
        tagger.extractor,
        batch_frames,
        num_workers=0,
        top_k=tagger.top_k,
        scores=tagger.activation,
        padding=tagger.padding,
        calibration=tagger.calibration,
        embeddings=tagger.embeddings,
    )
    moved.hint_at_padding = False
    return moved


__all__ = ["DetectActor", "Resources", "TagActor", "detect_dataset", "tag_dataset"]
