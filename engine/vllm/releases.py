"""The releases of vLLM that the kit is written for."""

RELEASE = "0.32.0"
"""Its CPU build is what the kit installs."""

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3"
"""NVIDIA's Triton with vLLM 0.24.0+092c4842.nv26.7 (docs/introduction/compatibility.md of its `server` repository)."""
