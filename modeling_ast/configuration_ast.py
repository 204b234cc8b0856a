"""ASTConfig: every number of the front end and of the network, each with its default, once.

Follows Gong, Chung, Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, section 2.1, and
the field names of transformers' AST, so that config.json files are exchanged with it both ways.
"""

import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

# Numbers of the front end that plain transformers has no field for.
ONLY_OURS = ("window_seconds", "hop_seconds")
# Mel bins and frames of a patch by default.
PATCH_SIDE = 16
# Larger values are refused, because they come from a damaged file or a typing error. These bounds
# are far above any network of this kind (the largest published vision transformer, ViT-22B, has 48
# layers of width 6144), and low enough to refuse a value before it costs minutes or gigabytes.
LARGEST = {
    "hidden_size": 2**16,
    "num_hidden_layers": 200,
    "intermediate_size": 2**20,
    "max_length": 10**6,
    "num_mel_bins": 10**4,
    "sampling_rate": 10**7,
    "window_seconds": 10,
    "num_labels": 10**5,
    "initializer_range": 10**6,
    "layer_norm_eps": 10**6,
    "mean": 10**6,
    "std": 10**6,
}
MOST_WEIGHTS = 3 * 10**10


class Framing:
    """How samples are divided into frames, for classes that have these three fields."""

    if TYPE_CHECKING:
        sampling_rate: int
        window_seconds: float
        hop_seconds: float

    @property
    def window_samples(self) -> int:
        """Samples of the window that a frame is computed from. A clip has at least this many."""
        return whole_samples(self.window_seconds, self.sampling_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from the start of one frame to the start of the next."""
        return whole_samples(self.hop_seconds, self.sampling_rate)

    @property
    def frames_per_second(self) -> float:
        """Frames of one second of audio: 100 by default."""
        return self.sampling_rate / self.hop_samples


@strict
class ASTConfig(Framing, PreTrainedConfig):
    r"""Configuration shared by `ASTModel`, `ASTForAudioClassification` and `ASTFeatureExtractor`.

    The defaults are those of the AudioSet model of the paper: 16x16 patches that overlap by 6 (a
    stride of 10) on 1024 frames of 128 mel bins give a grid of 12 x 101 = 1212 patches: those of
    [MIT/ast-finetuned-audioset-10-10-0.4593](https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593).

    Args:
        hidden_size: Width D of a token.
        num_hidden_layers: Encoder layers.
        num_attention_heads: Heads H per layer; `hidden_size` is a multiple of it.
        intermediate_size: Width of the hidden layer of each MLP.
        hidden_act: Activation of the MLPs, a name of `transformers.activations.ACT2FN`.
        hidden_dropout_prob: Dropout on tokens, in [0, 1).
        attention_probs_dropout_prob: Dropout on attention weights, in [0, 1).
        drop_path_rate: Stochastic depth, in [0, 1): the probability that a clip skips a residual
            branch of the last layer while training; it decreases in equal steps to 0 at the first
            layer. Evaluations, and plain transformers, compute all branches.
        initializer_range: Standard deviation of freshly drawn weights.
        layer_norm_eps: Epsilon of every layer norm; conversions from DeiT write 1e-6.
        patch_size: Side of a square patch, or (frequency, time): mel bins and frames of a patch.
        qkv_bias: Whether query, key and value projections have a bias.
        frequency_stride: Mel bins from one patch to the next.
        time_stride: Frames from one patch to the next.
        patchout_frequency: Number of rows of the patch grid that are dropped from each clip while
            training, drawn anew at each step. Evaluations, and plain transformers, use all patches.
        patchout_time: Number of columns that are dropped in the same way; a shorter input keeps at
            least one.
        int8_linear: Whether the linear layers have 8-bit weights; see `quantize_int8`.
        max_length: Frames the position table is learned for.
        num_mel_bins: Mel bins F of a frame.
        sampling_rate: Rate of the waveforms, in Hz.
        window_seconds: Length of the window that a frame is computed from.
        hop_seconds: Time from the start of one frame to the start of the next. Both are saved only
            if they differ from the defaults, because plain transformers always uses the defaults.
        do_normalize: Whether log-mel values x become (x - mean) / (2 * std).
        mean: Mean of the log-mel values of the training set (AudioSet's by default).
        std: Their standard deviation.
        kwargs: Fields of `PreTrainedConfig`: `num_labels`, `id2label`, `problem_type`, ...

    Raises:
        StrictDataclassError: A value has the wrong type or describes no possible network.

    Example:

    ```python
    >>> from modeling_ast import ASTConfig
    >>> config = ASTConfig()
    >>> config.patch_grid(), config.num_patches()
    ((12, 101), 1212)
    >>> config.patch_grid(num_frames=100)
    (12, 9)
    ```
    """

    model_type = "audio-spectrogram-transformer"

    if TYPE_CHECKING:
        # PreTrainedConfig declares that they may be None, but fills them in at construction.
        num_labels: int = 2
        id2label: dict[int, str] = {0: "LABEL_0", 1: "LABEL_1"}
        label2id: dict[str, int] = {"LABEL_0": 0, "LABEL_1": 1}
    else:
        # Without types: older versions of transformers check them before `_check_labels` does.
        id2label: Any = None
        label2id: Any = None

    # The annotations are checked at construction: they must not be turned into strings.
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    # The authors trained with 1e-6 (encoder) and 1e-5 (head); transformers' AST has 1e-12.
    layer_norm_eps: float | int = 1e-12
    patch_size: int | list[int] | tuple[int, int] = PATCH_SIDE
    qkv_bias: bool = True
    frequency_stride: int = 10
    time_stride: int = 10
    patchout_frequency: int = 0
    patchout_time: int = 0
    int8_linear: bool = False
    max_length: int = 1024
    num_mel_bins: int = 128
    sampling_rate: int = 16000
    window_seconds: float | int = 0.025
    hop_seconds: float | int = 0.010
    do_normalize: bool = True
    mean: float | int = -4.2677393
    std: float | int = 4.5689974

    def __post_init__(self, **kwargs):
        # null means that no number is given; transformers would try to make names from it.
        if kwargs.get("num_labels", 0) is None:
            del kwargs["num_labels"]
        # These checks come before transformers makes names from a number of labels, and a dtype
        # from its name.
        self._check_labels(kwargs.get("num_labels"))
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            _require_dtype(name, dtype)
        # JSON has lists but no tuples. The size of a square patch is kept as an int, the only form
        # that plain transformers reads.
        if isinstance(self.patch_size, list | tuple):
            pair = tuple(self.patch_size)
            self.patch_size = pair[0] if len(pair) == 2 and pair[0] == pair[1] else pair
        super().__post_init__(**kwargs)

    def _check_labels(self, num_labels: Any) -> None:
        """Refuses too many labels, and names that are not texts or not numbered 0, 1, ..."""
        if num_labels is not None and self.id2label is None:
            whole = isinstance(num_labels, int) and not isinstance(num_labels, bool)
            if not (whole and 0 <= num_labels <= LARGEST["num_labels"]):
                wanted = f"an integer from 0 to {LARGEST['num_labels']}"
                _refuse("num_labels", num_labels, wanted)
        for name, names in (("id2label", self.id2label), ("label2id", self.label2id)):
            if names is not None and not isinstance(names, Mapping):
                _refuse(name, names, "a mapping")
        if self.id2label is None:
            return
        numbers = {str(index) for index in range(len(self.id2label))}
        if {str(index) for index in self.id2label} != numbers:
            _refuse("id2label", self.id2label, "a mapping that numbers its names 0, 1, ...")
        # A name may be a number: data sets of spoken digits have such labels.
        if not all(isinstance(label, str | int) for label in self.id2label.values()):
            _refuse("id2label", self.id2label, "a mapping whose values are texts")
        self.id2label = {int(index): str(label) for index, label in self.id2label.items()}

    def validate_architecture(self):
        """Refuses fields that contradict each other or describe no possible network."""
        # Imported here, because it takes a second, for which `import modeling_ast` should not wait.
        from transformers.activations import ACT2FN

        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "frequency_stride",
            "time_stride",
            "max_length",
            "num_mel_bins",
        ):
            _require(
                getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1"
            )
        for name, most in LARGEST.items():
            if (value := getattr(self, name)) is not None:
                _require(value <= most, name, value, f"at most {most}")
        _require(self.mean >= -LARGEST["mean"], "mean", self.mean, f"at least -{LARGEST['mean']}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("layer_norm_eps", "std"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _require(
            self.initializer_range >= 0, "initializer_range", self.initializer_range, "0 or more"
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of num_attention_heads={self.num_attention_heads}",
        )
        _require(
            self.hidden_act in ACT2FN, "hidden_act", self.hidden_act, f"one of {sorted(ACT2FN)}"
        )
        # Below 1 kHz a window of 25 ms is too short for a mel filterbank from 20 Hz upwards.
        _require(self.sampling_rate >= 1000, "sampling_rate", self.sampling_rate, "1000 Hz or more")
        _require(
            self.window_samples >= 2,
            "window_seconds",
            self.window_seconds,
            f"two samples of {self.sampling_rate} Hz or more",
        )
        _require(
            1 <= self.hop_samples <= self.window_samples,
            "hop_seconds",
            self.hop_seconds,
            f"at least one sample of {self.sampling_rate} Hz and at most window_seconds="
            f"{self.window_seconds}",
        )
        self._validate_patches()
        weights = self.num_weights()
        _require(weights <= MOST_WEIGHTS, "the number of weights", weights, f"<= {MOST_WEIGHTS}")

    def _validate_patches(self):
        pair = self.patch_size if isinstance(self.patch_size, tuple) else (self.patch_size,) * 2
        _require(
            len(pair) == 2 and min(pair) >= 1,
            "patch_size",
            self.patch_size,
            "an integer of at least 1 or a pair (mel bins, frames) of them",
        )
        for size, axis in zip(pair, ("num_mel_bins", "max_length")):
            length = getattr(self, axis)
            _require(size <= length, "patch_size", self.patch_size, f"at most {axis}={length}")
        for name, lines in zip(("patchout_frequency", "patchout_time"), self.patch_grid()):
            dropped = getattr(self, name)
            _require(0 <= dropped < lines, name, dropped, f"from 0 to {lines - 1} of {lines} lines")

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Mel bins and frames that one patch spans."""
        size = self.patch_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def padding_value(self) -> float:
        """What a padded frame holds in `input_values`: a log-mel of 0, normalised like the rest."""
        return (0.0 - self.mean) / (2 * self.std) if self.do_normalize else 0.0

    def patch_grid(self, num_frames: int | None = None) -> tuple[int, int]:
        """Patch grid (Gf, Gt) of an input of `num_frames` frames (default: `max_length`).

        Raises:
            ValueError: `num_frames` is less than one patch spans.

        Source: section 2.1; columns are 1 + (frames - 16) // 10, which is the paper's
            ceil((100t - 16) / 10) for clips of t whole seconds.
        """
        frames = self.max_length if num_frames is None else num_frames
        patch_bins, patch_frames = self.patch_shape
        if frames < patch_frames:
            raise ValueError(
                f"num_frames is {frames} but one patch spans {patch_frames} frames; pad the clip "
                f'first (ASTFeatureExtractor does, with padding="longest" too)'
            )
        return (
            1 + (self.num_mel_bins - patch_bins) // self.frequency_stride,
            1 + (frames - patch_frames) // self.time_stride,
        )

    def num_patches(self, num_frames: int | None = None) -> int:
        """Number of patches N = Gf * Gt of `num_frames` frames (default: `max_length`)."""
        rows, columns = self.patch_grid(num_frames)
        return rows * columns

    def num_weights(self) -> int:
        """Number of weights of `ASTForAudioClassification`, computed without building the model."""
        width, inner = self.hidden_size, self.intermediate_size
        patch_bins, patch_frames = self.patch_shape
        embeddings = width * (patch_bins * patch_frames + 1)  # kernel and its bias
        embeddings += width * (2 + 2 + self.num_patches())  # prefix tokens, positions
        attention = 4 * width * width + width * (4 if self.qkv_bias else 1)
        layer = attention + 2 * width * inner + inner + width + 4 * width
        labels = self.num_labels or 0
        head = 2 * width + labels * (width + 1)
        return embeddings + self.num_hidden_layers * layer + 2 * width + head

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved: without those of `ONLY_OURS` that have their default."""
        return without_defaults(super().to_dict())


def whole_samples(seconds: float, sampling_rate: int) -> int:
    """Whole samples in so many seconds, rounded down as Kaldi does."""
    return int(sampling_rate * seconds)


def without_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config or an extractor that are saved. With the published front end these are
    exactly the fields that plain transformers writes."""
    return {
        name: value
        for name, value in fields.items()
        if name not in ONLY_OURS or value != getattr(ASTConfig, name)
    }


def _require_dtype(field: str, dtype: Any) -> None:
    if dtype is None:
        return
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        _refuse(field, dtype, "the name of a floating-point type, such as float32")


def _refuse(field: str, value: object, wanted: str) -> None:
    # Only the beginning of a long value is shown.
    shown = reprlib.repr(value)
    error = ValueError(f"{field} is {shown}, which is impossible; it must be {wanted}")
    raise StrictDataclassFieldValidationError(field, error) from error


def _require(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value!r}, which is impossible; it must be {wanted}")


__all__ = ["LARGEST", "PATCH_SIDE", "ASTConfig", "Framing", "whole_samples", "without_defaults"]
