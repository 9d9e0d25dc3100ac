"""What surrounds the steps of a run: its directory, checkpoints, logs, and what can go wrong."""
