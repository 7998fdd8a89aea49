"""Deployments on vLLM: what is checked, the arguments of its engine, and the Triton repository."""
