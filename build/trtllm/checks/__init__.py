"""What is checked before TensorRT-LLM builds or serves, one module a subject; `preflight` runs them all."""
