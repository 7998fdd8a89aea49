"""Other engines on the same prompts, each with its best speculation, beside ours."""
