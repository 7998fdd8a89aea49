"""From profiles to a decision, and what it will bring: `drafthouse plan`."""
