"""A smaller model with the target's tokenizer drafts chains (arXiv 2211.17192, 2302.01318)."""
