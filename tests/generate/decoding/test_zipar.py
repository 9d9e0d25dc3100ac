"""ZipAR: raster order with a wide window, the steps of its formula, and nothing unwritten seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling, generate
from emu3_jax.generate.decoding import device
from emu3_jax.generate.decoding.decoders.zipar import Zipar
from emu3_jax.generate.decoding.engine import answers
from emu3_jax.models.language.attention import Context
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import Transformer, TransformerConfig
from emu3_jax.sequence import allowed_after_img

VOCAB = vocab_lib.small(text_size=20, codebook_size=12)
MODEL = Transformer(TransformerConfig(VOCAB.size, 32, 48, 2, 4, 2, 8, vocab_multiple=16))
PROMPT = np.array([VOCAB.bos, 3, VOCAB.boi, 1, VOCAB.img], np.int32)
NEGATIVE = np.array([VOCAB.bos, VOCAB.boi, 1, VOCAB.img], np.int32)


@pytest.fixture(scope="module")
def params():
    boxed = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nn.meta.unbox(boxed))


def some_requests():
    """Images and clips of several sizes, guided or not, and a text."""
    sizes = [("image", 1, 5, 6), ("image", 1, 3, 9), ("paper", 3, 2, 5), ("image", 1, 4, 1)]
    masks = [allowed_after_img(VOCAB, *size) for size in sizes]
    negatives = [NEGATIVE, None, NEGATIVE, None]
    found = [Request(PROMPT, n, mask) for n, mask in zip(negatives, masks, strict=True)]
    return [*found, Request(PROMPT[:2], max_new=12)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_window_of_a_row_is_raster_order(params, temperature):
    settings = dict(temperature=temperature, guidance=2.0, top_k=9, seed=4)
    right = generate(MODEL, params, some_requests(), Sampling(**settings), VOCAB)
    zipar = Sampling(**settings, decoder="zipar", window=9)
    found = generate(MODEL, params, some_requests(), zipar, VOCAB)
    for answer, expected in zip(found, right, strict=True):
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize("size", [(5, 6), (8, 8), (3, 9), (1, 4)])
def test_passes_are_those_of_the_formula(params, window, size):
    h, w = size
    request = Request(PROMPT, None, allowed_after_img(VOCAB, "image", 1, h, w))
    settings = Sampling(decoder="zipar", window=window)
    (answer,) = answers(MODEL, params, [request], settings, VOCAB)
    assert answer.passes == (h - 1) * min(window, w) + w
    assert len(answer.tokens) == request.new


def test_the_published_number_of_passes():
    """Emu3, 90 x 90 codes, window 7: 713 instead of 8,190 (arXiv:2412.04062)."""
    mask = allowed_after_img(vocab_lib.released(), "image", 1, 90, 90)
    fronts = Zipar(7).fitted([mask]).schedule(mask, len(mask))
    drawn = fronts.pass_BN[mask < 0]
    assert drawn.max() + 1 == 713 and Zipar(7).fitted([mask]).width == 13


def by_definition(params, request, window):
    """Greedy codes by whole forward passes, in which a token sees what was read before it or with
    it, and lies before it in raster order."""
    mask, answer, before = request.mask, request.mask.copy(), len(request.prompt) - 1
    pass_N = Zipar(window).fitted([mask]).schedule(mask, len(mask)).pass_BN
    read_T = np.concatenate([np.full(before, -1), pass_N])  # of the tokens of prompt and answer
    sees_TT = np.tri(len(read_T), dtype=bool) & (read_T <= read_T[:, None])

    def logits(module, ids):
        positions = jnp.arange(ids.shape[1])[None]
        masks = dict(old_mask=jnp.zeros((1, ids.shape[1], 1), bool), new_mask=sees_TT[None])
        context = Context(*module._rotation(positions), **masks)
        cache = KVCache.zeros(module.config, 1, 1)
        x, _ = module._layers(module._embed(ids, True), cache, context, True)
        return module.logits(module.final_norm(x))

    forward = jax.jit(lambda ids: MODEL.apply({"params": params}, ids, method=logits))
    for now in range(pass_N[mask < 0].max() + 1):
        ids = np.concatenate([request.prompt, answer])[:-1]
        found = np.asarray(forward(jnp.asarray(ids)[None]))[0, before:]
        for at in np.flatnonzero((mask < 0) & (pass_N == now)):
            codes = found[at, VOCAB.visual_start : VOCAB.visual_end]
            answer[at] = VOCAB.visual_start + np.argmax(codes)
    return answer


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_code_sees_what_was_read_and_nothing_else(params, window):
    """The cache is full of large numbers, so that a slot that was not written would be noticed."""
    allocate = device.allocate

    def poisoned(**sizes):
        return jax.tree.map(lambda x: jnp.full_like(x, 1e4), allocate(**sizes))

    device.allocate = poisoned
    try:
        request = Request(PROMPT, None, allowed_after_img(VOCAB, "image", 1, 4, 5))
        settings = Sampling(temperature=0, decoder="zipar", window=window)
        (found,) = generate(MODEL, params, [request], settings, VOCAB)
    finally:
        device.allocate = allocate
    np.testing.assert_array_equal(found, by_definition(params, request, window))


def test_a_window_that_is_none_is_refused():
    with pytest.raises(ValueError, match="window=0 of zipar"):
        Sampling(decoder="zipar", window=0)
