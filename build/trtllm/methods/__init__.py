"""What each method of speculation is to TensorRT-LLM: a module a method, each with one record, all in `table`."""
