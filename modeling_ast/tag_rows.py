"""Rows of tags, as JSON and as Parquet, in the same form for one machine and for many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .calibration import SAME_CALIBRATION, fingerprint_of
from .labels import escaped_unicode, valid_unicode
from .tagging import AudioTagger, ClipTags

if TYPE_CHECKING:
    import pyarrow as pa

ROW_FIELDS = {"file", "seconds", "labels", "error", "model"}
# The settings that decide the content of a row besides the model, and the flag that sets each.
SETTINGS = {
    "padding": "--padding {}",
    "scores": "--scores {}",
    "dtype": "the same --dtype ({})",
    "calibration": SAME_CALIBRATION,
    "embeddings": "the same --embeddings ({})",
}
NO_EMBEDDINGS = "none"
# The vectors of a row: none, one of the whole clip, or one for each part of it.
POOLED, WINDOWS = "pooled", "windows"
VECTOR_COLUMNS = {POOLED: "embedding", WINDOWS: "window_embeddings"}


def tag_row(name: str, tags: ClipTags, embeddings: str = NO_EMBEDDINGS) -> dict[str, Any]:
    """One result as a row of JSON, without the model and the settings.

    Args:
        name: Of the file, as the row will state it.
        embeddings: "none"; "pooled" adds `embedding`, the mean of the vectors of the clip's parts;
            "windows" adds `window_embeddings`, one vector for each part.
    """
    labels = [{"label": label, "score": score} for label, score in tags.labels.items()]
    row: dict[str, Any] = {"file": name, "seconds": tags.seconds, "labels": labels}
    row["error"] = tags.error
    if tags.detected is not None:
        row["detected"] = tags.detected
    if embeddings != NO_EMBEDDINGS:
        vectors = tags.embedding if embeddings == POOLED else tags.embeddings
        row[VECTOR_COLUMNS[embeddings]] = None if vectors is None else vectors.tolist()
    return row


def settings_of(tagger: AudioTagger, embeddings: str = NO_EMBEDDINGS) -> dict[str, str]:
    """The settings that decide the rows of a tagger, by the names of `SETTINGS`."""
    return {
        "padding": tagger.padding,
        "scores": tagger.activation,
        "dtype": tagger.dtype_name,
        "calibration": fingerprint_of(tagger.calibration),
        "embeddings": embeddings,
    }


def tag_schema(embeddings: str = NO_EMBEDDINGS) -> pa.Schema:
    """The columns of Parquet.

    Args:
        embeddings: As in `tag_row`.
    """
    import pyarrow as pa

    label = pa.struct([("label", pa.string()), ("score", pa.float32())])
    columns = [
        ("file", pa.string()),
        ("seconds", pa.float64()),
        ("labels", pa.list_(label)),
        ("error", pa.string()),
        ("model", pa.string()),
        *((name, pa.string()) for name in SETTINGS),
        ("detected", pa.list_(pa.string())),
    ]
    if embeddings != NO_EMBEDDINGS:
        # Lists without a fixed size: pyarrow before 26 cannot read those if a row has no list.
        vector = pa.list_(pa.float32())
        kind = vector if embeddings == POOLED else pa.list_(vector)
        columns.append((VECTOR_COLUMNS[embeddings], kind))
    return pa.schema(columns)


def tag_table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of `tag_row`, with model and settings, as a table."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(map(_valid, rows)), schema)


def _valid(row: dict[str, Any]) -> dict[str, Any]:
    """The row with valid Unicode, which Parquet needs: other characters of labels are escaped."""
    labels = [entry | {"label": escaped_unicode(entry["label"])} for entry in row["labels"]]
    texts = {name: valid_unicode(row[name]) for name in ("file", "error")}
    return {**row, **texts, "labels": labels}


__all__ = [
    "NO_EMBEDDINGS",
    "POOLED",
    "ROW_FIELDS",
    "SETTINGS",
    "VECTOR_COLUMNS",
    "WINDOWS",
    "settings_of",
    "tag_row",
    "tag_schema",
    "tag_table",
]
