"""Evaluation: evaluators behind one interface, one per file.

`registry.make` makes evaluators by name; `evaluator.run_all` runs them.
"""
