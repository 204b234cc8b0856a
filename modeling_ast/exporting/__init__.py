"""A PyTorch checkpoint -> files for other runtimes: ONNX, transformers.js, the browser.

It needs the extra `onnx`.

    from modeling_ast.exporting import WaveformModel, export_model

    export_model("my-ast", "my-ast-onnx")
    WaveformModel("my-ast-onnx/onnx/waveform.onnx").scores(waveform)
"""

from .export import Export, export_model
from .running import WaveformModel

__all__ = ["Export", "WaveformModel", "export_model"]
