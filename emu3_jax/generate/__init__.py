"""From prompts to tokens, and from tokens to files.

`engine` decodes any mix of requests; `modalities` are its four uses as plain functions; `job` is
what `python -m emu3_jax.generate` does with them.
"""
