"""EAGLE-3 by an outside trainer and by ours: the same data, steps and target."""
