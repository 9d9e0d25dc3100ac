"""Discriminators: torch's figures, lengths of clips, errors, layout over a mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import GOLDEN

from emu3_jax import sharding
from emu3_jax.aot import hlo
from emu3_jax.models.vision.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    frames_side_by_side,
)
from emu3_jax.sharding import MeshConfig

FIGURES = GOLDEN / "discriminator.npz"
TINY = DiscriminatorConfig(width=4, layers=2, norm_groups=2)


def _params(config, shape):
    init = jax.jit(PatchDiscriminator(config).init)
    return nn.unbox(init(jax.random.key(0), jnp.zeros(shape)))["params"]


def test_frames_against_torch_on_the_same_weights():
    golden = dict(np.load(FIGURES))
    pixels, logits = golden.pop("pixels"), golden.pop("logits")
    params = {}
    for name, value in golden.items():
        layer, kind = name.split(".")
        if value.ndim == 4:
            kind, value = "kernel", value.transpose(2, 3, 1, 0)
        elif layer.startswith("norm") and kind == "weight":
            kind = "scale"
        params.setdefault(layer, {})[kind] = value
    found = PatchDiscriminator(TINY).apply({"params": params}, pixels.transpose(0, 2, 3, 1))
    assert found.dtype == jnp.float32
    # Sums of at most 256 float32 products of about 1, through four layers: 1e-7 x sqrt(256) x 4.
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_frames_side_by_side_give_a_3d_convolution(stride, frames):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, 5, 6, 2))
    kernel = rng.normal(size=(3, 4, 4, 2, 3))
    stacked, flat = (np.asarray(a) for a in frames_side_by_side(x, kernel, stride))
    found = np.einsum("fhwi,hwio->fo", stacked[:, :4, :4], flat)  # one position is enough
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    expected = [
        np.einsum("bthwi,thwio->bo", padded[:, t : t + 3, :4, :4], kernel)
        for t in range(0, frames, stride)
    ]
    np.testing.assert_allclose(found.reshape(2, -1, 3), np.stack(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((2, 64, 64, 3), (2, 6, 6)),
        ((2, 24, 41, 3), (2, 1, 3)),
        ((2, 1, 24, 24, 3), (2, 1, 1, 1)),
        ((2, 4, 24, 24, 3), (2, 2, 1, 1)),
        ((2, 8, 24, 24, 3), (2, 2, 1, 1)),
        ((2, 32, 24, 24, 3), (2, 4, 1, 1)),
    ],
)
def test_sizes_of_the_logits_and_one_set_of_weights_for_all_lengths(shape, expected):
    model = PatchDiscriminator(DiscriminatorConfig())
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, jnp.zeros(shape))
    assert jax.eval_shape(model.apply, variables, jnp.zeros(shape)).shape == expected
    if len(shape) == 5:
        of_four = jax.eval_shape(model.init, key, jnp.zeros((1, 4, 24, 24, 3)))
        assert nn.unbox(of_four) == nn.unbox(variables)


def test_an_image_is_judged_alone_and_frames_of_a_clip_together():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 12, 12, 3)).astype(np.float32)
    model = PatchDiscriminator(TINY)
    for pixels in (x[:, 0], x):
        params = _params(TINY, pixels.shape)
        judge = jax.jit(lambda y, params=params: model.apply({"params": params}, y))
        logits, neighbour = judge(pixels), pixels.copy()
        neighbour[1] *= -3
        np.testing.assert_allclose(judge(neighbour)[0], logits[0], rtol=1e-6, atol=1e-8)
    moved = x.copy()
    moved[:, 3] *= -1
    assert (np.abs(judge(moved) - logits) > 1e-3 * np.abs(logits).max()).all()


def test_weights_start_as_pix2pix_does():
    params = _params(DiscriminatorConfig(width=16, norm_groups=8), (1, 24, 24, 3))
    kernel = params["conv_3"]["kernel"]
    assert kernel.shape == (4, 4, 64, 128)
    # 131,072 draws: the spread is known to 0.2 %.
    assert float(jnp.std(kernel)) == pytest.approx(0.02, rel=0.01)
    assert "bias" in params["conv_0"] and "bias" not in params["conv_1"]
    assert not params["logits"]["bias"].any()


def test_weights_and_moments_lie_in_pieces_over_fsdp():
    mesh = sharding.make_mesh(MeshConfig(fsdp=8))
    optimizer = optax.adam(1e-3)

    def start(key):
        params = PatchDiscriminator(DiscriminatorConfig()).init(key, jnp.zeros((1, 4, 24, 24, 3)))
        return params, optimizer.init(params)

    abstract = jax.eval_shape(start, jax.random.key(0))
    shardings = sharding.state_shardings(abstract, mesh)
    leaves = zip(jax.tree.leaves(nn.unbox(abstract)), jax.tree.leaves(shardings), strict=True)
    whole = held = 0
    for leaf, here in leaves:
        whole += leaf.size
        held += np.prod(here.shard_shape(leaf.shape))
    assert held < whole / 8 * 1.1


def test_eight_devices_give_the_gradient_of_one_and_gather_kernels_alone():
    model, rng = PatchDiscriminator(TINY), np.random.default_rng(0)
    pixels = rng.normal(size=(8, 4, 12, 12, 3)).astype(np.float32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), nn.unbox(boxed))
    gradient = jax.grad(lambda p, x: jnp.mean(jnp.square(model.apply({"params": p}, x))))
    expected = jax.jit(gradient)(params, pixels)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        split = jax.device_put(params, sharding.state_shardings(boxed, mesh))
        rows = jax.device_put(pixels, jax.NamedSharding(mesh, sharding.partition_spec("batch")))
        compiled = jax.jit(gradient).lower(split, rows).compile()
        found = compiled(split, rows)
    gathered = {
        one.shape for one in hlo.collectives(compiled.as_text()) if one.kind == "all-gather"
    }
    kernels = [x for x in jax.tree.leaves(split) if not x.sharding.is_fully_replicated]
    assert gathered == {x.shape for x in kernels} and len(kernels) == TINY.layers
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # Sums of up to 8 x 4 x 6 x 6 float32 terms in another order: 2^-24 sqrt(1152), four layers.
        limit = 4 * 1152**0.5 * 2.0**-24 * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(width=0), "width must be a whole number from 1, found 0"),
        (dict(layers=1.5), "layers must be a whole number from 1, found 1.5"),
        (dict(norm_groups=True), "norm_groups must be a whole number from 1, found True"),
        (dict(width=4), "norm_groups = 32 must divide 2 x width = 8"),
        (dict(dtype="float64"), "dtype must be one of float32, bfloat16, float16, found 'float64'"),
        (dict(param_dtype="int8"), "param_dtype must be one of"),
    ],
)
def test_a_wrong_config(change, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**change)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 23, 64, 3), "23x64 pixels are too small .* layers = 3: it needs at least 24x24"),
        ((1, 4, 64, 8, 3), "64x8 pixels are too small"),
        ((24, 24, 3), r"images \[B, H, W, 3\] or clips .* found an array of shape \[24, 24, 3\]"),
        ((1, 24, 24, 4), "found an array of shape"),
    ],
)
def test_pixels_that_cannot_be_judged(shape, message):
    model = PatchDiscriminator(DiscriminatorConfig())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
