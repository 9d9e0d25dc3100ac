"""Evaluators of a language model on tokens."""
