"""A plan of build steps: what a step is, and how steps are printed, run, and resumed."""
