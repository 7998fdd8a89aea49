"""The engine behind Triton: what the model repository's `model.py` files call."""
