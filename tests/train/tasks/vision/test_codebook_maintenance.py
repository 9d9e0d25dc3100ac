"""Maintenance of a table of entries: counts, revival, the k-means start, averages, drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.aot import hlo
from emu3_jax.models.vision.quantizers import maintenance
from emu3_jax.models.vision.quantizers.search import nearest_codes


def _data(positions=50, size=32, dim=4):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (positions, dim)), jax.random.normal(keys[1], (size, dim))


def test_usage_is_a_moving_average_of_hits():
    usage = maintenance.update_usage(jnp.array([1.0, 2.0, 0.0]), jnp.array([[2, 2], [0, 2]]), 0.9)
    np.testing.assert_allclose(usage, [0.9 + 0.1, 1.8, 0.3], rtol=1e-6)


def test_counts_over_a_mesh_are_those_of_the_whole_batch():
    codes = np.random.default_rng(0).integers(0, 8, (16, 3, 3))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    spread = jax.sharding.NamedSharding(mesh, sharding.partition_spec("batch"))
    counts = jax.jit(maintenance.code_counts, static_argnums=1)(jax.device_put(codes, spread), 8)
    np.testing.assert_array_equal(counts, np.bincount(codes.ravel(), minlength=8))


def test_perplexity_counts_the_codes_in_use():
    np.testing.assert_allclose(maintenance.perplexity(jnp.ones(7)), 7.0, rtol=1e-5)
    np.testing.assert_allclose(maintenance.perplexity(jnp.array([5.0, 0, 0])), 1.0, rtol=1e-5)


def test_revival_replaces_the_dead_alone_by_different_latents():
    latents, codebook = _data(positions=50, size=32)
    latents = latents + 100.0  # so that a revived entry cannot be mistaken for an old one
    usage = jnp.ones(32).at[jnp.array([0, 5, 31])].set(0.01)
    revive = jax.jit(maintenance.revive_dead_codes)
    revived, mask = revive(codebook, usage, latents, jax.random.key(1), 0.1)
    np.testing.assert_array_equal(np.flatnonzero(mask), [0, 5, 31])
    np.testing.assert_array_equal(revived[~mask], codebook[~mask])
    drawn = nearest_codes(revived[mask], latents)
    assert len(set(drawn.tolist())) == 3
    assert np.abs(revived[mask] - latents[drawn]).max() < 0.1
    other, _ = revive(codebook, usage, latents, jax.random.key(2), 0.1)
    assert not np.allclose(other[mask], revived[mask])


def test_revival_with_fewer_latents_than_dead_entries():
    latents, codebook = _data(positions=3, size=8)
    revived, mask = maintenance.revive_dead_codes(
        codebook, jnp.zeros(8), latents, jax.random.key(1), 0.1
    )
    assert mask.all()
    counts = np.bincount(nearest_codes(revived, latents), minlength=3)
    assert counts.min() >= 2
    assert len(np.unique(np.asarray(revived), axis=0)) == 8


def test_kmeans_finds_clusters_far_apart():
    """The start alone may put two entries into one of them; drawn by distance, it does not."""
    rng = np.random.default_rng(0)
    centres = 100.0 * rng.normal(size=(12, 3))
    latents = np.repeat(centres, 30, axis=0) + rng.normal(size=(360, 3))
    means = latents.reshape(12, 30, 3).mean(axis=1)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(360)
        shuffled = latents[order].astype(np.float32)
        codebook = np.asarray(maintenance.kmeans(shuffled, jax.random.key(seed), 12, 3))
        nearest = np.linalg.norm(codebook[:, None] - means, axis=-1).argmin(axis=1)
        assert sorted(nearest) == list(range(12))
        # Means of 30 float32 numbers of up to some hundreds.
        np.testing.assert_allclose(codebook, means[nearest], atol=30 * 400 * 2**-24)


def test_each_iteration_of_kmeans_is_that_of_numpy():
    latents = np.asarray(_data(positions=90)[0], np.float64)
    codebook = np.asarray(maintenance.kmeans(latents, jax.random.key(3), 7, 0), np.float64)
    assert all((row == latents.astype(np.float32)).all(axis=1).any() for row in codebook)
    for _ in range(4):
        codes = ((latents[:, None] - codebook) ** 2).sum(-1).argmin(axis=1)
        codebook = np.stack([latents[codes == k].mean(axis=0) for k in range(7)])
    found = maintenance.kmeans(latents, jax.random.key(3), 7, 4)
    np.testing.assert_allclose(found, codebook, atol=1e-5)  # four means of up to 90 numbers of 3


def test_kmeans_of_fewer_latents_than_entries_repeats_them_a_little_apart():
    latents = jnp.array([[0.0, 0.0], [10.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    codebook = np.asarray(maintenance.kmeans(latents, jax.random.key(0), 9, 0))
    assert len(np.unique(codebook, axis=0)) == 9
    nearest = np.asarray(nearest_codes(codebook, latents))
    assert set(nearest) == {0, 1, 3}  # 1 and 2 are equal
    # Five standard deviations of the noise.
    assert np.abs(codebook - latents[nearest]).max() < 5 * maintenance.REVIVAL_NOISE * 5.0


def test_kmeans_of_a_large_codebook_fits_into_memory():
    """65,536 latents against 32,768 entries would be 8 GB of float32."""
    latents = jax.ShapeDtypeStruct((65536, 4), jnp.float32)
    compiled = maintenance.kmeans.lower(latents, jax.random.key(0), 32768, 10).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**26


def test_kmeans_crosses_the_mesh_once_an_iteration_not_once_an_entry():
    entries, iterations = 64, 3
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    spread = jax.sharding.NamedSharding(mesh, sharding.partition_spec("batch"))
    latents = jax.ShapeDtypeStruct((1024, 4), jnp.float32, sharding=spread)
    with jax.set_mesh(mesh):
        lowered = maintenance.kmeans.lower(latents, jax.random.key(0), entries, iterations)
    found = hlo.collectives(lowered.compile().as_text())
    assert {c.kind for c in found} >= {"all-gather", "all-reduce"}
    assert max(c.times for c in found) <= iterations


@pytest.mark.parametrize("shape", [(0, 4), (2, 3, 4)])
def test_kmeans_of_no_latents(shape):
    with pytest.raises(ValueError, match=r"k-means needs latents of shape \[M, D\] .* found"):
        maintenance.kmeans(jnp.zeros(shape), jax.random.key(0), 4, 1)


def test_averages_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(6, 3))
    counts, sums = np.ones(6), codebook.copy()
    average = maintenance.start_average(jnp.asarray(codebook, jnp.float32))
    np.testing.assert_allclose(maintenance.averaged_codebook(average, 1e-5), codebook, rtol=1e-6)
    update = jax.jit(maintenance.update_average)
    for _ in range(3):
        latents, codes = rng.normal(size=(2, 10, 3)), rng.integers(0, 5, (2, 10))
        counts, sums = 0.8 * counts, 0.8 * sums
        for x, k in zip(latents.reshape(-1, 3), codes.ravel(), strict=True):
            counts[k] += 0.2
            sums[k] += 0.2 * x
        average = update(average, latents, codes, 0.8)
    smoothed = (counts + 0.1) / (counts.sum() + 6 * 0.1) * counts.sum()
    # Sums of 20 numbers of up to 3, some of which cancel.
    found = maintenance.averaged_codebook(average, 0.1)
    np.testing.assert_allclose(found, sums / smoothed[:, None], atol=20 * 3 * 2**-24)


def test_an_entry_without_latents_stays_finite():
    average = maintenance.CodebookAverage(jnp.array([5.0, 0.0]), jnp.array([[1.0], [0.0]]))
    np.testing.assert_allclose(maintenance.averaged_codebook(average), [[0.2], [0.0]], rtol=1e-5)


def test_drift_is_relative_to_the_width_of_the_table():
    rng = np.random.default_rng(0)
    old = 7.0 + 3.0 * rng.normal(size=(2000, 4))
    moved = old + np.array([0.0, 0.6, 0.8, 0.0])
    width = np.sqrt(((old - old.mean(axis=0)) ** 2).sum(-1).mean())
    assert maintenance.usage_drift(jnp.asarray(old), jnp.asarray(old)) == 0
    drift = maintenance.usage_drift(jnp.asarray(old), jnp.asarray(moved))
    np.testing.assert_allclose(drift, 1.0 / width, rtol=1e-5)
    other = 7.0 + 3.0 * rng.normal(size=(2000, 4))
    assert 1.2 < maintenance.usage_drift(jnp.asarray(old), jnp.asarray(other)) < 1.5
