"""EAGLE-1 and EAGLE-2: a decoder layer that extrapolates the target's last hidden state (arXiv 2401.15077, 2406.16858).

Both share the checkpoint; EAGLE-2 differs in how its token tree grows.
"""
