"""Compiled TensorRT engines: the tools that make them, the model families that they can be made of, the steps."""
