"""EAGLE-3: one decoder layer over fused hidden states of three target layers, with a vocabulary of its own.

Li et al., arXiv 2503.01840.
"""
