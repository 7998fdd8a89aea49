"""Step costs of the embedded engine, next to a physical bound; other engines on the same prompts."""
