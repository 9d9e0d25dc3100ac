"""Benchmarks of questions that are answered by yes or no."""
