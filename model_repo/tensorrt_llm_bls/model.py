"""`tensorrt_llm_bls`: the ensemble's three models called from Python, with streaming and batches."""

from engine.serving.bls import BlsModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
