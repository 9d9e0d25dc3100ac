"""Against the official code's figures, and against itself: cache, scan, remat, packing."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from paths import GOLDEN
from tiny_models import TWO_LAYERS

from emu3_jax.interop.language import language_model
from emu3_jax.models.language.cross_entropy import chunked_cross_entropy
from emu3_jax.models.language.kv_cache import KVCache
from emu3_jax.models.language.transformer import (
    REMAT,
    Transformer,
    TransformerConfig,
    check_mesh,
    count_parameters,
    released,
    stack_layers,
    unstack_layers,
)
from emu3_jax.sharding import MeshConfig, make_mesh

TINY = TransformerConfig(100, vocab_multiple=64, **TWO_LAYERS)


@pytest.fixture(scope="module")
def golden():
    model, variables = language_model.load_module(GOLDEN / "language_model")
    return model, variables, np.load(GOLDEN / "language_model.npz")


@pytest.fixture(scope="module")
def tiny():
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, TINY.vocab_size)
    return nn.unbox(jax.jit(Transformer(TINY).init)(jax.random.key(0), tokens)), tokens


def test_logits_of_the_official_code(golden):
    model, variables, figures = golden
    logits = model.apply(variables, figures["ids"].astype(np.int32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, figures["logits"], atol=2e-4)


def test_loss_of_the_official_code(golden):
    model, variables, figures = golden
    ids = figures["ids"].astype(np.int32)
    hidden = model.apply(variables, ids[:, :-1], method="hidden")
    kernel = variables["params"]["lm_head"]["kernel"]
    ce = chunked_cross_entropy(
        hidden, kernel, ids[:, 1:], np.ones(ids[:, 1:].shape), vocab_size=1024, chunk_tokens=16
    )
    np.testing.assert_allclose(ce.total / ce.weight, figures["loss"], atol=1e-5)


def test_left_padding_of_the_official_code(golden):
    model, variables, figures = golden
    mask = figures["padded_mask"].astype(np.int32)
    logits = model.apply(
        variables, figures["padded_ids"].astype(np.int32), mask.cumsum(1) - 1, mask
    )
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[mask == 1], figures["padded_logits"][mask == 1], atol=2e-4)


def through_cache(model, variables):
    """A function that reads tokens [R, S] at their positions, and gives logits and the cache."""

    def read(tokens, positions, cache, count):
        written = jnp.broadcast_to(jnp.arange(cache.slots), (len(tokens), cache.slots))
        written = written < jnp.asarray(count).reshape(-1, 1)
        x, new = model.apply(variables, tokens, positions, cache, written, method="read")
        logits = model.apply(variables, x, method="logits")
        return logits, cache.write_run(new, positions)

    return read


def test_greedy_tokens_of_the_official_code_through_the_cache(golden):
    """A prompt in one call, then one token a step inside a jitted loop."""
    model, variables, figures = golden
    expected = figures["greedy"].astype(np.int32)
    rows, total = expected.shape
    prompt, read = 16, through_cache(model, variables)

    @jax.jit
    def greedy(prompt_BS):
        cache = KVCache.zeros(model.config, rows, total)
        start = jnp.broadcast_to(jnp.arange(prompt), (rows, prompt))
        logits, cache = read(prompt_BS, start, cache, 0)
        out = jnp.zeros((rows, total), jnp.int32).at[:, :prompt].set(prompt_BS)

        def step(state):
            i, logits, cache, out = state
            token = jnp.argmax(logits[:, -1:], axis=-1).astype(jnp.int32)
            out = jax.lax.dynamic_update_slice(out, token, (0, i))
            logits, cache = read(token, jnp.full((rows, 1), i), cache, i)
            return i + 1, logits, cache, out

        state = (prompt, logits[:, -1:], cache, out)
        return jax.lax.while_loop(lambda s: s[0] < total, step, state)[-1]

    np.testing.assert_array_equal(greedy(expected[:, :prompt]), expected)


def test_prompts_of_the_official_code_in_pieces_equal_whole_rows(golden):
    """Rows of different lengths, each from position 0 on; theirs are padded on the left."""
    model, variables, figures = golden
    ids, mask = (figures[k].astype(np.int32) for k in ("padded_ids", "padded_mask"))
    lengths = mask.sum(1)
    assert len(set(lengths)) > 1
    tokens = np.stack([np.roll(row, n - len(row)) for row, n in zip(ids, lengths, strict=True)])
    positions = np.where(np.arange(ids.shape[1]) < lengths[:, None], np.arange(ids.shape[1]), -1)
    cache = KVCache.zeros(model.config, len(ids), 32)
    read = jax.jit(through_cache(model, variables), donate_argnums=2)
    parts = []
    for start, stop in ((0, 16), (16, 20), (20, 21), (21, 22), (22, 23), (23, 24)):
        count = np.minimum(start, lengths)
        logits, cache = read(tokens[:, start:stop], positions[:, start:stop], cache, count)
        parts.append(logits)
    found = np.concatenate(parts, axis=1)
    assert np.isfinite(found).all()
    padded = figures["padded_logits"]
    right = [np.roll(row, n - len(row), 0) for row, n in zip(padded, lengths, strict=True)]
    real = positions >= 0
    np.testing.assert_allclose(found[real], np.stack(right)[real], atol=2e-4)


def test_more_slots_than_the_cache_has_are_an_error(tiny):
    variables, tokens = tiny
    cache, written = KVCache.zeros(TINY, rows=2, slots=8), jnp.ones((2, 16), bool)
    with pytest.raises(ValueError, match="16 slots of a cache of 8"):
        Transformer(TINY).apply(variables, tokens, tokens, cache, written, method="read")


def test_released_sizes():
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    model = Transformer(released(vocab_multiple=1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 8_492_011_520
    assert count_parameters(released()) == 8_492_011_520
    assert released().padded_vocab_size == 184_832


def test_padded_vocabulary_has_no_logits(tiny):
    variables, tokens = tiny
    assert variables["params"]["lm_head"]["kernel"].shape == (32, 128)
    assert Transformer(TINY).apply(variables, tokens).shape == (2, 16, 100)


def test_scanned_and_unscanned_agree(tiny):
    variables, tokens = tiny
    unscanned = Transformer(dataclasses.replace(TINY, scan_layers=False))
    params = unstack_layers(variables["params"])
    shapes = jax.eval_shape(unscanned.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(jnp.shape, nn.unbox(shapes)) == jax.tree.map(jnp.shape, params)
    expected = Transformer(TINY).apply(variables, tokens)
    np.testing.assert_allclose(unscanned.apply({"params": params}, tokens), expected, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(params), variables["params"])

    positions, written = jnp.broadcast_to(jnp.arange(16), (2, 16)), jnp.zeros((2, 1), bool)
    cache = KVCache.zeros(unscanned.config, rows=2, slots=16)
    inputs = ({"params": params}, tokens, positions, cache, written)
    x, new = unscanned.apply(*inputs, method="read")
    np.testing.assert_allclose(
        unscanned.apply({"params": params}, x, method="logits"), expected, atol=1e-6
    )
    assert [k.shape for k in new.k] == [(2, 2, 16, 8)] * 2


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_remat_changes_no_gradient_with_dropout_on(tiny, remat):
    variables, tokens = tiny

    def gradient(remat):
        model = Transformer(dataclasses.replace(TINY, remat=remat))

        def loss(variables):
            rngs = {"dropout": jax.random.key(2)}
            return (model.apply(variables, tokens, deterministic=False, rngs=rngs) ** 2).sum()

        return jax.jit(jax.grad(loss))(variables)

    # The same sums in the same order: only fusion may differ.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()),
        gradient("none"),
        gradient(remat),
    )


def test_a_document_in_a_packed_row_is_as_if_alone(tiny):
    variables, tokens = tiny
    model = Transformer(TINY)
    segments = jnp.array([[1] * 6 + [2] * 8 + [0] * 2] * 2)
    packed = model.apply(variables, tokens, segment_ids=segments)
    assert np.isfinite(packed).all()
    alone = model.apply(variables, tokens[:, 6:14])
    np.testing.assert_allclose(packed[:, 6:14], alone, atol=1e-6)


def test_the_future_does_not_leak(tiny):
    variables, tokens = tiny
    model = Transformer(TINY)
    changed = tokens.at[:, 9].add(1)
    before, after = model.apply(variables, tokens), model.apply(variables, changed)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert not np.allclose(before[:, 9:], after[:, 9:])


def test_dropout_acts_at_four_sites_and_only_in_training(tiny):
    variables, tokens = tiny

    def count(jaxpr):
        inner = sum(count(j) for e in jaxpr.eqns for j in jaxprs_in_params(e.params))
        # Probabilities take their bits from keys (random_unwrap).
        draws = ("random_bits", "random_unwrap")
        return inner + sum(e.primitive.name in draws for e in jaxpr.eqns)

    def site_count(deterministic, **changes):
        def apply(key):
            rngs = {"dropout": key}
            model = Transformer(dataclasses.replace(TINY, **changes))
            return model.apply(variables, tokens, deterministic=deterministic, rngs=rngs)

        return count(jax.make_jaxpr(apply)(jax.random.key(0)).jaxpr)

    # In the scan the three sites of a layer stand once for all layers.
    assert site_count(True) == 0
    assert site_count(False) == 4
    assert site_count(False, attention_dropout=0.0) == 3
    assert site_count(False, dropout=0.0, attention_dropout=0.1) == 1


def test_bfloat16_compute_keeps_float32_weights_and_logits(tiny):
    variables, tokens = tiny
    model = Transformer(dataclasses.replace(TINY, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = model.apply(variables, tokens)
    assert logits.dtype == jnp.float32
    assert model.apply(variables, tokens, method="hidden").dtype == jnp.bfloat16
    exact = Transformer(TINY).apply(variables, tokens)
    # bfloat16 has 8 bits; a dozen roundings in a row at the scale of the logits.
    np.testing.assert_allclose(logits, exact, atol=12 * 2**-8 * np.abs(exact).max())


def test_weights_start_as_released(tiny):
    variables, _ = tiny
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if "scale" in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(leaf, 1.0)
        else:
            # At least 2,048 draws each: a standard error of 1.6 %; four of them.
            np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.065)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_kv_heads": 3}, "model.num_heads=4 must be a multiple of model.num_kv_heads=3"),
        ({"head_dim": 7}, "model.head_dim=7 must be even"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must be in \[0, 1\)"),
        ({"remat": "some"}, "model.remat='some' is not one of none, full, dots, attention"),
        (
            {"attention": "flash"},
            "model.attention='flash' is not one of auto, reference",
        ),
        ({"attention": "splash"}, "model.attention='splash' has no dropout .* found 0.1: set"),
        ({"attention": "cudnn", "dropout": 0.0}, "model.attention='cudnn' needs model.dtype"),
        ({"attention_dropout": 1.0}, r"model.attention_dropout=1.0 must be in \[0, 1\)"),
        ({"dtype": "int8"}, "model.dtype='int8' is not one of float32"),
        ({"num_layers": 0}, "model.num_layers=0 must be positive"),
    ],
)
def test_impossible_configs_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_a_mesh_that_does_not_fit_names_the_size():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    six = dataclasses.replace(TINY, num_heads=6, num_kv_heads=2)
    with pytest.raises(ValueError, match="model.num_heads=6 is split over mesh axis tensor=4"):
        check_mesh(six, mesh)
    with pytest.raises(ValueError, match="model.num_kv_heads=2 is split over mesh axis tensor=4"):
        check_mesh(TINY, mesh)
    check_mesh(released(), mesh)
