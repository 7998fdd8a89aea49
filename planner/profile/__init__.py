"""What a speculator is worth on given prompts, and what its steps cost: `drafthouse profile`."""
