"""Evaluation: one evaluator a file behind one protocol, tables, and the report.

`emu3_jax.evaluate.registry.evaluate(subject, names)` runs evaluators by name.
"""
