"""What each method of speculation is to TensorRT-LLM."""
