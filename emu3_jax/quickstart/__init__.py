"""The whole system on a CPU: the public commands in order, each stage resumable."""
