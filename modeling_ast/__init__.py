"""Audio Spectrogram Transformer for the Hugging Face ecosystem.

Importing this package hands every AST checkpoint over to the classes here: AutoConfig,
AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification and pipelines then give them.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
)
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

from .audio_file_ast import read_audio, resample
from .configuration_ast import ASTConfig
from .feature_extraction_ast import ASTFeatureExtractor
from .modeling_ast import ASTForAudioClassification, ASTModel, ASTPreTrainedModel
from .tagging_ast import AudioTagger, ClipTags, activation

__version__ = "0.1.0"

AutoConfig.register(ASTConfig.model_type, ASTConfig, exist_ok=True)
AutoFeatureExtractor.register(ASTConfig, ASTFeatureExtractor, exist_ok=True)
AutoModel.register(ASTConfig, ASTModel, exist_ok=True)
AutoModelForAudioClassification.register(ASTConfig, ASTForAudioClassification, exist_ok=True)
# A preprocessor_config.json that names "ASTFeatureExtractor" is resolved by that name, first in
# this table of transformers' own classes.
FEATURE_EXTRACTOR_MAPPING_NAMES.pop(ASTConfig.model_type, None)

__all__ = [
    "ASTConfig",
    "ASTFeatureExtractor",
    "ASTForAudioClassification",
    "ASTModel",
    "ASTPreTrainedModel",
    "AudioTagger",
    "ClipTags",
    "activation",
    "read_audio",
    "resample",
]
