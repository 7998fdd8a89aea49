"""What a plan needs at work: costs of steps, acceptance of drafts, and who decides by them."""
