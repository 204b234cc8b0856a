"""A fingerprint of a local checkpoint's weights, so that a run notices that they were replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Of a model in one or several files, and of an adapter.
PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def weights_fingerprint(model: str) -> str | None:
    """The first digits of a hash of all files with weights in a folder.

    Args:
        model: A directory, or a name of the Hub.
    Returns:
        Hexadecimal digits; None for a name of the Hub and for a folder without weights.
    Raises:
        OSError: A file cannot be read.
    """
    files = sorted({file for pattern in PATTERNS for file in Path(model).glob(pattern)})
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


__all__ = ["weights_fingerprint"]
