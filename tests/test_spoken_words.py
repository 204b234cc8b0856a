"""The spoken words: the files, and that the recipe trains a model on them from scratch."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, read_audio
from tests import spoken_words
from tests.conftest import ROOT
from tests.spoken_words import PROGRAM, RATE, TEST_VOICES, TRAIN_VOICES, WORDS, write_data_set

RECIPE = ROOT / "modeling_ast" / "training" / "recipes" / "spoken_words.yaml"
needs_espeak = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason=f"needs {PROGRAM}: apt-get install {PROGRAM}"
)


def write(folder, **options):
    return write_data_set(
        folder, takes=2, train_voices="m1 f2", test_voices="m2", progress=False, **options
    )


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.wav")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("words") / "data")


@needs_espeak
def test_one_folder_per_word_with_every_voice(folder):
    paths = {str(path) for path in contents(folder)}
    assert paths == {
        f"{split}/{word}/{voice}_{take}.wav"
        for split, voices in (("train", ("m1", "f2")), ("test", ("m2",)))
        for word in WORDS
        for voice in voices
        for take in (0, 1)
    }


@needs_espeak
def test_clips_are_one_second_and_not_silent(folder):
    """soundfile reads them, and the word is louder than the noise around it."""
    for path in folder.rglob("*.wav"):
        clip, rate = soundfile.read(path)
        assert (rate, clip.shape) == (RATE, (RATE,))
        assert 0.09 < np.abs(clip).max() <= 1
        loudness = np.sqrt((clip.reshape(50, -1) ** 2).mean(1))  # of 20 ms each
        assert loudness.max() > 5 * loudness.min()


@needs_espeak
def test_same_seed_same_bytes_whatever_else_is_made(folder, tmp_path):
    """Threads and other clips do not change a clip; another seed changes every clip."""
    first = contents(folder)
    fewer = write_data_set(
        tmp_path / "a", takes=1, train_voices="f2", test_voices="m2", progress=False
    )
    assert contents(fewer).items() <= first.items()
    other = contents(write(tmp_path / "b", seed=1))
    assert other.keys() == first.keys() and not other.items() & first.items()


@needs_espeak
def test_no_voice_of_the_test_sounds_in_the_training():
    """Also by their sound, because espeak-ng has some voices under two names."""
    train, test = (
        {spoken_words.speak("yes", voice, "en-us", 50, 175).tobytes(): voice for voice in voices}
        for voices in (TRAIN_VOICES.split(), TEST_VOICES.split())
    )
    assert len(train) == len(TRAIN_VOICES.split()) and len(test) == len(TEST_VOICES.split())
    assert not train.keys() & test.keys()
    assert not {*train.values()} & {*test.values()}


def test_a_long_word_is_cut_at_both_ends():
    speech = np.linspace(0.1, 1.0, 2 * RATE)
    clip = spoken_words.place(speech, np.random.default_rng(0))
    assert clip.shape == (RATE,)
    assert clip[0] / clip[-1] == pytest.approx(speech[RATE // 2] / speech[RATE * 3 // 2], rel=0.1)


@needs_espeak
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_voices": "m1 m2", "test_voices": "m2"}, "m2 is in train and in test"),
        ({"test_voices": "nobody"}, "espeak-ng has no voice nobody; update it"),
    ],
)
def test_wrong_voices_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_data_set(tmp_path / "data", progress=False, **options)


@needs_espeak
def test_a_full_folder_is_refused(folder):
    with pytest.raises(FileExistsError, match="is not empty; give a new folder"):
        write(folder)


def test_a_missing_program_is_one_line(tmp_path):
    script = [sys.executable, str(ROOT / "tests" / "spoken_words.py"), str(tmp_path / "data")]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    wanted = "error: espeak-ng is not installed; get it with: apt-get install espeak-ng"
    assert run.stderr.strip() == wanted


def commands():
    """The commands in the recipe's comments that run Python, as lists of arguments."""
    head = RECIPE.read_text().split("# Hardware:")[0].replace("# Command:", "#")
    script = "\n".join(line.removeprefix("#").strip() for line in head.splitlines())
    lines = re.split(r"\n(?=python |modeling-ast )", script)[1:]
    starts = {"python": [], "modeling-ast": ["-m", "modeling_ast"]}
    words = [shlex.split(line) for line in lines]
    return [[sys.executable, *starts[first], *rest] for first, *rest in words]


def test_the_recipe_says_what_to_run():
    kinds = [command[1] for command in commands()]
    assert kinds == ["tests/spoken_words.py", "-c", "-m"]
    assert commands()[2][2:4] == ["modeling_ast", "finetune"]


@pytest.mark.slow
@needs_espeak
def test_the_recipe_reaches_its_accuracy(tmp_path):
    """scikit-learn computes the accuracy on voices that were not trained on."""
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    todo = commands()
    assert len(todo) == 3
    for command in todo:
        assert subprocess.run(command, check=False, cwd=tmp_path).returncode == 0, command
    data, out = tmp_path / "data" / "spoken_words", tmp_path / "runs" / "spoken_words"
    model = ASTForAudioClassification.from_pretrained(out).eval()
    extractor = ASTFeatureExtractor.from_pretrained(out)
    truth, guesses = [], []
    for path in sorted((data / "test").rglob("*.wav")):
        inputs = extractor(read_audio(path), sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            best = model(**inputs).logits.argmax().item()
        truth.append(path.parent.name)
        guesses.append(model.config.id2label[best])
    assert len(truth) == len(WORDS) * len(TEST_VOICES.split()) * spoken_words.TAKES
    score = accuracy_score(truth, guesses)
    assert score >= 0.9
    metrics = json.loads((out / "metrics.json").read_text())
    # Single clips round differently from batches, which may decide a tie differently.
    assert metrics["eval_accuracy"] == pytest.approx(score, abs=0.003)
