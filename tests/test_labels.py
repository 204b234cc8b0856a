"""labels: label files of AudioSet, spreadsheets and people, and all mistakes in them."""

import csv
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_ast import ASTConfig
from modeling_ast.labels import Label, activation, distinct_names, printable, read_label_file

GOOD = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
SPEECH = [Label("/m/09x0r", "Speech"), Label("/m/05zppz", "Male speech, man speaking")]


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "index,mid,display_name\n" + "\n".join(GOOD.splitlines()[:0:-1]) + "\n",
        GOOD.replace("index,mid,display_name", " index , mid, display_name "),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_good_files(tmp_path, text, encoding):
    assert read_label_file(write(tmp_path, text, encoding)) == SPEECH
    assert read_label_file(str(tmp_path / "labels.csv")) == SPEECH


@pytest.mark.parametrize(
    ("text", "mids"),
    [
        ("\ufeffindex,mid,display_name\n0,car,car\n1,bus,bus\n", ["car", "bus"]),
        ("index;mid;display_name\n0;car;car\n1;bus;bus\n", ["car", "bus"]),
        ("index\tmid\tdisplay_name\n0\t/m/1\tcar\n1\t/m/2\tbus\n", ["/m/1", "/m/2"]),
        # Without identifiers, the names are used.
        ("index,display_name\n0,car\n1,bus\n", ["car", "bus"]),
        ("index,mid,display_name\n0,,car\n1,/m/2,bus\n", ["car", "/m/2"]),
        # Without a header: FSD50K's vocabulary, AudioSet's list, and a list of two columns.
        ("0,car,/m/1\n1,bus,/m/2\n", ["/m/1", "/m/2"]),
        ("0,/m/1,car\n1,/m/2,bus\n", ["/m/1", "/m/2"]),
        ("1\tbus\r\n0\tcar\r\n", ["car", "bus"]),
    ],
    ids=[
        *("byte order mark", "semicolons", "tabs", "two columns", "an empty mid"),
        *("vocabulary", "AudioSet's without header", "two columns without header"),
    ],
)
def test_other_forms(tmp_path, text, mids):
    assert read_label_file(write(tmp_path, text)) == [
        Label(mids[0], "car"),
        Label(mids[1], "bus"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("1,", "0,"), "has the index 0 twice"),
        (GOOD.replace("index", "id"), "has the header id,mid,display_name but must have index,mid"),
        ("Speech\nMusic\n", "has the header Speech but must have"),
        (GOOD.replace("0,", "2,"), "counts its 2 labels from 1; number them from 0"),
        (GOOD.replace("Male speech, man speaking", "Speech"), "has the name 'Speech' 2 times"),
        (GOOD.replace("05zppz", "09x0r"), "has the mid '/m/09x0r' 2 times; give each label"),
        (
            GOOD.replace('speaking"', "speaking"),
            "cannot be read as a table .line 3: unexpected end",
        ),
        (GOOD.replace('"', ""), "has 4 cells in line 3 but 3 in its header; put quotes"),
        ("index,index\n0,car\n", "has two columns of the name 'index'"),
        ("", r"has the header \(none\) but must have"),
        (GOOD.replace("1,", "2,"), "has 2 labels but no index 1; number them"),
        ("index,mid,display_name\n", "has 0 labels but no index 0"),
        (GOOD.replace("1,", "one,"), "has the index 'one' with the name 'Male speech, man"),
        (GOOD.replace("1,", "\u00b2,"), "has the index '\u00b2' with the name 'Male speech, man"),
        (GOOD + "2,/m/x\n", "has the index '2' with the name ''"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_label_file(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the label file .*No such file.*; give"):
        read_label_file(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot read the label file .*decode.*save it as UTF-8"):
        read_label_file(tmp_path / "picture.csv")
    with pytest.raises(ValueError, match=r"line 2, which would be '0,café' in the encoding cp1252"):
        read_label_file(write(tmp_path, "index,display_name\n0,café\n", "cp1252"))


@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).map(
            lambda name: " ".join(name.split()) or "x"
        ),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_list_that_pythons_csv_writes_is_read(tmp_path_factory, names, delimiter, encoding):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerow(["index", "display_name"])
        writer.writerows(reversed(list(enumerate(names))))
    assert [label.name for label in read_label_file(path)] == names


@given(
    content=st.binary(max_size=200)
    | st.text(alphabet='0123,;"\n\t ab#index', max_size=60).map(str.encode)
)
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_bytes(content)
    try:
        labels = read_label_file(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert labels and all(isinstance(label, Label) for label in labels)


@pytest.mark.parametrize(
    ("choice", "problem", "name"),
    [
        ("auto", None, "sigmoid"),
        ("auto", "single_label_classification", "softmax"),
        ("auto", "multi_label_classification", "sigmoid"),
        ("softmax", "multi_label_classification", "softmax"),
    ],
)
def test_kind_of_scores(choice, problem, name):
    config = ASTConfig(num_labels=527, problem_type=problem)
    assert activation(choice, config) == name
    assert activation("auto", ASTConfig(num_labels=35)) == "softmax"


def test_another_kind_of_scores_is_refused():
    with pytest.raises(ValueError, match="scores is 'tanh'; it must be one of auto, sigmoid"):
        activation("tanh", ASTConfig())


def test_names_that_are_there_twice_get_their_index():
    assert distinct_names({0: "a", 1: "b"}) == ["a", "b"]
    names = distinct_names({0: "dog", 1: "cat", 2: "dog", 3: "dog [0]", 4: "dog"})
    assert names == ["dog [0] [0]", "cat", "dog [2]", "dog [0]", "dog [4]"]


@pytest.mark.parametrize("kind", ["Cc", "Cs", "Zl", "Zp"])
def test_no_control_character_and_no_half_character_is_shown(kind):
    """The judge is unicodedata, which says which characters these are."""
    for number in range(sys.maxunicode + 1):
        if unicodedata.category(chr(number)) == kind:
            assert printable(chr(number)).isascii() and printable(chr(number)).isprintable()


MARKS = ("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_no_mark_of_direction_is_shown_and_letters_stay():
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.bidirectional(character) in MARKS:
            assert printable(character).isascii()
    for text in ("Übung, 犬, कुत्ता, كلب, 👩\u200d🚒", "R&B $x$ <b>"):
        assert printable(text) == text
    assert printable("a\n\x1b[2J\u202eb\udc80") == r"a\n\x1b[2J\u202eb\udc80".replace("\n", r"\n")
