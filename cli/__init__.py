"""The `drafthouse` command: reads the spec, calls the rooms, prints what they did."""
