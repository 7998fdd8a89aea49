"""The Triton model repository of a deployment on TensorRT-LLM."""
