"""One program an engine: it loads the model and answers prompts that are asked at once."""
