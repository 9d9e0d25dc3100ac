"""The tasks, one module each, and their registry."""
