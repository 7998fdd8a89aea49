"""`tensorrt_llm` on the embedded engine: token ids in, token ids out, decoupled."""

from engine.serving.generation import GenerationModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
