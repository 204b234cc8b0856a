"""Audio Spectrogram Transformer for the Hugging Face ecosystem.

Importing this package makes AutoConfig, AutoFeatureExtractor, AutoModel,
AutoModelForAudioClassification and pipelines give the classes here for every AST checkpoint.

The models and the classes that use them are imported at first use, because they need
`transformers.modeling_utils`, whose import takes seconds. Processes that only read and decode audio
do not need it and should not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .interrupts import ends_silently

with ends_silently():
    from .audio import read_audio, stream_audio
    from .configuration_ast import ASTConfig
    from .decoding import DecodingError
    from .feature_extraction_ast import ASTFeatureExtractor
    from .labels import activation
    from .registration import register_auto_classes
    from .resampling import resample

if TYPE_CHECKING:
    from .event_files import read_events, write_events
    from .events import Event, EventDetector
    from .modeling_ast import ASTForAudioClassification, ASTModel, ASTPreTrainedModel
    from .quantization import quantize_int8
    from .tagging import AudioTagger, ClipTags

__version__ = "0.1.0"

register_auto_classes()

__all__ = [
    "ASTConfig",
    "ASTFeatureExtractor",
    "ASTForAudioClassification",
    "ASTModel",
    "ASTPreTrainedModel",
    "AudioTagger",
    "ClipTags",
    "DecodingError",
    "Event",
    "EventDetector",
    "activation",
    "quantize_int8",
    "read_audio",
    "read_events",
    "resample",
    "stream_audio",
    "write_events",
]
# Public name -> the file that is imported at its first use.
_LATER = {
    "Event": "events",
    "EventDetector": "events",
    "read_events": "event_files",
    "write_events": "event_files",
    "ASTForAudioClassification": "modeling_ast",
    "ASTModel": "modeling_ast",
    "ASTPreTrainedModel": "modeling_ast",
    "AudioTagger": "tagging",
    "ClipTags": "tagging",
    "quantize_int8": "quantization",
}


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
