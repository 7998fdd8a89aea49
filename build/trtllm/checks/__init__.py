"""What is checked before TensorRT-LLM builds or serves, one module a subject; `build.trtllm.preflight` runs them."""
