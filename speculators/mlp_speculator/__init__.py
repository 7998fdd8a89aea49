"""MLP speculator: stages conditioned on the target's final hidden state and the tokens drafted so far.

Wertheimer et al., "Accelerating Production LLMs with Combined Token/Embedding Speculators", arXiv 2404.19124.
"""
