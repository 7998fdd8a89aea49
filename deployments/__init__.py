"""The deployment spec: one YAML file that says what is served, how it speculates and how it is measured."""
