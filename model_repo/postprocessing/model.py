"""`postprocessing`: token ids to text."""

from engine.serving.tokenization import PostprocessingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
