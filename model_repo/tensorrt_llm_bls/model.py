"""`tensorrt_llm_bls`: text in, text out, with drafts of a second model or of n-grams."""

from engine.serving.bls import BlsModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
