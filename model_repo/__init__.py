"""The Triton models: tensor contract and thin `model.py` files that `drafthouse build` assembles into a repository."""
