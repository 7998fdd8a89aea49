"""Evidence that speculation changes nothing: exact joint distributions, transform test, greedy comparison."""
