"""Recipes and flags of a fine-tuning, as `modeling-ast finetune` reads them."""

import os
from dataclasses import fields, replace

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.commands.finetune import USUAL, parse_arguments
from modeling_ast.training.arguments import (
    KINDS,
    ModelArguments,
    SamplingArguments,
    loading_workers,
)
from modeling_ast.training.building import load_model, published_parts
from modeling_ast.training.optimizer import SCHEDULES
from modeling_ast.training.recipe_files import find_recipe, read_recipe, recipe_names
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "modeling_ast" / "training" / "recipes").glob("*.yaml"))
PATHS = ["--model", "m", "--data", "d", "--output_dir", "o"]


def parse(*words):
    """The arguments that the words set; bfloat16 is allowed on a machine without a GPU."""
    return parse_arguments([*map(str, words), "--use_cpu"])[0]


def usage_error(capsys, *words):
    """The error of wrong usage, with status 2: a short usage line, then the message."""
    with pytest.raises(SystemExit) as end:
        parse(*words)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and len(printed.err.splitlines()) == 3
    line = printed.err.splitlines()[-1]
    assert line.startswith("modeling-ast finetune: error: ")
    return line


def test_a_recipe_is_read_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-3\nnum_train_epochs: 7\nmax_roll: 4\noutput_dir: here\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}\npatch_size: [32, 2]\nfrom_scratch: true\n"
        "bf16: false\nmean: -6.5\ndata_config: null\n"
    )
    words = ["--recipe", recipe, "--model", "m", "--data", "d", "--num_train_epochs", 2]
    arguments = parse(*words)
    augmentation, training, model = arguments.augmentation, arguments.training, arguments.model
    assert (training.learning_rate, training.num_train_epochs) == (1e-3, 2)
    assert augmentation.max_roll == 4 and augmentation.mixup_rate == 0
    assert training.lr_scheduler_kwargs == {"min_lr_rate": 0.1} and training.bf16 is False
    assert (model.patch_size, model.from_scratch, model.mean) == ([32, 2], True, -6.5)
    assert arguments.data.data_config is None
    assert parse(*words, "--from-scratch", "--patch-size", 8).model.patch_size == [8]


def test_a_model_is_needed():
    with pytest.raises(ValueError, match="--model is missing; give an AST on the Hub, or a dir"):
        load_model(ModelArguments(), classes=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-3\n", "unknown arguments ['learning_rat']; see --help"),
        ("learning_rate: fast\n", "argument --learning-rate: invalid float value: 'fast'"),
        ("", "has no lines such as 'learning_rate: 1e-5'"),
        ("- learning_rate\n", "has no lines such as 'learning_rate: 1e-5'"),
        ("a: [1\nb: 2\n", "cannot read the recipe"),
        ("learning_rate: null\n", "has learning_rate: null, but it must have a value; leave the"),
        ("save_steps: .inf\n", "a value has the wrong type"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path, capsys, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert message in usage_error(capsys, *PATHS, "--recipe", recipe)


def test_values_that_a_recipe_must_not_have(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, message in [
        ("features: gpu", "--features is 'gpu'; it must be one of auto, workers, device"),
        ("padding: short", "--padding is 'short'; it must be one of max_length, longest"),
        ("loss: mse", "--loss is 'mse'; it must be one of auto, bce, cross_entropy"),
    ]:
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse(*PATHS, "--recipe", recipe)


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "examples/recipes/demo.yaml"])
def test_a_recipe_of_ours_is_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / "demo.yaml").read_text())
    assert (
        parse("--recipe", name, "--model", "m").training.num_train_epochs
        == (recipe["num_train_epochs"])
    )


def test_a_file_is_taken_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_recipe("demo").read_text() == find_recipe("recipes/demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text("seed: 5")
    assert find_recipe("demo.yaml").read_text() == "seed: 5"


@pytest.mark.parametrize("name", ["nowhere.yaml", "esc51", "other/demo.yaml"])
def test_an_unknown_recipe_lists_the_known_ones(name, capsys):
    line = usage_error(capsys, "--recipe", name)
    assert f"there is no recipe {name!r}; give the path of a YAML file" in line
    assert ", ".join(recipe_names()) in line
    assert recipe_names() == [path.stem for path in RECIPES] and len(RECIPES) == 11


def test_flags_have_hyphens_or_underscores():
    one = parse(*PATHS, "--num_train_epochs", 2, "--max-roll", 3, "--mix_whole_set=false")
    two = parse(*PATHS, "--num-train-epochs=2", "--max_roll=3")
    assert one.training.num_train_epochs == two.training.num_train_epochs == 2
    assert one.augmentation == two.augmentation and one.sampling == two.sampling


@pytest.mark.parametrize("missing", ["--model", "--data", "--output_dir"])
def test_what_must_be_given(missing, capsys):
    index = PATHS.index(missing)
    line = usage_error(capsys, *PATHS[:index], *PATHS[index + 2 :])
    assert f"{missing.replace('_', '-')} is missing; give it here or in the recipe" in line


def shown_help(capsys, flag):
    with pytest.raises(SystemExit) as end:
        parse_arguments([flag])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_shows_what_is_usual_and_help_all_everything(capsys):
    """Each of our flags has a help text; only a few of Trainer's flags are shown."""
    short, whole = shown_help(capsys, "--help"), shown_help(capsys, "--help-all")
    ours = [name for name, entry in ARGUMENTS.items() if name not in TRAINERS]
    for name in ours:
        assert f"--{name.replace('_', '-')}" in short, name
        assert ARGUMENTS[name].metadata["help"], name
    assert "--learning-rate" in short and "--adafactor" not in short
    assert USUAL.keys() <= ARGUMENTS.keys() and "Deprecated" not in short
    for name in ARGUMENTS:
        assert f"--{name.replace('_', '-')}" in whole, name
    assert len(short.splitlines()) < 267 < len(whole.splitlines())
    for heading in ("train a part:", "chosen numbers:", "report:", "short clips:"):
        assert f"\n{heading}\n" in short
    assert "example: modeling-ast finetune --recipe my_folder" in short.replace("\n", " ")
    for kind in KINDS:
        assert kind.__doc__.strip().splitlines()[0][:40] in short or kind is TrainingArguments
    assert "default: None" not in short and "default: False" not in short


@pytest.mark.parametrize(
    ("cores", "has_gpu", "workers"),
    [(1, False, 0), (2, False, 0), (8, False, 2), (64, False, 8), (2, True, 1), (16, True, 8)],
)
def test_workers_follow_the_cores(cores, has_gpu, workers):
    assert loading_workers(cores, has_gpu) == workers


def test_recipes_leave_the_workers_to_the_machine():
    cores = len(os.sched_getaffinity(0))
    wanted = loading_workers(cores, torch.cuda.is_available())
    for name in recipe_names():
        arguments = parse("--recipe", name, "--model", "m", "--data", "d")
        assert arguments.training.dataloader_num_workers == wanted
    words = ["--recipe", "demo", "--model", "m", "--dataloader-num-workers", 3]
    assert parse(*words).training.dataloader_num_workers == 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood(recipe):
    parse("--recipe", recipe.stem, "--model", "m", "--data", "d")
    text = recipe.read_text()
    assert text.startswith("# Command:")
    for word in ("# Hardware:", "# Result:", "# Differs from the paper:"):
        assert word in text


@pytest.mark.parametrize("name", SCHEDULES)
def test_published_recipes_are_as_published(name):
    """The schedule is that of training.SCHEDULES, and the optimiser is published_adam."""
    arguments = parse("--recipe", name)
    parts = published_parts(replace(arguments, sampling=SamplingArguments()), [])
    assert parts["epoch_decay"] == SCHEDULES[name]
    optimizer = parts["make_optimizer"](torch.nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.95, 0.999), 5e-7)
    assert arguments.training.max_grad_norm == 0


@pytest.mark.parametrize("shape", ["128x2", "16x16", "32x32"])
def test_recipes_of_patch_shapes_do_not_overlap(shape, tmp_path):
    """The model has patches of that shape, as many as fit into the spectrogram."""
    arguments = parse("--recipe", f"patches_{shape}").model
    config = ASTConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    ASTFeatureExtractor.from_config(config).save_pretrained(tmp_path)
    model, _ = load_model(replace(arguments, model=str(tmp_path)), [("a", "a")])
    mels, frames = map(int, shape.split("x"))
    assert model.config.patch_shape == (mels, frames)
    assert model.config.patch_grid() == (128 // mels, 1024 // frames)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--average_to", "3"], "--average-to is given without --average-from"),
        (
            ["--average_from", "9", "--num_train_epochs", "3"],
            "--average-from is 9 but the run has --num-train-epochs 3; lower",
        ),
        (["--patch_size", "8"], "--patch-size needs --from-scratch"),
        (
            ["--per_device_eval_batch_size", "0"],
            "--per-device-eval-batch-size is 0; give 1 or more",
        ),
        (["--mix_whole_set"], "--mix-whole-set needs mixup; give --mixup-rate too"),
        (["--decay_first", "1", "--warmup_steps", "0.1"], "--warmup-steps is a share of the run"),
        (["--streaming"], "the length of an epoch is unknown; give --train-clips"),
        (["--streaming", "--balanced_sampling"], "train without --streaming"),
        (
            ["--streaming", "--mixup_rate", "1", "--mix_whole_set"],
            "--mix-whole-set draws clips from the whole set",
        ),
        (
            ["--streaming", "--max_steps", "9", "--average_from", "2"],
            "--decay-first and --average-from count epochs; give --train-clips too",
        ),
    ],
)
def test_what_no_run_could_do_is_refused(capsys, words, message):
    assert message in usage_error(capsys, *PATHS, *words)


ARGUMENTS = {entry.name: entry for kind in KINDS for entry in fields(kind) if entry.init}
TRAINERS = {entry.name for entry in fields(TrainingArguments)}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_null_is_refused_unless_it_is_the_default(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{name}: null\n")
    if ARGUMENTS[name].default is None:
        assert read_recipe(str(recipe)) == {name: None}
    else:
        with pytest.raises(ValueError, match=rf"{name}: null, but it must have a value"):
            read_recipe(str(recipe))


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
YAML = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2), max_leaves=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.dictionaries(st.one_of(st.sampled_from(sorted(ARGUMENTS)), st.text(max_size=3)), YAML),
        st.text(max_size=30),
        st.binary(max_size=30),
    )
)
def test_any_recipe_is_read_or_refused_as_documented(tmp_path, content):
    recipe = tmp_path / "recipe.yaml"
    if isinstance(content, dict):
        content = yaml.safe_dump(content)
    recipe.write_bytes(content if isinstance(content, bytes) else content.encode(errors="ignore"))
    try:
        assert read_recipe(str(recipe)).keys() <= ARGUMENTS.keys()
    except ValueError as error:
        assert "recipe" in str(error)


def test_an_argument_of_any_kind_is_read_and_changed_by_its_name():
    arguments = parse(*PATHS)
    for name, value in [("max_length", 200), ("time_mask", 9), ("learning_rate", 1e-4)]:
        arguments.change(name, value)
        assert arguments.value(name) == value
    assert arguments.augmentation.time_mask == 9 and arguments.training.learning_rate == 1e-4
    # A group of arguments also checks changed values.
    with pytest.raises(ValueError, match="--padding is 'short'"):
        arguments.change("padding", "short")
    with pytest.raises(ValueError, match="there is no argument 'max_lenght'; see --help"):
        arguments.value("max_lenght")
