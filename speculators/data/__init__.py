"""Training data: conversations whose assistant turns the target wrote itself, checked against held-out prompts."""
