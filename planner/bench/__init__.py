"""Step costs of the embedded engine, next to a physical bound and a peer."""
