"""`tensorrt_llm` on TensorRT-LLM's LLM API: text in, text and token ids out."""

from engine.serving.llmapi import LlmApiModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
