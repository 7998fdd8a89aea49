"""An output matrix that is computed conditionally, by a fast feed-forward tree (arXiv 2308.14711, 2311.10770)."""
