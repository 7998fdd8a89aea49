"""Targets: a named model, a GGUF file or a local checkpoint becomes one checked Hugging Face directory."""
