"""The LLM API: its arguments for a deployment, and the schema that they are checked with."""
