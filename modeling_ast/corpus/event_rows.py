"""Rows of events in Parquet: a recording with its events, and the settings that found them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ..labels import escaped_unicode, valid_unicode

FIELDS = frozenset({"file", "seconds", "events", "bad_stretches", "error", "model"})


def event_schema(settings: Mapping[str, Any]) -> pa.Schema:
    """The columns.

    Args:
        settings: The model's name and the rules, which become columns; numbers stay numbers.
    """
    event = pa.struct(
        [
            ("onset", pa.float64()),
            ("offset", pa.float64()),
            ("label", pa.string()),
            ("score", pa.float64()),
        ]
    )
    stretch = pa.struct(
        [("onset", pa.float64()), ("offset", pa.float64()), ("reason", pa.string())]
    )
    columns = [
        ("file", pa.string()),
        ("seconds", pa.float64()),
        ("events", pa.list_(event)),
        ("bad_stretches", pa.list_(stretch)),
        ("error", pa.string()),
    ]
    for name, value in settings.items():
        columns.append((name, pa.float64() if isinstance(value, int | float) else pa.string()))
    return pa.schema(columns)


def event_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows of `event_files.as_row` with their settings, as a table."""
    return pa.Table.from_pylist(list(map(_valid, rows)), schema)


def _valid(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with valid Unicode, which Parquet needs, and a dict of thresholds as JSON."""
    valid = dict(row)
    for name in ("file", "error"):
        valid[name] = valid_unicode(row[name])
    valid["events"] = [
        event | {"label": escaped_unicode(event["label"])} for event in row["events"]
    ]
    valid["bad_stretches"] = [
        stretch | {"reason": valid_unicode(stretch["reason"])} for stretch in row["bad_stretches"]
    ]
    for name in row.keys() - FIELDS:
        if isinstance(row[name], dict):
            valid[name] = json.dumps(row[name])
    return valid


__all__ = ["event_schema", "event_table"]
