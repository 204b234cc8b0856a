"""The front end of the graphs, against torchaudio's Kaldi and the extractor."""

import numpy as np
import pytest
import torch

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.calibration import Calibration, LabelCalibration
from tests.conftest import TINY, randomise

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from modeling_ast.exporting.graphs import WaveformGraph, dft_matrix


def graph(**settings):
    fields = {name: value for name, value in settings.items() if name in ASTConfig().to_dict()}
    config = ASTConfig(**{**TINY, **fields})
    extractor = ASTFeatureExtractor.from_config(config, **settings)
    return WaveformGraph(randomise(ASTForAudioClassification(config)), extractor).eval()


def waveforms(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(len(lengths), max(lengths), generator=generator) * 0.1
    return batch, torch.tensor(lengths)


def test_the_dft_is_numpys():
    frames = np.random.default_rng(0).standard_normal((3, 400))
    expected = np.fft.rfft(frames, 512)[:, :-1]
    real, imaginary = np.split(frames @ dft_matrix(400, 256).double().numpy(), 2, axis=1)
    np.testing.assert_allclose(real + 1j * imaginary, expected, atol=1e-5)


def test_frames_are_kaldis():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", reason="the judge of the fbank")
    batch, counts = waveforms([9000])
    values, mask = graph(do_normalize=False).features(batch, counts)
    expected = kaldi.fbank(batch, window_type="hanning", num_mel_bins=40, sample_frequency=16000)
    assert mask.sum() == len(expected)
    torch.testing.assert_close(values[0, : len(expected)], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "max_length"},
        {"padding": "longest"},
        {"padding": "max_length", "return_attention_mask": True},
        {"padding": "max_length", "do_normalize": False},
        {"padding": "longest", "sampling_rate": 22050, "hop_seconds": 0.0125},
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [[800], [15000, 600, 7000]], ids=str)
def test_features_and_logits_are_the_packages(settings, lengths):
    own = graph(**settings)
    batch, counts = waveforms(lengths)
    inputs = own.extractor.extract([row[:count] for row, count in zip(batch, counts.tolist())])
    values, mask = own.features(batch, counts)
    num_frames = min(values.shape[1], inputs.input_values.shape[1])
    torch.testing.assert_close(
        values[:, :num_frames], inputs.input_values[:, :num_frames], atol=1e-4, rtol=0
    )
    if "attention_mask" in inputs:
        assert torch.equal(mask.sum(1), inputs.attention_mask.sum(1))
    with torch.no_grad():
        logits, scores = own(batch, counts)
        expected = own.model(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores, expected.softmax(-1), atol=1e-5, rtol=0)


def test_scores_are_sigmoids_where_a_clip_has_several_labels():
    own = graph()
    own.model.config.problem_type = "multi_label_classification"
    own = WaveformGraph(own.model, own.extractor)
    logits = torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(own.scores(logits), 1 / (1 + (-logits).exp()))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_scores_are_calibrated_as_the_taggers(activation):
    slopes, intercepts = (2.0, 0.5), (-1.0, 0.25)
    if activation == "softmax":
        slopes, intercepts = (0.7, 0.7), (0.0, 0.0)
    labels = {
        f"label {index}": LabelCalibration(0.5, slope, intercept, 10)
        for index, (slope, intercept) in enumerate(zip(slopes, intercepts))
    }
    calibration = Calibration(labels, "platt", "best F1", activation, "longest", 10)
    own = graph()
    if activation == "sigmoid":
        own.model.config.problem_type = "multi_label_classification"
    own = WaveformGraph(own.model, own.extractor, calibration)
    logits = torch.tensor([[0.3, -2.0], [5.0, 4.0]])
    plain = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)
    expected = calibration.apply(plain.double().numpy())
    np.testing.assert_allclose(own.scores(logits), expected, atol=1e-6)
