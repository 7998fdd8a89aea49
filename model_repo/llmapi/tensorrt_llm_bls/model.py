"""`tensorrt_llm_bls` in front of the LLM API: the text-level contract, with streaming and batches."""

from engine.serving.llmapi_bls import LlmApiBlsModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
