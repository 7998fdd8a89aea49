"""One program an engine: it loads the model and answers one prompt at a time."""
