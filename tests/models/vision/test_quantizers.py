"""Each quantizer against float64 formulas: codes, vectors, losses and gradients."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_formulas import (
    CONFIGS,
    EPS,
    LEVELS,
    D,
    N,
    _expected,
    _fsq_span,
    _latents,
    _run,
    _variables,
)

from emu3_jax import sharding
from emu3_jax.models.vision import quantizers, tokenizer_config
from emu3_jax.models.vision.quantizers import lfq, quantized, search
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig


def test_each_name_of_the_config_has_a_quantizer():
    assert set(tokenizer_config.QUANTIZERS) == set(quantizers.QUANTIZERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_vectors_and_losses(name):
    config = CONFIGS[name]
    # Small enough that the entropies at temperature 0.01 are not all zero.
    variables, x = _variables(config), _latents(scale=0.05 if name in ("lfq", "ibq") else 1.0)
    quantizer = quantizers.make_quantizer(config)
    found, codes_alone, entries = _run(quantizer)(variables, x)
    table = variables["params"]["embedding"].astype(np.float64) if variables else None
    codes, vectors, losses = _expected(config, x.astype(np.float64), table)
    assert found.codes.dtype == jnp.int32 and found.codes.shape == (5, 10)
    assert found.vectors.dtype == jnp.float32
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(codes_alone, codes)
    # The same numbers; the length of a vector may be rounded differently in another place.
    np.testing.assert_allclose(found.vectors, entries, rtol=4 * EPS if name == "cosine" else 0)
    np.testing.assert_allclose(found.vectors, vectors, rtol=8 * EPS)
    assert found.losses.keys() == losses.keys()
    for loss, value in losses.items():
        # Scores of up to 0.8, sums of four products, are rounded by 5 EPS of that and divided by
        # 0.01; log probabilities are off by as much, entropies by log(16) times that.
        bound = 5 * 0.8 * EPS / 0.01 * np.log(N) if loss == "entropy" else 50 * EPS * value
        np.testing.assert_allclose(found.losses[loss], value, rtol=0, atol=bound)
    if "entropy" in losses:
        assert abs(losses["entropy"]) > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_every_entry_has_its_own_code(name):
    """Of equal length for IBQ, where a longer entry would win; behind the squeezing for FSQ."""
    config = CONFIGS[name]
    variables = _variables(config, unit=name == "ibq")
    params = {"quantize": variables["params"]} if variables else {}
    entries = jax.jit(lambda p: quantizers.all_entries(config, p))(params)
    assert entries.shape == (config.codebook_size, D)
    latents = np.asarray(entries, np.float64)
    if name == "fsq":
        span, offset, shift = _fsq_span()
        inside = (latents * (np.array(LEVELS) // 2) + offset) / span
        latents = np.arctanh(np.clip(inside, -0.9999, 0.9999)) - shift
    _, found, _ = _run(quantizers.make_quantizer(config))(variables, latents.astype(np.float32))
    np.testing.assert_array_equal(found, np.arange(config.codebook_size))


# ----------------------------------------------------------------------------------- search


def test_blocks_give_the_codes_of_all_distances(monkeypatch):
    monkeypatch.setattr(search, "MAX_DISTANCES", N * 7)  # 7 rows a block: the last is part
    latents, table = _latents(), _variables(CONFIGS["nearest"])["params"]["embedding"]
    run = jax.jit(lambda x, e: (search.nearest_codes(x, e), search.aligned_codes(x, e)))
    nearest, aligned = run(latents, table)
    distances = ((latents[..., None, :] - table) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest, distances.argmin(axis=-1))
    np.testing.assert_array_equal(aligned, (latents @ table.T).argmax(axis=-1))


def test_blocks_are_of_all_parts_of_the_batch_and_back():
    rows = jnp.arange(1, 12.0)[:, None]
    blocks = search.in_blocks(rows, search.MAX_DISTANCES // 4)
    assert blocks.shape == (3, 4, 1)
    np.testing.assert_array_equal(blocks[0, :, 0], [1, 4, 7, 10])
    np.testing.assert_array_equal(blocks[2, :, 0], [3, 6, 9, 0])
    np.testing.assert_array_equal(search.out_of_blocks(blocks, 11), rows)


@pytest.mark.parametrize("name", ["nearest", "ibq"])
def test_distances_are_never_all_in_memory(name):
    """A 720-pixel image's 8,100 positions against 32,768 entries would be 1 GB of float32."""
    quantizer = quantizers.make_quantizer(VisionTokenizerConfig(quantizer=name))
    latents = jax.ShapeDtypeStruct((1, 90, 90, D), jnp.float32)
    variables = {"params": {"embedding": jax.ShapeDtypeStruct((32768, D), jnp.float32)}}

    def loss(variables, latents):
        out = quantizer.apply(variables, latents)
        return jnp.sum(out.vectors**2) + sum(out.losses.values())

    compiled = jax.jit(jax.grad(loss)).lower(variables, latents).compile()
    # One block of a search; for IBQ some of scores and probabilities, once more in the gradient.
    blocks = 3 if name == "nearest" else 12
    assert compiled.memory_analysis().temp_size_in_bytes < blocks * 2**26


def test_a_tie_goes_to_the_first_entry():
    table = jnp.array([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    codes = search.nearest_codes(jnp.array([[1.0, 0.0], [0.5, 0.5]]), table)
    np.testing.assert_array_equal(codes, [1, 1])


def test_the_table_starts_as_released():
    quantizer = quantizers.make_quantizer(VisionTokenizerConfig(codebook_size=64))
    table = nn.unbox(quantizer.init(jax.random.key(0), _latents()))["params"]["embedding"]
    assert table.shape == (64, D)
    assert 0.9 / 64 < np.abs(table).max() <= 1 / 64


# ----------------------------------------------------------------------------------- entropies


def test_groups_of_bits_bound_the_entropy_and_are_exact_when_independent(monkeypatch):
    rng = np.random.default_rng(0)
    independent = np.repeat(rng.normal(size=(1, 6)), 5, axis=0)  # one distribution: no mixture
    together = rng.normal(size=(5, 1)) * np.ones(6) * 8
    whole = jax.jit(lambda *xs: [lfq.entropy_of_mean(x) for x in xs])(independent, together)
    monkeypatch.setattr(lfq, "JOINT_BITS", 2)
    parts = jax.jit(lambda *xs: [lfq.entropy_of_mean(x) for x in xs])(independent, together)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)
    assert parts[1] > whole[1] + 0.5


def test_the_largest_lookup_free_codebook_needs_no_table():
    """8,100 positions against 2^18 codes would be 8 GB of float32."""
    config = VisionTokenizerConfig(
        quantizer="lfq", codebook_size=2**18, embed_dim=18, z_channels=18
    )
    latents = jax.ShapeDtypeStruct((1, 90, 90, 18), jnp.float32)
    loss = lambda x: quantizers.make_quantizer(config).apply({}, x).losses["entropy"]  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(latents).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**28


def test_entropy_is_finite_in_value_and_gradient_at_zero():
    value, slope = jax.value_and_grad(quantized.entropy)(jnp.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(slope).all()


# ----------------------------------------------------------------------------------- mesh


def test_a_mesh_gives_the_codes_losses_and_gradients_of_one_device(monkeypatch):
    """The entropy of a batch is that of all devices' latents together."""
    monkeypatch.setattr(search, "MAX_DISTANCES", N * 48)  # three blocks
    configs = {name: CONFIGS[name] for name in ("nearest", "ibq", "lfq")}
    variables = {name: _variables(config) for name, config in configs.items()}
    x = _latents((16, 3, 3), 0.05)

    def loss(variables, x):
        total, outs = 0.0, {}
        for name, config in configs.items():
            out = outs[name] = quantizers.make_quantizer(config).apply(variables[name], x)
            total += sum(out.losses.values()) + jnp.mean(out.vectors[..., 0] * x[..., 1])
        return total, outs

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    expected = run(variables, x)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    with jax.set_mesh(mesh):
        spread = jax.sharding.NamedSharding(mesh, sharding.partition_spec("batch"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        found = run(jax.device_put(variables, everywhere), jax.device_put(x, spread))
    for name in configs:
        np.testing.assert_array_equal(found[1][name].codes, expected[1][name].codes)
    # Sums in another order; gradients of entropies are up to 1 / 0.01 times larger than values.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_each_device_searches_for_its_own_latents(monkeypatch):
    """Also where the search is cut into blocks."""
    monkeypatch.setattr(search, "MAX_DISTANCES", N * 64)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    spread = jax.sharding.NamedSharding(mesh, sharding.partition_spec("batch"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    latents = jax.ShapeDtypeStruct((16, 4, 4, D), jnp.float32, sharding=spread)
    table = jax.ShapeDtypeStruct((N, D), jnp.float32, sharding=everywhere)
    text = jax.jit(search.nearest_codes).lower(latents, table).compile().as_text()
    assert f"f32[8,{N}]" in text and f"f32[64,{N}]" not in text
    assert "all-gather" not in text


# ----------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(quantizer="vq"), "quantizer must be one of nearest, .* found 'vq'"),
        (dict(gradient="st"), "gradient must be straight_through or rotation, found 'st'"),
        (
            dict(quantizer="ibq", gradient="rotation"),
            "gradient = 'rotation' needs quantizer = 'nearest' or 'cosine', found 'ibq'",
        ),
        (dict(quantizer="lfq"), r"codebook_size must be 2\^embed_dim = 16, found 32768"),
        (dict(codebook_size=2**31), "codebook_size must be at most 1073741824, found 2147483648"),
        (dict(fsq_levels=(8, 8)), r"fsq_levels = \[8, 8\] needs quantizer = 'fsq'"),
        (dict(quantizer="fsq"), r"fsq_levels must be 4 numbers of at least 2.* found \[\]"),
        (dict(quantizer="fsq", fsq_levels=(8, 8, 8, 1)), "4 numbers of at least 2"),
        (dict(quantizer="fsq", fsq_levels=(8, 8, 8)), "4 numbers of at least 2"),
        (
            dict(quantizer="fsq", fsq_levels=(8, 5, 5, 5)),
            r"product of fsq_levels \[8, 5, 5, 5\] = 1000, found 32768",
        ),
    ],
)
def test_combinations_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionTokenizerConfig(**fields)


def test_levels_are_read_from_a_list():
    config = dataclasses.replace(CONFIGS["fsq"], fsq_levels=list(LEVELS))
    assert config == CONFIGS["fsq"] and hash(config) == hash(CONFIGS["fsq"])
