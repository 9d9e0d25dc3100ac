"""What a run needs besides its steps: directory, checkpoints, logs, and handling of failures."""
