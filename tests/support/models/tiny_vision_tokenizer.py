"""The smallest vision tokenizers: one to train, and one with every kind of layer."""

import flax.traverse_util
import numpy as np

from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.vision.tokenizer import VisionTokenizerConfig

CODES = 16
# One level and attention only in the middle: the minimum, since compiling takes longest.
MODEL = VisionTokenizerConfig(
    codebook_size=CODES, ch=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(),
    norm_groups=2, temporal_downsample_factor=2,
)  # fmt: skip
WEIGHTS = dict(l2=0.7, l1=0.3, commitment=0.2, codebook=0.9)
TINY = VisionTokenizerConfig(
    codebook_size=64,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(1,),
    norm_groups=4,
)


def random_variables(config):
    """Random variables, none zero, at a scale that keeps activations near one."""
    generator = np.random.default_rng(0)
    flat = {}
    for pair in tokenizer_files.key_map(config):
        array = generator.normal(size=pair.shape).astype(np.float32)
        if pair.path[-1] == "kernel":
            array /= np.sqrt(np.prod(pair.shape[:-1]))
        elif pair.path[-1] in ("scale", "var"):
            array = 1.0 + 0.5 * np.tanh(array)
        elif pair.path[-1] in ("bias", "mean"):
            array *= 0.2
        flat[pair.path] = array
    return flax.traverse_util.unflatten_dict(flat)
