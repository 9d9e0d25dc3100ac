"""Evaluators of the emoji corpus."""
