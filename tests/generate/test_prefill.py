"""Reading prompts: chunk by chunk as at once, in little memory, and whatever ids they hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from emu3_jax import vocab as vocab_lib
from emu3_jax.generate.decoding import autoregressive, engine
from emu3_jax.generate.decoding.requests import Request, plan
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.models.language.transformer import Transformer, TransformerConfig

VOCAB = vocab_lib.small(text_size=20, codebook_size=12)
MODEL = Transformer(TransformerConfig(VOCAB.size, 32, 48, 2, 4, 2, 8, vocab_multiple=16))


@pytest.fixture(scope="module")
def params():
    boxed = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, nn.meta.unbox(boxed))


@jax.jit
def whole_forward(params, ids):
    return MODEL.apply({"params": params}, ids)


def inputs_of(lengths, pad_inside=False):
    """Prompts of these lengths as the engine lays them out; padded on the left."""
    rng = np.random.default_rng(0)
    prompts = [np.append(VOCAB.bos, rng.integers(0, 20, n - 1)).astype(np.int32) for n in lengths]
    if pad_inside:
        for prompt in prompts:
            prompt[len(prompt) // 2] = VOCAB.pad
    asked = [Request(prompt, max_new=4) for prompt in prompts]
    (batch,) = plan(asked, batch_size=len(asked))
    return engine._inputs(asked, batch, Sampling(), VOCAB), [asked[i] for i in batch.members]


def read(params, inputs, chunk, monkeypatch):
    monkeypatch.setattr(autoregressive, "CHUNK", chunk)
    return jax.jit(functools.partial(autoregressive.prefill, model=MODEL, vocab=VOCAB))(
        params, inputs
    )


def test_chunks_give_what_one_pass_gives(params, monkeypatch):
    inputs, _ = inputs_of([3, 20, 49, 62])
    assert inputs.prompt_RP.shape[1] == 65
    whole = read(params, inputs, 64, monkeypatch)
    for chunk in (8, 32):
        parts = read(params, inputs, chunk, monkeypatch)
        assert int(parts.cache.index) == int(whole.cache.index) == 64
        np.testing.assert_array_equal(parts.cache.valid, whole.cache.valid)
        real = np.asarray(whole.cache.valid)
        for found, right in ((parts.cache.k, whole.cache.k), (parts.cache.v, whole.cache.v)):
            found, right = np.asarray(found)[:, real], np.asarray(right)[:, real]
            # Sums in another order: a few units in the last place of float32.
            np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def test_reading_a_long_prompt_takes_the_memory_of_a_chunk(params):
    # What the scores of one pass over 4096 tokens would take, and those of a chunk.
    heads, prompt, new = 4, 4096, 16
    at_once = heads * prompt * (2 * prompt + new) * 4
    chunked = heads * autoregressive.CHUNK * (prompt + new + autoregressive.CHUNK) * 4
    row = jax.ShapeDtypeStruct((1,), jnp.int32)
    columns = jax.ShapeDtypeStruct((1, prompt + 1), jnp.int32)
    inputs = autoregressive.Inputs(
        columns,
        jax.ShapeDtypeStruct(columns.shape, bool),
        jax.ShapeDtypeStruct((1, new), jnp.int32),
        row,
        jax.ShapeDtypeStruct((1,), bool),
        row,
    )
    compiled = autoregressive.start.lower(params, inputs, model=MODEL, vocab=VOCAB).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert chunked < used < at_once / 2
    assert used < 6 * chunked  # scores, their mask, their softmax


def test_padding_is_known_by_length_and_not_by_its_id(params):
    inputs, asked = inputs_of([9, 20, 33], pad_inside=True)
    for valid, request in zip(inputs.valid_RP, asked, strict=False):
        assert valid[-len(request.prompt) :].all() and not valid[: -len(request.prompt)].any()
    settings = Sampling(temperature=0)
    together = engine.generate(MODEL, params, asked, settings, VOCAB)
    for request, answer in zip(asked, together, strict=True):
        ids, expected = list(request.prompt), []
        for _ in range(request.max_new):
            padded = np.pad(np.array([ids]), ((0, 0), (0, 48 - len(ids))))
            scores = np.asarray(whole_forward(params, padded)[0, len(ids) - 1])
            allowed = np.array([*range(VOCAB.text_size), VOCAB.eos])
            expected.append(int(allowed[scores[allowed].argmax()]))
            ids.append(expected[-1])
            if expected[-1] == VOCAB.eos:
                break
        assert answer.tolist() == expected


def test_texts_over_the_whole_vocabulary_are_the_official_ones(params):
    prompt = np.array([VOCAB.bos, 1, 2], np.int32)
    # Nearly uniform, so that most of the draws of an unconstrained text are no text.
    settings = Sampling(temperature=50.0, whole_vocabulary=True)
    asked = [Request(prompt, max_new=6) for _ in range(64)]
    answers = engine.generate(MODEL, params, asked, settings, VOCAB, batch_size=64)
    drawn = np.concatenate(answers)
    assert set(np.unique(drawn)) == set(range(VOCAB.size))
    assert all((answer[:-1] != VOCAB.eos).all() for answer in answers)
    never_empty = [Request(prompt, max_new=6, may_be_empty=False) for _ in range(64)]
    answers = engine.generate(MODEL, params, never_empty, settings, VOCAB, batch_size=64)
    assert all(answer[0] != VOCAB.eos for answer in answers)
    (best,) = engine.generate(
        MODEL, params, asked[:1], Sampling(temperature=0, whole_vocabulary=True), VOCAB
    )
    logits = MODEL.apply({"params": params}, prompt[None])[0, -1]
    assert best[0] == int(jnp.argmax(logits))
