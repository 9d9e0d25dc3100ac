"""Benchmarks of questions with options."""
