"""What a target accepts of what it drafts for itself, by rows that drafts read, context, and way of choosing the rows.

`python -m planner.bench.windows SPEC --documents FILE` opens the engine of a `method: windowed` deployment once, with a
speculator for each combination of window and choice, and reads each document once: all others take its rows over. See
`planner.bench.windows.measure` for why that changes nothing of what is measured.
"""
