"""ReDrafter: one recurrent head that drafts by beam search (arXiv 2403.09919, apple/ml-recurrent-drafter)."""
