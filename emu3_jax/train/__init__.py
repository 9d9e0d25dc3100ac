"""Training: one loop for every task, a small file per task."""
