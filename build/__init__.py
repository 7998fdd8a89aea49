"""Build scripts: convert checkpoints, compile engines and assemble the Triton model repository."""
