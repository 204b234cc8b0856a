"""Fixtures of every test: no network, tiny random models, made-up audio."""

import os
import signal
from pathlib import Path

# A shell starts programs in the background with SIGINT ignored; tests that interrupt a program that
# they start would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before huggingface_hub is imported, so that no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Threads do not help tiny models, and they slow down test processes that run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch

# The same examples in each run; `--hypothesis-profile=default` draws new ones.
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.load_profile("steady")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# Odd and unequal sizes, so that a swapped axis or a wrong stride makes tests fail.
TINY = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "num_mel_bins": 40,
    "max_length": 97,
    "patch_size": 16,
    "frequency_stride": 9,
    "time_stride": 7,
    "num_labels": 5,
}


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.2) -> torch.nn.Module:
    """Draws every parameter at random, so that initial zeros or ones cannot hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


@pytest.fixture
def tiny_config():
    from modeling_ast import ASTConfig

    return ASTConfig(**TINY)


@pytest.fixture
def tiny_model(tiny_config):
    from modeling_ast import ASTForAudioClassification

    return randomise(ASTForAudioClassification(tiny_config))


@pytest.fixture
def tiny_folder(tiny_model, tmp_path):
    """A saved model with its extractor."""
    from modeling_ast import ASTFeatureExtractor

    folder = tmp_path / "tiny"
    tiny_model.save_pretrained(folder)
    ASTFeatureExtractor.from_config(tiny_model.config).save_pretrained(folder)
    return folder


@pytest.fixture
def clip():
    """Two seconds of a chirp in noise, at 16 kHz."""
    seconds = np.arange(32000) / 16000
    noise = np.random.default_rng(0).standard_normal(32000)
    chirp = np.sin(2 * np.pi * (200 + 900 * seconds) * seconds)
    return (0.3 * chirp + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory):
    """The files that `modeling-ast export` writes of a tiny model, made once for all tests."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx is not installed")
    from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
    from modeling_ast.exporting import export_model

    folder = tmp_path_factory.mktemp("exported")
    config = ASTConfig(**{**TINY, "num_hidden_layers": 1})
    # Small weights, because with large ones 8 bits are inaccurate in such a narrow model.
    model = randomise(ASTForAudioClassification(config), std=0.1)
    model.save_pretrained(folder / "torch")
    extractor = ASTFeatureExtractor.from_config(config, padding="longest")
    extractor.save_pretrained(folder / "torch")
    export_model(folder / "torch", folder / "out")
    return folder / "out"
