"""Written files are read back exactly, and also by other readers: csv, pyarrow."""

import csv
import json
import sys

import numpy as np
import pytest

from modeling_ast.errors import MissingExtra
from modeling_ast.event_files import (
    FORMATS,
    ScoreWriter,
    as_row,
    format_of,
    from_row,
    read_events,
    read_scores,
    write_events,
)
from modeling_ast.events import Detection, Event, ScoreBlock
from modeling_ast.recordings import BadStretch

ODD_LABELS = [
    "Siren",
    "Beep, bleep",
    'a "quoted" one',
    "tab\there",
    "two\nlines",
    "back\\slash \\t",
    "Straße 道",
    "ends with 0.5",
    " spaces  ",
    "=1+1",
    "carriage\rreturn",
    "line\u2028separator",
]
NAMES = ["a.wav", "folder/b, c.flac", 'q"uote.mp3', "tab\t.wav"]


def detections(num=3, seed=0):
    """Recordings with times on a grid, as a detector gives them, and scores of all sizes."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num):
        onsets = np.sort(rng.integers(0, 600_000, len(ODD_LABELS)))
        events = [
            Event(
                round(onset * 0.1, 6),
                round((onset + rng.integers(1, 50)) * 0.1, 6),
                label,
                round(float(rng.choice([rng.random(), 1.0, 1e-6, 0.5])), 6),
            )
            for onset, label in zip(onsets.tolist(), ODD_LABELS)
        ]
        made.append(Detection(NAMES[number], 60_005.0, events))
    return made


def name_of(kind):
    return {"audacity": "e.txt", "raven": "e.selections.txt"}.get(kind, f"e.{kind}")


# A file of Audacity has one recording.
KINDS = [(kind, num) for kind in FORMATS for num in (1, 4) if kind != "audacity" or num == 1]


@pytest.mark.parametrize(("kind", "num"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_is_read_back_exactly(kind, num, seed, tmp_path):
    given = detections(num, seed)
    path = tmp_path / name_of(kind)
    write_events(given, path)
    read = read_events(path)
    names = ["e"] if kind == "audacity" else [detection.name for detection in given]
    assert read == {name: detection.events for name, detection in zip(names, given)}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_events_at_all(kind, tmp_path):
    path = tmp_path / "e"
    write_events([Detection("a.wav", 3.0)], path, kind)
    assert not any(read_events(path, kind).values())


def test_the_csv_is_one_for_everybody(tmp_path):
    given = detections(2)
    write_events(given, tmp_path / "e.csv")
    with (tmp_path / "e.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "onset", "offset", "label", "score"]
    expected = [(d.name, *map(str, event)) for d in given for event in d.events]
    assert [tuple(row) for row in rows] == expected


def test_audacity_has_three_columns(tmp_path):
    events = [Event(0.3, 1.25, "Siren", 0.875), Event(2.0, 3.0, "Dog", 1.0)]
    write_events([Detection("a.wav", 4.0, events)], tmp_path / "e.txt")
    assert (tmp_path / "e.txt").read_text() == "0.3\t1.25\tSiren 0.875000\n2.0\t3.0\tDog 1.000000\n"
    # Audacity writes a label with frequencies in this way.
    text = "0.300000\t1.250000\tSiren 0.875000\n\\\t100.000000\t200.000000\n"
    (tmp_path / "e.txt").write_text(text)
    assert read_events(tmp_path / "e.txt") == {"e": events[:1]}
    with pytest.raises(ValueError, match="do not say which recording"):
        write_events(detections(2), tmp_path / "two.txt", "audacity")
    assert not (tmp_path / "two.txt").exists()


def test_ravens_times_count_from_the_first_recording(tmp_path):
    given = [
        Detection("a.wav", 10.0, [Event(1.0, 2.0, "Siren", 0.5)]),
        Detection("none.wav", 5.5),
        Detection("b.wav", 10.0, [Event(0.25, 2.0, "Dog", 0.75)]),
    ]
    write_events(given, tmp_path / "e.selections.txt", highest_hz=16_000.0)
    with (tmp_path / "e.selections.txt").open(newline="") as file:
        first, second = csv.DictReader(file, delimiter="\t")
    assert first["Selection"] == "1" and second["Selection"] == "2"
    assert (second["Begin Time (s)"], second["End Time (s)"]) == ("15.75", "17.5")
    assert second["File Offset (s)"] == "0.25" and second["Begin File"] == "b.wav"
    assert second["Low Freq (Hz)"] == "0.0" and second["High Freq (Hz)"] == "16000.0"


def test_json_is_strict_and_has_all(tmp_path):
    stretches = [BadStretch(1.0, 2.0, "NaN or infinity"), BadStretch(3.0, None, "damaged")]
    given = [Detection("a.wav", 4.0, [], stretches), Detection("b.wav", error="no audio")]
    write_events(given, tmp_path / "e.json")

    def refuse(name):
        raise AssertionError(name)

    rows = json.loads((tmp_path / "e.json").read_text(), parse_constant=refuse)["recordings"]
    assert [from_row(row) for row in rows] == given == [from_row(as_row(d)) for d in given]
    assert rows[0]["bad_stretches"][1] == {"onset": 3.0, "offset": None, "reason": "damaged"}


@pytest.mark.parametrize("kind", ["csv", "audacity", "raven", "parquet"])
def test_a_label_with_half_of_a_character_is_escaped(tmp_path, kind):
    path = tmp_path / name_of(kind)
    write_events([Detection("a.wav", 4.0, [Event(0.0, 1.0, "\ud800half", 0.5)])], path)
    (events,) = read_events(path).values()
    assert events == [Event(0.0, 1.0, r"\ud800half", 0.5)]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_table_of_scores_escapes_such_a_label(tmp_path):
    writer = ScoreWriter(tmp_path / "a.tsv", ["\ud800half", "b"], 0.1)
    writer.add(ScoreBlock(0, np.zeros((1, 2), np.float32)))
    writer.close()
    assert read_scores(tmp_path / "a.tsv")[0] == [r"\ud800half", "b"]


def test_names_and_labels_that_are_no_unicode(tmp_path):
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    given = [Detection(name, 4.0, [Event(0.0, 1.0, "Dog \udc80", 0.5)])]
    for kind in ("csv", "raven", "json"):
        write_events(given, tmp_path / "e", kind)
        assert list(read_events(tmp_path / "e", kind)) == [name]
    write_events(given, tmp_path / "e.parquet")
    assert read_events(tmp_path / "e.parquet") == {
        "caf�.wav": [Event(0.0, 1.0, r"Dog \udc80", 0.5)]
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("e.csv", "csv"),
        ("E.CSV", "csv"),
        ("e.txt", "audacity"),
        ("a.Table.1.selections.txt", "raven"),
        ("e.json", "json"),
        ("e.parquet", "parquet"),
    ],
)
def test_the_suffix_says_the_format(name, kind):
    assert format_of(name) == kind


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the name 'e.xml' does not say the format"):
        write_events([], "e.xml")
    with pytest.raises(ValueError, match="format is 'xml'; it must be one of csv, audacity"):
        write_events([], tmp_path / "e.csv", "xml")
    for kind in FORMATS:
        (tmp_path / "other").write_text("name;value\n1;2\n")
        with pytest.raises((ValueError, OSError), match=r"does not hold events|other"):
            read_events(tmp_path / "other", kind)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"writing \.parquet needs pyarrow"):
        write_events([], tmp_path / "e.parquet")


def test_a_file_that_is_there_stays_whole_if_writing_fails(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("mine")

    def broken():
        yield detections(1)[0]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_events(broken(), path)
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_scores_are_read_back_exactly(tmp_path):
    scores = np.random.default_rng(0).random((50, len(ODD_LABELS))).astype(np.float32)
    writer = ScoreWriter(tmp_path / "a.tsv", ODD_LABELS, 0.1)
    for first, stop in ((0, 7), (7, 7), (7, 50)):
        writer.add(ScoreBlock(first, scores[first:stop]))
    writer.close()
    labels, times, read = read_scores(tmp_path / "a.tsv")
    assert labels == ODD_LABELS
    np.testing.assert_allclose(times, np.arange(51) * 0.1, atol=1e-9)
    np.testing.assert_array_equal(read, scores)
