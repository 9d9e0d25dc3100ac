"""Implementations of causal attention within documents, one a file; docs/attention.md compares."""
