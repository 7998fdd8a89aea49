"""P-EAGLE: EAGLE-3 that drafts a whole block in one pass, what is not known yet standing in by a mask.

Hui et al., arXiv 2602.01469.
"""
