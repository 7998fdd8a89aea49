"""What the published checkpoint formats share: JSON configs, tensor files, strict checks, PyTorch loading."""
