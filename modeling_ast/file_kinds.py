"""The kind of a file that is not audio, or that is audio which libsndfile cannot decode."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

# The first bytes of a file -> its kind, worded as the end of a sentence "it is ...".
UNKNOWN_TO_LIBSNDFILE = "which libsndfile cannot decode"
KINDS = [
    (rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", "an HTML page"),
    (rb"\s*<\?xml", "an XML file"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file it stands for"),
    (rb"\s*[{\[]\s*([\"{\[\]}]|$)", "a JSON file"),
    (rb"%PDF-", "a PDF file"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "an archive"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture"),
    (rb"\x00\x05\x16[\x00\x07]", "a file of a Mac's metadata (AppleDouble)"),
    (rb"\x1a\x45\xdf\xa3", f"Matroska or WebM, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", f"Windows Media (WMA), {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", f"AAC (ADTS), {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"ADIF", f"AAC (ADIF), {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"#!AMR", f"AMR, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"wvpk", f"WavPack, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"MAC ", f"Monkey's Audio, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"FLV\x01", f"Flash video, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"RIFF....AVI ", f"AVI, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"\x0b\x77", f"AC-3, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"DSD |FRM8", f"DSD, {UNKNOWN_TO_LIBSNDFILE}"),
    (rb"MThd", "MIDI, which holds notes and no sound"),
]
# The name of an MP4 file's codec -> its kind. The name stands near the file's beginning or end.
MP4_CODECS = [(b"alac", "ALAC"), (b"mp4a", "AAC"), (b"ac-3", "AC-3"), (b"Opus", "Opus")]
HEAD_BYTES, MP4_BYTES = 4096, 2**18


def kind_of_file(file: BinaryIO) -> str:
    """The kind of a file, as the end of a sentence "it is ..."; "" if it is unknown.

    Args:
        file: Opened in binary mode, after libsndfile has refused it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head[4:8] == b"ftyp":
        ends = head + file.read(MP4_BYTES)
        file.seek(max(0, size - MP4_BYTES))
        ends += file.read(MP4_BYTES)
        codec = next((f"{codec} in MP4" for mark, codec in MP4_CODECS if mark in ends), "MP4")
        return f"{codec}, {UNKNOWN_TO_LIBSNDFILE}"
    for pattern, kind in KINDS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return kind
    if not head.strip(b"\0"):
        return "a file of zeros" if size <= HEAD_BYTES else "a file that begins with zeros"
    return "a text file" if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last character may be cut in two.
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


__all__ = ["kind_of_file"]
