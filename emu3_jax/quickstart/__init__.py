"""The whole system once, on a CPU: the public commands in order, each stage resumable."""
