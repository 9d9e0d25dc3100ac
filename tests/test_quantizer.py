"""The nearest codebook entry, its losses, and the care of unused entries."""

import jax
import jax.numpy as jnp
import numpy as np

from emu3_jax.models import quantizer


def _data(positions=50, size=32, dim=4):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (positions, dim)), jax.random.normal(keys[1], (size, dim))


def test_nearest_codes_is_brute_force():
    latents, codebook = _data()
    distances = np.sum((np.asarray(latents)[:, None] - np.asarray(codebook)) ** 2, axis=-1)
    codes = quantizer.nearest_codes(latents.reshape(5, 10, 4), codebook)
    assert codes.shape == (5, 10) and codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes.reshape(-1), distances.argmin(axis=-1))


def test_chunks_give_the_same_codes(monkeypatch):
    latents, codebook = _data()
    whole = quantizer.nearest_codes(latents, codebook)
    monkeypatch.setattr(quantizer, "MAX_DISTANCES", 32 * 7)  # 7 positions a chunk: the last is part
    np.testing.assert_array_equal(quantizer.nearest_codes(latents, codebook), whole)


def test_distances_are_never_all_in_memory():
    """A 720-pixel image's 8,100 positions against 32,768 entries would be 1 GB of float32."""
    latents = jax.ShapeDtypeStruct((1, 90, 90, 4), jnp.float32)
    codebook = jax.ShapeDtypeStruct((32768, 4), jnp.float32)
    compiled = jax.jit(quantizer.nearest_codes).lower(latents, codebook).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 2**26


def test_a_tie_goes_to_the_first_entry():
    codebook = jnp.array([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    codes = quantizer.nearest_codes(jnp.array([[1.0, 0.0], [0.5, 0.5]]), codebook)
    np.testing.assert_array_equal(codes, [1, 1])


def test_codebook_starts_as_released():
    codebook = quantizer.Codebook(64, 4)
    variables = codebook.init(jax.random.key(0), jnp.zeros((1,), jnp.int32), method="entries")
    table = variables["params"]["embedding"].unbox()
    assert table.shape == (64, 4)
    assert 0.9 / 64 < np.abs(table).max() <= 1 / 64


def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other():
    latents, codebook = _data()
    raw = codebook[quantizer.nearest_codes(latents, codebook)]
    np.testing.assert_allclose(quantizer.straight_through(latents, raw), raw, atol=1e-6)
    both = jax.grad(lambda a, b: jnp.sum(quantizer.straight_through(a, b) * 3.0), argnums=(0, 1))
    to_latents, to_raw = both(latents, raw)
    np.testing.assert_array_equal(to_latents, np.full_like(latents, 3.0))
    np.testing.assert_array_equal(to_raw, np.zeros_like(raw))


def test_each_loss_moves_its_own_side():
    latents, codebook = _data()
    raw = codebook[quantizer.nearest_codes(latents, codebook)]
    expected = np.mean((np.asarray(latents) - np.asarray(raw)) ** 2)
    for loss, moved, still in (
        (quantizer.commitment_loss, 0, 1),
        (quantizer.codebook_loss, 1, 0),
    ):
        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(latents, raw)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.abs(gradients[moved]).max() > 0
        assert np.abs(gradients[still]).max() == 0


def test_usage_is_a_moving_average_of_hits():
    usage = quantizer.update_usage(jnp.array([1.0, 2.0, 0.0]), jnp.array([[2, 2], [0, 2]]), 0.9)
    np.testing.assert_allclose(usage, [0.9 + 0.1, 1.8, 0.3], rtol=1e-6)


def test_perplexity_counts_the_codes_in_use():
    np.testing.assert_allclose(quantizer.perplexity(jnp.ones(7)), 7.0, rtol=1e-5)
    np.testing.assert_allclose(quantizer.perplexity(jnp.array([5.0, 0, 0])), 1.0, rtol=1e-5)


def test_revival_replaces_the_dead_alone_by_different_latents():
    latents, codebook = _data(positions=50, size=32)
    latents = latents + 100.0  # so that a revived entry cannot be mistaken for an old one
    usage = jnp.ones(32).at[jnp.array([0, 5, 31])].set(0.01)
    revive = jax.jit(quantizer.revive_dead_codes)
    revived, mask = revive(codebook, usage, latents, jax.random.key(1), 0.1)
    np.testing.assert_array_equal(np.flatnonzero(mask), [0, 5, 31])
    np.testing.assert_array_equal(revived[~mask], codebook[~mask])
    drawn = quantizer.nearest_codes(revived[mask], latents)
    assert len(set(drawn.tolist())) == 3
    assert np.abs(revived[mask] - latents[drawn]).max() < 0.1
    other, _ = revive(codebook, usage, latents, jax.random.key(2), 0.1)
    assert not np.allclose(other[mask], revived[mask])


def test_revival_with_fewer_latents_than_dead_entries():
    latents, codebook = _data(positions=3, size=8)
    revived, mask = quantizer.revive_dead_codes(
        codebook, jnp.zeros(8), latents, jax.random.key(1), 0.1
    )
    assert mask.all()
    counts = np.bincount(quantizer.nearest_codes(revived, latents), minlength=3)
    assert counts.min() >= 2
    assert len(np.unique(np.asarray(revived), axis=0)) == 8
