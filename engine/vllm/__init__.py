"""vLLM as an engine: how it is told to speculate, and the kit's own drafters inside it."""
