"""Published benchmarks: questions about images, and prompts to draw. See `registry`."""
