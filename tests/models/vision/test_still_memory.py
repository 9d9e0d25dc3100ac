"""The benchmark of a still's memory measures the program that it names."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.memory.still_memory import DIRECTIONS, measure
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

TINY = VisionTokenizerConfig(
    codebook_size=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, norm_groups=2, attn_resolutions=()
)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_figures_of_a_tiny_tokenizer(direction):
    found = measure(direction, 64, TINY)
    shapes = jax.eval_shape(VisionTokenizer(TINY).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert found["weights"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found["temporaries"] >= 4 * 64 * 64 * TINY.ch  # an activation of full size
    assert found["peak"] > found["weights"] + found["temporaries"]
