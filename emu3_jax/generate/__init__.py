"""From prompts to tokens, and from tokens to files.

`decoding.engine` decodes any mix of requests. `modalities` has its four uses as plain functions,
`completion` those in which a part of the image or the clip is given.
`job` is what `python -m emu3_jax.generate` does with them.
"""

from emu3_jax.generate.decoding.engine import generate
from emu3_jax.generate.decoding.requests import CancelledError, Request
from emu3_jax.generate.decoding.sampling import Sampling

__all__ = ["CancelledError", "Request", "Sampling", "generate"]
