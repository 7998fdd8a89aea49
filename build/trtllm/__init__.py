"""TensorRT-LLM: from a deployment spec to build steps, LLM API files and Triton repositories, per release line."""
