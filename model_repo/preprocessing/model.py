"""`preprocessing`: text to token ids."""

from engine.serving.tokenization import PreprocessingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
