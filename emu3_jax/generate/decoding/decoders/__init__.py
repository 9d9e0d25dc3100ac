"""How many tokens a forward pass commits: one decoder per file, and their registry."""
