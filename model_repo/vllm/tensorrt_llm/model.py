"""`tensorrt_llm` on vLLM: text in, text and token ids out."""

from engine.serving.vllm import VllmModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
