"""The target as an ONNX graph: what the embedded engine compiles and runs."""
