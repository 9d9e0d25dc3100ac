"""Benchmarks of prompts to draw images and clips for."""
