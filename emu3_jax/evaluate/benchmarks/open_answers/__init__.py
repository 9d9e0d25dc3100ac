"""Benchmarks of questions that are answered in words."""
