"""Implementations of causal attention within documents, one a file.

docs/explanation/attention.md compares them.
"""
