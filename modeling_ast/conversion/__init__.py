"""Converts checkpoints of other models to AST: state dict in, state dict out.

    from modeling_ast import ASTForAudioClassification
    from modeling_ast.conversion import convert_deit, deit_config, read_source

    source = read_source("facebook/deit-base-distilled-patch16-384")
    config = deit_config(source.weights, source.config, max_length=512, labels=50)
    model = ASTForAudioClassification(config)
    model.load_state_dict(convert_deit(source.weights, config, source_config=source.config))

`deit_conversion`, `original_conversion` and `average_checkpoints` return a `Conversion`, which also
has a table of what happened to each weight. `conversion.save(folder)` saves it.
"""

from .averaging import WeightMean, average_checkpoints
from .card import write_card
from .checkpoint_files import Source, read_source, read_weights
from .deit import convert_deit, deit_config, deit_conversion, rename_deit
from .key_maps import ConversionError
from .label_names import read_label_names
from .original import (
    convert_original,
    fetch_original_labels,
    original_config,
    original_conversion,
    rename_original,
)
from .report import draw, format_table
from .result import Conversion

__all__ = [
    "Conversion",
    "ConversionError",
    "Source",
    "WeightMean",
    "average_checkpoints",
    "convert_deit",
    "convert_original",
    "deit_config",
    "deit_conversion",
    "draw",
    "fetch_original_labels",
    "format_table",
    "original_config",
    "original_conversion",
    "read_label_names",
    "read_source",
    "read_weights",
    "rename_deit",
    "rename_original",
    "write_card",
]
