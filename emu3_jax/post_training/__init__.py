"""Post-training of the shipped nano model on a CPU: the public commands in order."""
