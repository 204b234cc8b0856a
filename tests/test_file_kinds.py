"""file_kinds: a reason says what a file is. Judge: the first bytes of each format."""

import io
import zipfile

import pytest

from modeling_ast.audio import read_audio
from modeling_ast.file_kinds import kind_of_file


def zip_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.wav"), "x")  # without the time, which would change
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"<!-- cached --><HTML lang='en'>", "an HTML page"),
        (b'<?xml version="1.0"?><Error/>', "an XML file"),
        (b'{"message": "Not Found"}', "a JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"%PDF-1.7\n", "a PDF file"),
        (zip_archive(), "a ZIP archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (
            b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(99) + b"mp4a",
            "AAC in MP4, which libsndfile",
        ),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(10**6) + b"alac", "ALAC in MP4, which libsndfile"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "MP4, which libsndfile cannot decode"),
        (b"\xff\xf1\x50\x80", "AAC .ADTS., which libsndfile cannot decode"),
        (b"\x1a\x45\xdf\xa3webm", "Matroska or WebM, which libsndfile cannot decode"),
        (
            b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
            "Windows Media .WMA., which libsndfile",
        ),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "a file of a Mac's metadata"),
        (bytes(100), "a file of zeros"),
        ("Grüße, no audio".encode(), "a text file"),
        (b"abc" * 1365 + "ü".encode(), "a text file"),  # cut in the middle of a character
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_audio_is_named(content, kind):
    with pytest.raises(ValueError, match=rf"cannot be decoded as audio \(.*: it is {kind}"):
        read_audio(content)


def test_what_nobody_knows_is_not_named():
    assert kind_of_file(io.BytesIO(b"\x93\x01\x02\xfe" * 9)) == ""
