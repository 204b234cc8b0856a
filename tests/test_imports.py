"""Who may import whom: read from the sources, so that a new file without a rule fails."""

import ast
import json
import os
import subprocess
import sys

import pytest

import modeling_ast
from tests.conftest import ROOT

STANDARD = set(sys.stdlib_module_names)
PACKAGE = ROOT / "modeling_ast"
# Arrows go one way: a file may import those before it, and nothing behind it.
FLAT_FILES = [
    "interrupts",
    "errors",
    "configuration_ast",
    "checks",
    "devices",
    "position",
    "fbank",
    "fbank_cpu",
    "padding",
    "outputs",
    "text_tables",
    "labels",
    "strict_json",
    "resampling",
    "file_kinds",
    "flac_files",
    "file_streams",
    "file_section",
    "quick_flac",
    "decoding",
    "audio_files",
    "samples",
    "audio",
    "feature_extraction_ast",
    "fast_layers",
    "stochastic_depth",
    "hub_lookup",
    "adapters",
    "int8_linear",
    "loading",
    "modeling_ast",
    "registration",
    "pretrained",
    "quantization",
    "workers",
    "calibration",
    "clip_parts",
    "batching",
    "tagging",
    "tag_rows",
    "weight_files",
    "journal",
    "tag_files",
    "salvage",
    "recordings",
    "score_curves",
    "spectral_edges",
    "events",
    "event_files",
    "plotting",
    "event_plots",
    "__init__",
]
# So may a folder, those before it and all the flat files.
FOLDERS = ["conversion", "training", "exporting", "corpus", "commands"]
# What may be imported when a file of the room is: the core's dependencies, and those of an extra.
CORE_LIBRARIES = {"numpy", "torch", "transformers", "huggingface_hub", "safetensors", "tqdm"}
LIBRARIES = {
    "": CORE_LIBRARIES,
    "conversion": CORE_LIBRARIES | {"yaml"},
    "training": CORE_LIBRARIES
    | {"datasets", "evaluate", "accelerate", "matplotlib", "peft", "pyarrow", "sklearn", "yaml"},
    "exporting": CORE_LIBRARIES | {"onnx", "onnx_ir", "onnxruntime"},
    "corpus": CORE_LIBRARIES | {"fsspec", "pandas", "pyarrow", "ray"},
    "commands": CORE_LIBRARIES | {"yaml"},
}
FORBIDDEN_NAMES = {"ast", "datasets", "evaluate", "wandb", "utils"}
PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = sorted(
    path
    for folder in ("modeling_ast", "conversion", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def imports(path, everywhere=False):
    """(dots, module, name) of what a file imports, at its top or anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or "", alias.name) for alias in node.names)


def own_imports(path):
    """Files of the package, from its root, that a file of it imports, also inside functions."""
    here = path.parent.relative_to(PACKAGE).parts
    for dots, module, name in imports(path, everywhere=True):
        if dots:
            base = here[: len(here) - dots + 1]
            yield (*base, *module.split(".")) if module else (*base, name)


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_go_one_way(path):
    room, *inside = path.relative_to(PACKAGE).with_suffix("").parts
    for target, *_ in own_imports(path):
        if target in FOLDERS:
            assert inside or room == "__main__", f"{path} imports {target}"
            assert room == "__main__" or FOLDERS.index(target) <= FOLDERS.index(room), target
        elif not inside and room != "__main__" and target in FLAT_FILES:
            assert FLAT_FILES.index(target) < FLAT_FILES.index(room), target


def test_every_file_has_its_place():
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__main__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert flat == set(FLAT_FILES) and folders == set(FOLDERS)


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_import_the_libraries_of_their_room(path):
    room, *inside = path.relative_to(PACKAGE).with_suffix("").parts
    libraries = {module.split(".")[0] for dots, module, _ in imports(path) if not dots}
    assert libraries - STANDARD <= LIBRARIES[room if inside else ""]


def test_no_private_name_is_imported():
    for path in PYTHON_FILES:
        for dots, module, name in imports(path, everywhere=True):
            ours = dots or module.split(".")[0] in ("modeling_ast", "tests")
            assert not (ours and private(name)), f"{path} imports {name}"


# Public names of every named tuple, in spite of the underscore.
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}


def private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(path):
    """Private names that a file defines, and those that it reads as attributes."""
    defined, read = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute):
            (defined if isinstance(node.ctx, ast.Store) else read).add(node.attr)
    return set(filter(private, defined)), set(filter(private, read)) - NAMED_TUPLE


def test_no_private_name_of_another_file_is_read_as_an_attribute():
    """Those of libraries are theirs: a file that reads one says why, and is not meant here."""
    names = {path: private_names(path) for path in PACKAGE_FILES}
    for path, (own, read) in names.items():
        others = set().union(*(defined for other, (defined, _) in names.items() if other != path))
        assert not read & others - own, f"{path} reads {read & others - own}"


def test_nobody_imports_torchaudio_at_module_level():
    for path in PYTHON_FILES:
        if "tests" not in path.parts:
            assert "torchaudio" not in {module.split(".")[0] for _, module, _ in imports(path)}


def test_no_script_is_imported_by_its_bare_name():
    scripts = {
        path.stem for name in ("conversion", "examples") for path in (ROOT / name).glob("*.py")
    }
    for path in PYTHON_FILES:
        for dots, module, _ in imports(path, everywhere=True):
            assert dots or module.split(".")[0] not in scripts, path


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.name)
def test_no_file_hides_a_library(path):
    names = {path.stem, path.parent.name}
    assert not names & FORBIDDEN_NAMES


def test_importing_the_package_loads_nothing_it_may_lack():
    """transformers itself loads torchaudio where it can; we add nothing."""
    code = """
import json, sys, torch
from transformers import AutoModelForAudioClassification, SequenceFeatureExtractor
before = set(sys.modules)
import modeling_ast
print(json.dumps([name for name in set(sys.modules) - before if "." not in name]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout.splitlines()[-1]))
    assert "modeling_ast" in loaded
    assert not loaded & {
        "torchaudio",
        "soundfile",
        "datasets",
        "evaluate",
        "matplotlib",
        "timm",
        "soxr",
    }


def run_python(code, *arguments, **environment):
    """What a fresh process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **environment}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_the_package_does_not_wait_for_the_models():
    """transformers' own part of their import takes longer than all that is imported."""
    loaded = run_python("import sys, modeling_ast; print(*sys.modules)").split()
    assert "modeling_ast.registration" in loaded
    slow = {"transformers.modeling_utils", "transformers.activations", "torch._dynamo"}
    # Older versions of transformers load them with their own Auto classes.
    theirs = "import sys; from transformers import AutoFeatureExtractor; print(*sys.modules)"
    assert not slow & set(loaded) - set(run_python(theirs).split())
    assert "modeling_ast.modeling_ast" not in loaded


# What a user may write first.
ORDERS = {
    "ours, then theirs": "import modeling_ast; from transformers import AutoModel",
    "theirs, then ours": """
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
)
import modeling_ast""",
    "theirs used, then ours": """
from transformers import ASTForAudioClassification, AutoModel, pipeline
import modeling_ast""",
    "pipeline": "import modeling_ast; from transformers import pipeline",
    "models' base": "import modeling_ast, transformers.modeling_layers",
    "our file": "import modeling_ast.modeling_ast",
    "our name": "from modeling_ast import ASTForAudioClassification",
}


# Each order is a process of its own, of seven seconds: two stand for them in the default run.
QUICK_ORDERS = ("ours, then theirs", "pipeline")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(code, id=name, marks=() if name in QUICK_ORDERS else pytest.mark.slow)
        for name, code in ORDERS.items()
    ],
)
def test_auto_classes_give_ours_in_any_order_of_imports(first, tiny_folder):
    code = """
import pickle, sys
import modeling_ast, transformers
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
)
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
assert type(config) is modeling_ast.ASTConfig
assert type(AutoFeatureExtractor.from_pretrained(folder)) is modeling_ast.ASTFeatureExtractor
assert type(AutoModel.from_config(config)) is modeling_ast.ASTModel
model = AutoModelForAudioClassification.from_pretrained(folder)
assert type(model) is modeling_ast.ASTForAudioClassification
assert type(pipeline("audio-classification", model=folder).model) is type(model)
for kept in (type(config), type(model), type(model.base_model)):
    assert pickle.loads(pickle.dumps(kept)) is kept
assert modeling_ast.ASTModel in AutoModel._model_mapping._extra_content.values()
theirs = AutoModel.from_config(transformers.ASTConfig(hidden_size=12, num_attention_heads=2))
assert type(theirs) is transformers.ASTModel
"""
    run_python(first + code, tiny_folder)


def test_nothing_stays_in_the_way_of_imports():
    code = """
import sys, torch
from transformers import AutoModelForAudioClassification
before = list(sys.meta_path)
import modeling_ast
assert sys.meta_path == before, set(sys.meta_path) - set(before)
"""
    run_python(code)


def test_public_names_are_there_whether_imported_or_not():
    for name in modeling_ast.__all__:
        assert getattr(modeling_ast, name).__name__ == name
    assert set(modeling_ast.__all__) <= set(dir(modeling_ast))
    missing = "ASTTagger"
    with pytest.raises(AttributeError, match="module 'modeling_ast' has no attribute 'ASTTagger'"):
        getattr(modeling_ast, missing)


def test_type_checkers_see_the_names_that_are_imported_later():
    tree = ast.parse((ROOT / "modeling_ast" / "__init__.py").read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: statement.module
        for node in guarded
        for statement in node.body
        for alias in statement.names
    }
    assert seen == modeling_ast._LATER


@pytest.mark.parametrize(
    "torchaudio",
    [
        'raise OSError("libc10_cuda.so: cannot open shared object file")',
        pytest.param('raise ImportError("built for another torch")', marks=pytest.mark.slow),
        pytest.param('raise RuntimeError("built for another torch")', marks=pytest.mark.slow),
    ],
)
def test_the_core_works_where_torchaudio_cannot_load(torchaudio, tiny_folder, tmp_path):
    """As it does beside a torch without CUDA, or a newer one."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(torchaudio)
    code = """
import sys
import numpy as np
import torch
import modeling_ast
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
classify = pipeline("audio-classification", model=sys.argv[1])
assert type(classify.feature_extractor) is modeling_ast.ASTFeatureExtractor
assert len(classify(np.zeros(16000, np.float32))) == 5
assert len(modeling_ast.resample(np.zeros(441, np.float32), 44100, 16000)) == 160
try:
    modeling_ast.resample(torch.zeros(100, requires_grad=True), 44100, 16000)
except ImportError as error:
    assert "44100 Hz" in str(error) and "torchaudio" in str(error)
else:
    raise AssertionError("resampled without torchaudio")
"""
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    run_python(code, tiny_folder, PYTHONPATH=paths)
