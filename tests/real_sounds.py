"""Data sets of recorded sounds, made of Debian packages, split by drum kit or by speaker.

    python -m tests.real_sounds drums OUTPUT_DIR [--fold 0]
    python -m tests.real_sounds letters OUTPUT_DIR [--fold 0]
    python -m tests.real_sounds syllables OUTPUT_DIR [--fold 0]

    OUTPUT_DIR/train/LABEL/GROUP__NAME.flac
    OUTPUT_DIR/test/LABEL/GROUP__NAME.flac
    OUTPUT_DIR/clips.csv                       columns file, label, group, split

The packages are downloaded by apt-get and unpacked into a cache folder, which needs neither root
nor an installation. drums: five kinds of drum hits; the test has other kits, and fold 1 exchanges
them. letters: eight letters of the alphabet, said once by each of 18 speakers, in 12 languages that
have much the same names for them. syllables: a consonant and a vowel, which is the label, by
speakers of five languages. The test has other speakers. The folds of a kind together test every
kit or every speaker once.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import soundfile as sf

TABLE = "clips.csv"
PROGRAMS = ("apt-get", "dpkg-deb")


class Recording(NamedTuple):
    """A file of a package."""

    path: Path
    label: str
    group: str  # a drum kit or a speaker


def cache_folder() -> Path:
    """Where unpacked packages are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "modeling_ast" / "debian"


def unpacked(package: str) -> Path:
    """The root of a package's files; it is downloaded if the cache does not have it.

    Raises:
        OSError: There is no apt-get, or it cannot download the package (with its reason).
    """
    target = cache_folder() / package
    if target.is_dir():
        return target
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise FileNotFoundError(f"{missing[0]} is missing; Debian and Ubuntu have it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        _call(["apt-get", "download", package], work)
        (archive,) = Path(work).glob("*.deb")
        _call(["dpkg-deb", "-x", archive.name, "files"], work)
        # A package gets its name in the cache only when it is complete.
        os.rename(Path(work) / "files", target)
    return target


def _call(command: list[str], folder: str) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = " ".join(run.stderr.split())
        raise OSError(f"{' '.join(command)} failed: {reason}; try apt-get update first")


# Drum hits.

DRUM_PACKAGE = "hydrogen-drumkits"
DRUMS = "usr/share/hydrogen/data/drumkits"
# Kits of several kinds on both sides: acoustic ones of one and of many strengths, and electronic
# ones. Left out are the kits whose files have no names of drums.
DRUM_TRAIN_KITS = (
    "ForzeeStereo",
    "HardElectro1",
    "Millo_MultiLayered2",
    "Millo_MultiLayered3",
    "VariBreaks",
)
DRUM_TEST_KITS = (
    "Audiophob",
    "ColomboAcousticDrumkit",
    "ElectricEmpireKit",
    "Millo-Drums_v.1",
    "The Black Pearl 1.0",
)
# Words in a file's name -> label; a name with words of two labels has none. bd is a bass
# drum, sd and sr a snare, t1 and ft toms, hh and ho a hi-hat, cc and rc cymbals.
DRUM_NAMES = {
    "cymbal": r"crash|cra_|ride|cymbal|splash|china|^cc_|^rc_",
    "hihat": r"hat|hh_|^hh|^ho_",
    "kick": r"kick|bassdrum|^bd|_bd_|hse_k_",
    "snare": r"snare|^sd_|^sr_|_sn_",
    "tom": r"(?<!s)tom|^t[12]_|^ft_",
}


def drum_label(name: str) -> str | None:
    """The label that the name of a file gives, or None for claps, cowbells, sticks and effects."""
    found = [label for label, names in DRUM_NAMES.items() if re.search(names, name.lower())]
    return found[0] if len(found) == 1 else None


def drums() -> list[Recording]:
    """The drum hits of all kits in the package.

    Raises:
        OSError: See `unpacked`.
    """
    folder = unpacked(DRUM_PACKAGE) / DRUMS
    return [
        Recording(path, label, kit)
        for kit in (*DRUM_TRAIN_KITS, *DRUM_TEST_KITS)
        for path in sorted((folder / kit).iterdir())
        if path.suffix in (".flac", ".wav") and (label := drum_label(path.stem))
    ]


# Spoken letters and syllables.

KLETTRES_PACKAGE = "klettres-data"
KLETTRES = "usr/share/klettres"
# One speaker each. Danish is left out: there the letter is said seconds after the file's beginning.
KLETTRES_LANGUAGES = (
    "cs",
    "de",
    "en",
    "en_GB",
    "es",
    "fr",
    "hu",
    "it",
    "lt",
    "nb",
    "nds",
    "nl",
    "pt_BR",
)
ASTERISK = "usr/share/asterisk/sounds"
# Package, folder of its letters, speaker. The Spanish prompts are left out: they are Allison's too.
ASTERISK_LETTERS = (
    ("asterisk-core-sounds-en-wav", "en_US_f_Allison/letters", "Allison"),
    ("asterisk-core-sounds-fr-wav", "fr_CA_f_June/letters", "June"),
    ("asterisk-core-sounds-it-wav", "it_IT_m_Carlo/letters", "Carlo"),
    ("asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi/letters", "Menardi"),
    ("asterisk-prompt-fr-armelle", "fr/letters", "Armelle"),
)
LETTERS = "bflmnors"
VOWELS = "aeiou"
# Speakers with many syllables and with five similar vowels, by the fold that tests them.
SYLLABLE_SPEAKERS = (("es",), ("it", "cs"), ("pt_BR", "tn"))
FOLDS = 3


def klettres(language: str, part: str) -> dict[str, Path]:
    """Names, in lower case, and files of the "alphabet" or the "syllables" of a language.

    A table may name files that the package does not have; they are left out.

    Raises:
        OSError: See `unpacked`.
    """
    root = unpacked(KLETTRES_PACKAGE) / KLETTRES
    sounds = ElementTree.parse(root / language / "sounds.xml").iterfind(f".//{part}/sound")
    paths = {sound.attrib["name"].lower(): root / sound.attrib["file"] for sound in sounds}
    return {name: path for name, path in paths.items() if path.is_file()}


def letters() -> list[Recording]:
    """The letters of all speakers in the packages, at 8 or 44.1 kHz.

    Raises:
        OSError: See `unpacked`.
    """
    found = []
    for language in KLETTRES_LANGUAGES:
        paths = klettres(language, "alphabet")
        found += [Recording(paths[letter], letter, language) for letter in LETTERS]
    for package, place, speaker in ASTERISK_LETTERS:
        folder = unpacked(package) / ASTERISK / place
        paths = {path.stem: path for path in folder.iterdir()}
        found += [Recording(paths[letter], letter, speaker) for letter in LETTERS]
    return found


def syllables() -> list[Recording]:
    """Syllables of a consonant and a vowel; the vowel is the label.

    Raises:
        OSError: See `unpacked`.
    """
    return [
        Recording(path, name[1], language)
        for languages in SYLLABLE_SPEAKERS
        for language in languages
        for name, path in klettres(language, "syllables").items()
        if len(name) == 2 and name[0] not in VOWELS and name[1] in VOWELS
    ]


def held_out_groups(kind: str, fold: int) -> tuple[str, ...]:
    """The kits or the speakers of the test; for letters every third speaker.

    Raises:
        ValueError: There is no such fold.
    """
    folds = 2 if kind == "drums" else FOLDS
    if fold not in range(folds):
        raise ValueError(f"the fold is {fold}; give one from 0 to {folds - 1} for {kind}")
    if kind == "drums":
        return (DRUM_TEST_KITS, DRUM_TRAIN_KITS)[fold]
    if kind == "syllables":
        return SYLLABLE_SPEAKERS[fold]
    return (*KLETTRES_LANGUAGES, *(row[2] for row in ASTERISK_LETTERS))[fold::FOLDS]


# Data sets.

# All packages that are downloaded.
PACKAGES = (DRUM_PACKAGE, KLETTRES_PACKAGE, *(row[0] for row in ASTERISK_LETTERS))
KINDS: dict[str, Callable[[], list[Recording]]] = {
    "drums": drums,
    "letters": letters,
    "syllables": syllables,
}


def file_name(recording: Recording) -> str:
    """The group and the name in the package, without spaces and the like."""
    return re.sub(r"[^\w.-]", "-", f"{recording.group}__{recording.path.stem}") + ".flac"


def few(recordings: Sequence[Recording], examples: int, seed: int) -> list[Recording]:
    """A number of random clips of each label, from different groups as far as possible."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in sorted({recording.label for recording in recordings}):
        drawn = [r for r in recordings if r.label == label]
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        seen: dict[str, int] = {}
        rounds = []
        for recording in drawn:
            rounds.append(seen.setdefault(recording.group, 0))
            seen[recording.group] += 1
        order = np.argsort(rounds, kind="stable")[:examples]
        chosen += [drawn[i] for i in order]
    return chosen


def write_data_set(
    kind: str, folder: str | Path, fold: int = 0, examples: int | None = None, seed: int = 0
) -> Path:
    """Writes the data set; the same arguments write the same samples.

    Every file is FLAC of 16 bits, at the rate and with the channels and the silence that the
    recording has.

    Args:
        kind: "drums", "letters" or "syllables".
        folder: New or empty.
        fold: Which speakers are in the test, 0 to 2; which kits, 0 or 1.
        examples: Clips of each label to train on, drawn with `seed`; all by default.
    Returns:
        `folder`, with train/LABEL/*.flac, test/LABEL/*.flac and clips.csv.
    Raises:
        FileExistsError: `folder` is not empty.
        OSError: See `unpacked`.
        ValueError: An argument is out of its range.
    """
    folder = Path(folder)
    if kind not in KINDS:
        raise ValueError(f"there is no data set {kind!r}; give one of {', '.join(KINDS)}")
    if examples is not None and examples < 1:
        raise ValueError(f"the examples of each label are {examples}; give 1 or more")
    held_out = held_out_groups(kind, fold)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    recordings = KINDS[kind]()
    splits = {
        "train": [r for r in recordings if r.group not in held_out],
        "test": [r for r in recordings if r.group in held_out],
    }
    if examples is not None:
        splits["train"] = few(splits["train"], examples, seed)
    rows = [
        (f"{split}/{recording.label}/{file_name(recording)}", recording, split)
        for split, chosen in splits.items()
        for recording in chosen
    ]
    for name, recording, _ in rows:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples, rate = sf.read(recording.path)
        sf.write(path, samples.clip(-1, 1), rate, subtype="PCM_16")
    with open(folder / TABLE, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "label", "group", "split"])
        table.writerows((name, r.label, r.group, split) for name, r, split in rows)
    return folder


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Write a data set of recorded sounds, from Debian packages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--fold", type=int, default=0, metavar="N", help="0, 1, or 2 (drums: 0 or 1)"
    )
    parser.add_argument("--examples", type=int, metavar="N", help="of each label to train on")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="which examples")
    return parser.parse_args()


def main() -> None:
    """Writes the data set; an error that the user can correct is shown as one line."""
    arguments = parse_arguments()
    try:
        folder = write_data_set(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    counts = {split: len(list((folder / split).glob("*/*"))) for split in ("train", "test")}
    sys.stdout.write(f"{folder}: {counts['train']} clips in train, {counts['test']} in test\n")


if __name__ == "__main__":
    main()
