"""The embedded engine: runs target and drafters with in-flight batching, exact verification and a paged KV cache."""
