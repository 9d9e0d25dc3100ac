"""Evaluators that know the emoji corpus."""
