"""Reading prompts: in pieces as at once, once for all that share them, with any ids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from emu3_jax import sharding
from emu3_jax import vocab as vocab_lib
from emu3_jax.generate import Request, Sampling
from emu3_jax.generate.decoding import device, engine
from emu3_jax.models.language.kv_cache import KVCache
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


def prompts_of(lengths, same=0):
    """Prompts of these lengths, with PAD inside, of which the first tokens are the same."""
    rng = np.random.default_rng(0)
    beginning = rng.integers(0, 20, same)
    prompts = [np.append(VOCAB.bos, rng.integers(0, 20, n - 1)).astype(np.int32) for n in lengths]
    for prompt in prompts:
        prompt[len(prompt) // 2] = VOCAB.pad
        prompt[1 : 1 + same] = beginning[: len(prompt) - 1]
    return prompts


def greedy(params, prompt, new):
    """The greedy text by whole forward passes."""
    ids, answer = list(prompt), []
    for _ in range(new):
        padded = np.pad(np.array([ids]), ((0, 0), (0, 256 - len(ids))))
        scores = np.asarray(whole_forward(params, padded)[0, len(ids) - 1])
        allowed = np.array([*range(VOCAB.text_size), VOCAB.eos])
        answer.append(int(allowed[scores[allowed].argmax()]))
        ids.append(answer[-1])
        if answer[-1] == VOCAB.eos:
            break
    return answer


@pytest.mark.parametrize("batch_size", [1, 16])
def test_prompts_of_any_length_are_read_whole(params, batch_size):
    lengths = [1, 2, 9, 33, 34, 129, 170, 240]
    asked = [Request(prompt, max_new=4) for prompt in prompts_of(lengths)]
    found = engine.generate(
        MODEL, params, asked, Sampling(temperature=0), VOCAB, batch_size=batch_size
    )
    for request, answer in zip(asked, found, strict=True):
        assert answer.tolist() == greedy(params, request.prompt, 4)


@pytest.fixture
def read_tokens(monkeypatch):
    """How many tokens were read of prompts, call by call."""
    calls, read = [], device.read_prompts

    def counting(params, cache, index, tokens, starts, counts, **static):
        calls.append(int(np.sum(counts)))
        return read(params, cache, index, tokens, starts, counts, **static)

    monkeypatch.setattr(device, "read_prompts", counting)
    return calls


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_what_prompts_share_is_read_once(params, batch_size, read_tokens):
    asked = [Request(prompt, max_new=3) for prompt in prompts_of([150 + i for i in range(9)], 140)]
    settings = Sampling(temperature=0)
    found = engine.generate(MODEL, params, asked, settings, VOCAB, batch_size=batch_size)
    # All tokens but the last of each; of 140 and BOS one copy. A few more are equal by chance.
    needed = sum(len(r.prompt) - 1 for r in asked) - 8 * 141
    assert needed - 8 <= sum(read_tokens) <= needed
    for request, answer in zip(asked, found, strict=True):
        assert answer.tolist() == greedy(params, request.prompt, 3)


def test_samples_of_one_prompt_and_their_other_branches_read_it_once(params, read_tokens):
    prompt, negative = prompts_of([120, 100])
    asked = [Request(prompt, negative, np.full(6, -1, np.int32)) for _ in range(8)]
    settings = Sampling(guidance=2.0, seed=3)
    together = engine.generate(MODEL, params, asked, settings, VOCAB)
    assert sum(read_tokens) == 119 + 99
    for number, answer in enumerate(together):
        alone = dataclasses.replace(asked[0], number=number)
        (expected,) = engine.generate(MODEL, params, [alone], settings, VOCAB)
        np.testing.assert_array_equal(answer, expected)


def test_an_answer_is_read_once_by_those_that_go_on_from_it(params, read_tokens):
    (prompt,) = prompts_of([60])
    settings = Sampling(temperature=0)
    (answer,) = engine.generate(MODEL, params, [Request(prompt, max_new=40)], settings, VOCAB)
    longer = np.concatenate([prompt, answer[:-1], [1, 2, 3]]).astype(np.int32)
    asked = [Request(prompt, max_new=40), Request(longer, max_new=2)]
    read_tokens.clear()
    found = engine.generate(MODEL, params, asked, settings, VOCAB, batch_size=1)
    assert sum(read_tokens) == len(prompt) - 1 + 3 - 1
    assert found[0].tolist() == answer.tolist()
    assert found[1].tolist() == greedy(params, longer, 2)


def test_rows_of_a_mesh_copy_within_their_shard(params):
    asked = [Request(prompt, max_new=3) for prompt in prompts_of([90 + i for i in range(9)], 80)]
    abstract = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 1, 2))
    sharded = jax.device_put(params, sharding.state_shardings(abstract, mesh)["params"])
    settings = Sampling(temperature=0)
    found = engine.generate(MODEL, sharded, asked, settings, VOCAB, mesh, batch_size=8)
    for request, answer in zip(asked, found, strict=True):
        assert answer.tolist() == greedy(params, request.prompt, 3)


def test_reading_takes_the_memory_of_a_piece(params):
    # What the scores of one pass over 4096 tokens would take, and those of a piece.
    heads, slots, length = 4, 4096, 512
    at_once = heads * slots * 2 * slots * 4
    in_pieces = heads * length * (slots + length) * 4
    cache = jax.eval_shape(lambda: KVCache.zeros(MODEL.config, 1, slots + length))
    place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tokens = jax.ShapeDtypeStruct((1, 1, length), jnp.int32)
    lowered = device.read_prompts.lower(
        params, cache, place, tokens, place, place, model=MODEL, live=slots
    )
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert in_pieces < used < at_once / 2
    assert used < 6 * in_pieces  # scores, their mask, their softmax


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
