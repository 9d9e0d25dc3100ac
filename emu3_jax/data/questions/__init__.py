"""Questions about images with known answers, as rows that `emu3_jax.tokenize` reads."""
