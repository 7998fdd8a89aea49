"""Training: hidden states of the frozen target, losses, a trainee for each family, a loop that resumes exactly."""
