"""float32 means float32: by default, accelerators round the inputs of a product."""

import re

import jax
import jax.numpy as jnp
import pytest

from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*")


def products(function, *arguments) -> list[str]:
    """The lines of the lowered program that multiply matrices or convolve."""
    found = PRODUCT.findall(jax.jit(function).lower(*arguments).as_text())
    assert found
    return found


def check(lines, dtype):
    for line in lines:
        assert line.count("HIGHEST") == (2 if dtype == "float32" else 0), line


def transformer(dtype, attention="reference"):
    config = TransformerConfig(64, 16, 24, 2, 2, 1, 8, dtype=dtype, attention=attention, dropout=0)
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    module = Transformer(config)
    return module, jax.eval_shape(module.init, jax.random.key(0), tokens), tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_products_of_the_transformer_and_of_its_gradient(dtype, attention):
    module, variables, tokens = transformer(dtype, attention)

    def total(variables, tokens):
        return module.apply(variables, tokens).sum()

    check(products(jax.grad(total), variables, tokens), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_decoding(dtype):
    module, variables, tokens = transformer(dtype)

    def decode(variables, tokens):
        cache, written = KVCache.zeros(module.config, rows=2, slots=8), jnp.ones((2, 8), bool)
        x, _ = module.apply(variables, tokens, tokens, cache, written, method="read")
        return module.apply(variables, x, method="logits")

    check(products(decode, variables, tokens), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_products_of_the_vision_tokenizer(dtype, method):
    config = VisionTokenizerConfig(
        codebook_size=16,
        ch=4,
        ch_mult=(1, 1),
        num_res_blocks=1,
        norm_groups=2,
        attn_resolutions=(1,),
        dtype=dtype,
    )
    module = VisionTokenizer(config)
    pixels = jax.ShapeDtypeStruct((1, 8, 8, 8, 3), jnp.float32)
    codes = jax.ShapeDtypeStruct((1, 2, 4, 4), jnp.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), pixels)

    def run(variables, array):
        return module.apply(variables, array, method=method)

    lines = products(run, variables, pixels if method == "encode" else codes)
    if method == "encode" and dtype == "bfloat16":
        # The search for the nearest code is in float32 whatever the model is.
        lines = [line for line in lines if "tensor<4x16xf32>" not in line]
    check(lines, dtype)
