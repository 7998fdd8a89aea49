"""What to run when: measured cost today (`drafthouse bench`), profile and plan to come."""
