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
CORE = {
    "configuration_ast": {"transformers", "huggingface_hub"},
    "fbank_ast": {"numpy", "torch"},
    "position_ast": {"torch"},
    "threads_ast": {"torch"},
    "transfer_ast": {"torch"},
    "audio": {"numpy", "torch", ".configuration_ast"},
    "feature_extraction_ast": {
        "numpy",
        "torch",
        "transformers",
        ".configuration_ast",
        ".fbank_ast",
        ".threads_ast",
        ".transfer_ast",
    },
    "registration_ast": {".configuration_ast", ".feature_extraction_ast"},
    "packing_ast": {"torch", ".transfer_ast"},
    "modeling_ast": {
        "torch",
        "transformers",
        ".configuration_ast",
        ".packing_ast",
        ".position_ast",
        ".transfer_ast",
    },
    "quantization_ast": {"torch", ".modeling_ast"},
    "workers": {"numpy", "torch", ".audio", ".feature_extraction_ast"},
    "errors": set(),
    "labels": {".configuration_ast"},
    "strict_json": set(),
    "tagging": {
        "numpy",
        "torch",
        ".labels",
        ".workers",
        ".fbank_ast",
        ".feature_extraction_ast",
        ".modeling_ast",
    },
}
FORBIDDEN_NAMES = {"ast", "datasets", "evaluate", "wandb", "utils"}
PYTHON_FILES = sorted(
    path
    for folder in ("modeling_ast", "conversion", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def module_level_imports(path):
    """Names that importing the file imports: `torch`, `.sibling`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").split(".")[0]


def all_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").split(".")[0]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "modeling_ast").glob("[!_]*.py")), ids=lambda path: path.stem
)
def test_core_files_import_only_what_they_may(path):
    imported = set(module_level_imports(path)) - STANDARD
    assert imported <= CORE[path.stem]


def test_the_core_never_imports_training():
    for path in (ROOT / "modeling_ast").glob("*.py"):
        assert ".training" not in set(all_imports(path)), path.name


def test_nobody_imports_torchaudio_at_module_level():
    for folder in ("modeling_ast", "conversion", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "torchaudio" not in set(module_level_imports(path)), path


def test_the_package_never_imports_scripts():
    scripts = {path.stem for name in ("conversion", "examples") for path in (ROOT / name).glob("*")}
    for path in (ROOT / "modeling_ast").rglob("*.py"):
        assert not scripts & set(all_imports(path)), path


def test_examples_import_public_names_only():
    for path in (ROOT / "examples").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modeling_ast"):
                rooms = ("modeling_ast", "modeling_ast.commands", "modeling_ast.training")
                assert node.module in rooms, path.name


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
    assert not loaded & {"torchaudio", "soundfile", "datasets", "evaluate", "matplotlib", "timm"}


def run_python(code, *arguments, **environment):
    """What a fresh process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **environment}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_the_package_does_not_wait_for_the_models():
    """Each of these takes longer than all that is imported."""
    loaded = run_python("import sys, modeling_ast; print(*sys.modules)").split()
    assert "modeling_ast.configuration_ast" in loaded
    slow = {"transformers.modeling_utils", "transformers.activations", "transformers.models"}
    assert not slow & set(loaded)
    assert "modeling_ast.modeling_ast" not in loaded


# What a user may write first; modeling_layers asks for the Auto classes before it has what our
# models need of it.
ORDERS = {
    "ours, then theirs": "import modeling_ast; from transformers import AutoModel",
    "theirs, then ours": """
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
)
import modeling_ast""",
    "config before": "from transformers import AutoConfig; import modeling_ast",
    "pipeline": "import modeling_ast; from transformers import pipeline",
    "in the midst of an import": "import modeling_ast, transformers.modeling_layers",
    "our file": "import modeling_ast.modeling_ast",
    "our name": "from modeling_ast import ASTForAudioClassification",
}


@pytest.mark.parametrize("first", ORDERS.values(), ids=ORDERS.keys())
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


def test_modules_that_were_waited_for_keep_their_loader():
    code = """
import inspect, modeling_ast
import transformers.models.auto.modeling_auto as module
assert "class AutoModel" in inspect.getsource(module)
assert "class AutoModel" in module.__loader__.get_source(module.__name__)
"""
    run_python(code)


def test_public_names_are_there_whether_imported_or_not():
    for name in modeling_ast.__all__:
        assert getattr(modeling_ast, name).__name__ == name
    assert set(modeling_ast.__all__) <= set(dir(modeling_ast))
    for path in (ROOT / "modeling_ast").glob("*_ast.py"):
        assert getattr(modeling_ast, path.stem).__name__ == f"modeling_ast.{path.stem}"
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
        'raise ImportError("torchaudio was built for another torch")',
        'raise RuntimeError("torchaudio was built for another torch")',
    ],
)
def test_the_core_works_where_torchaudio_cannot_load(torchaudio, tiny_folder, tmp_path):
    """As it does beside a torch without CUDA, or a newer one."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(torchaudio)
    code = """
import sys
import numpy as np
import modeling_ast
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
classify = pipeline("audio-classification", model=sys.argv[1])
assert type(classify.feature_extractor) is modeling_ast.ASTFeatureExtractor
assert len(classify(np.zeros(16000, np.float32))) == 5
try:
    modeling_ast.resample(np.zeros(100, np.float32), 44100, 16000)
except ImportError as error:
    assert "44100 Hz" in str(error) and "torchaudio" in str(error)
else:
    raise AssertionError("resampled without torchaudio")
"""
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    run_python(code, tiny_folder, PYTHONPATH=paths)
