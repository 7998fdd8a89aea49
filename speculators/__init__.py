"""What proposes tokens: one module a method, the token tree that all return, the registry of their names."""
