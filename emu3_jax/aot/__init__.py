"""Compiling for machines that are not there: does it fit, what moves, how long is a step."""
