"""Evaluators of a vision tokenizer."""
