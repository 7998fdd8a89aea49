"""Medusa: residual heads that each predict one later token from the target's last hidden state (arXiv 2401.10774)."""
