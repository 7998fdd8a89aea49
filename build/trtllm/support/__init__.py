"""What runs on which release of TensorRT-LLM: the matrix of methods, and the constraints on their settings."""
