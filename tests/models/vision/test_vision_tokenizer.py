"""The vision tokenizer against the released code's figures, and what holds at any config."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDEN
from tiny_vision_tokenizer import TINY, random_variables

from emu3_jax import sharding
from emu3_jax.interop.vision import tokenizer_files as interop
from emu3_jax.models import cpu
from emu3_jax.models.vision import blocks
from emu3_jax.models.vision.convolution import causal_conv_3d
from emu3_jax.models.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

RELEASED = GOLDEN / "vision_tokenizer"


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "vision_tokenizer.npz")
    return {
        name: np.moveaxis(array, -3, -1) if "codes" not in name else array
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def released():
    return interop.load_module(RELEASED)


@pytest.fixture(scope="module")
def tiny():
    """A tokenizer of random numbers, so that no norm, statistic or entry has a trivial value."""
    model, variables = VisionTokenizer(TINY), random_variables(TINY)
    # The 64 latents of some clip as the codebook: codes of other pixels are then of many kinds.
    latents = jax.jit(lambda v, x: model.apply(v, x).latents)(variables, _pixels((1, 16, 8, 8, 3)))
    variables["params"]["quantize"]["embedding"] = np.asarray(latents).reshape(64, 4)
    return model, variables


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _apply(model, variables, array, method=None):
    return model.apply(variables, array, method=method)


def _pixels(shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_golden(released, golden, kind):
    model, variables = released
    codes = _apply(model, variables, golden[kind], method="encode")
    np.testing.assert_array_equal(codes, golden[f"{kind}_codes"])
    decoded = _apply(model, variables, golden[f"{kind}_codes"], method="decode")
    assert decoded.dtype == jnp.float32
    np.testing.assert_allclose(decoded, golden[f"{kind}_decoded"], rtol=0, atol=2e-4)


def test_released_size():
    config = VisionTokenizerConfig()
    assert (config.spatial_factor, config.temporal_downsample_factor) == (8, 4)
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = nn.unbox(jax.eval_shape(VisionTokenizer(config).init, jax.random.key(0), pixels))
    counts = {
        name: sum(array.size for array in jax.tree.leaves(tree)) for name, tree in shapes.items()
    }
    # 72 numbers in the file's BatchNorm buffers: 64 statistics and 8 counters.
    assert counts == {"params": 270_740_287, "batch_stats": 64}
    pairs = interop.key_map(config)
    assert len(pairs) + len(interop.counters(pairs)) == 495


def test_still_is_the_repeated_clip(tiny):
    model, variables = tiny
    still = _pixels((2, 8, 12, 3), seed=3)
    repeated = jnp.repeat(still[:, None], 4, axis=1)
    codes = _apply(model, variables, still, method="encode")
    clip_codes = _apply(model, variables, repeated, method="encode")
    assert codes.shape == (2, 4, 6) and clip_codes.shape == (2, 1, 4, 6)
    np.testing.assert_array_equal(codes, clip_codes[:, 0])
    assert len(np.unique(codes)) > 8
    decoded = _apply(model, variables, codes, method="decode")
    clip = _apply(model, variables, clip_codes, method="decode")
    np.testing.assert_allclose(decoded, clip[:, 0], atol=1e-5)
    # The temporal part is not idle for a still: later frames of the clip differ from the first.
    assert np.abs(clip[:, 3] - clip[:, 0]).max() > 1e-3


def test_a_still_runs_the_frame_networks_once(tiny):
    model, variables = tiny

    def flops(pixels):
        run = jax.jit(lambda v, x: model.apply(v, x).pixels)
        return run.lower(variables, pixels).cost_analysis()["flops"]

    assert flops(_pixels((1, 16, 16, 3))) < 0.4 * flops(_pixels((1, 4, 16, 16, 3)))


def test_large_frames_go_one_by_one_on_a_cpu_alone(tiny, monkeypatch):
    model, variables = tiny
    clips = _pixels((2, 8, 8, 12, 3), seed=3)

    def encode(train=False):
        def run(v, x):
            if train:
                return model.apply(v, x, train=True, mutable=["batch_stats"])[0].codes
            return model.apply(v, x, method="encode")

        # A new function each time: what was traced before must not be found again.
        loops = str(jax.make_jaxpr(run)(variables, clips)).count("scan[")
        return np.asarray(jax.jit(run)(variables, clips)), loops

    (codes, search), (_, searches) = encode(), encode(train=True)
    assert len(np.unique(codes)) > 8
    monkeypatch.setattr(cpu, "LARGE_FRAME", 8 * 12 * TINY.ch)
    again, loops = encode()
    assert loops == search + 1
    np.testing.assert_array_equal(again, codes)
    assert encode(train=True)[1] == searches
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])):
        assert encode()[1] == search
    monkeypatch.setattr(cpu, "LARGE_FRAME", 8 * 12 * TINY.ch + 1)
    assert encode()[1] == search


def test_later_frames_do_not_change_earlier_codes(tiny):
    model, variables = tiny
    clip = _pixels((1, 12, 8, 8, 3), seed=3)
    other = clip.at[:, 8:].set(_pixels((1, 4, 8, 8, 3), seed=5))
    codes = _apply(model, variables, clip, method="encode")
    other_codes = _apply(model, variables, other, method="encode")
    np.testing.assert_array_equal(codes[:, :2], other_codes[:, :2])
    assert (codes[:, 2] != other_codes[:, 2]).any()
    frames = _apply(model, variables, codes, method="decode")
    changed = codes.at[:, 2].add(1) % TINY.codebook_size
    other_frames = _apply(model, variables, changed, method="decode")
    np.testing.assert_allclose(frames[:, :8], other_frames[:, :8], atol=1e-5)
    assert np.abs(frames[:, 8:] - other_frames[:, 8:]).max() > 1e-3


def test_causal_convolution_is_the_padded_3d_one():
    x = _pixels((2, 6, 5, 7, 3))
    for shape, stride in (((3, 3, 3), 1), ((4, 3, 3), 2), ((3, 1, 1), 1)):
        kernel = jax.random.normal(jax.random.key(1), (*shape, 3, 4))
        side = shape[1] // 2
        expected = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, 1, 1),
            ((2, 0), (side, side), (side, side)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        y = causal_conv_3d(x, kernel, stride)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_blockwise_attention_is_the_plain_one():
    q, k, v = (_pixels((2, 50, 8), seed) * 4 for seed in range(3))

    def loss(attend):
        return lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v)))

    blockwise = lambda q, k, v: blocks.blockwise_attention(q, k, v, block=16)  # noqa: E731
    plain = blocks.plain_attention
    # Scores, sums of 8 products of up to 16 over sqrt(8), reach 45, which float32 rounds by
    # 45 / 2^24 once or twice. The weights differ by as much in proportion, times values of up
    # to 4, and in the gradients once more times queries, keys or values of up to 4.
    rounding = 2 * 45 * 2**-24 * 4
    np.testing.assert_allclose(blockwise(q, k, v), plain(q, k, v), atol=rounding)
    for got, expected in zip(
        jax.grad(loss(blockwise), (0, 1, 2))(q, k, v),
        jax.grad(loss(plain), (0, 1, 2))(q, k, v),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=4 * rounding)


def test_large_frames_attend_blockwise():
    """The 16,384^2 scores of a 1,024-pixel image would be 1 GiB; a block of them is 32 MiB."""
    config = dataclasses.replace(TINY, ch=4)
    block = blocks.AttnBlock(config)
    x = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
    variables = nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x))
    compiled = jax.jit(block.apply).lower(variables, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**28


def test_training_call(tiny):
    model, variables = tiny
    params, stats = variables["params"], variables["batch_stats"]

    def loss(params, pixels):
        output, new = model.apply(
            {"params": params, "batch_stats": stats}, pixels, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((output.pixels - pixels) ** 2), (output, new["batch_stats"])

    gradients, _ = jax.jit(jax.grad(loss, has_aux=True))(params, _pixels((2, 8, 8, 3)))
    # Straight-through: the reconstruction teaches the encoder and leaves the codebook alone.
    assert np.abs(gradients["encoder"]["conv_in"]["kernel"]).max() > 0
    assert np.abs(gradients["quantize"]["embedding"]).max() == 0
    for shape, grid in (((2, 8, 8, 3), (2, 4, 4)), ((1, 8, 8, 8, 3), (1, 2, 4, 4))):
        pixels = _pixels(shape)
        _, (output, new_stats) = jax.jit(loss)(params, pixels)
        assert output.pixels.shape == shape and output.codes.shape == grid
        entries = params["quantize"]["embedding"][output.codes.reshape(output.latents.shape[:-1])]
        np.testing.assert_array_equal(output.vectors, entries)
        distance = np.mean((np.asarray(output.latents) - entries) ** 2)
        for name in ("commitment", "codebook"):
            np.testing.assert_allclose(output.losses[name], distance, rtol=1e-5)
        moved = jax.tree.map(lambda a, b: bool((a != b).all()), stats, new_stats)
        assert all(jax.tree.leaves(moved))


def test_running_statistics_follow_the_batch(tiny):
    """A tenth of the batch's statistics enters each step, as with torch's momentum of 0.1."""
    model, variables = tiny
    pixels = _pixels((2, 4, 8, 8, 3))

    @jax.jit
    def run(variables):
        _, state = model.apply(
            variables,
            pixels,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "time_conv_1",
        )
        down = state["intermediates"]["encoder"]["time_conv_1"]["__call__"][0]
        return nn.silu(down), state["batch_stats"]["encoder"]

    before, new = run(variables)
    new = new["time_res_stack_0"]["norm1"]
    old = variables["batch_stats"]["encoder"]["time_res_stack_0"]["norm1"]
    for name, value in (("mean", before.mean((0, 1, 2, 3))), ("var", before.var((0, 1, 2, 3)))):
        expected = 0.9 * old[name] + 0.1 * value
        np.testing.assert_allclose(new[name], expected, atol=1e-5)


def test_dropout_only_in_training(tiny):
    _, variables = tiny
    model = VisionTokenizer(dataclasses.replace(TINY, dropout=0.5))
    pixels = _pixels((1, 8, 8, 3))

    @functools.partial(jax.jit, static_argnames="train")
    def latents(key, train):
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        return model.apply(variables, pixels, train=train, rngs=rngs, mutable=mutable)[0].latents

    one, two = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(latents(one, False), latents(two, False))
    assert np.abs(latents(one, True) - latents(two, True)).max() > 1e-3


def test_bfloat16_compute_keeps_float32_outside(tiny):
    model = VisionTokenizer(dataclasses.replace(TINY, dtype="bfloat16"))
    pixels, variables = _pixels((1, 8, 8, 3)), tiny[1]
    output = _apply(model, variables, pixels)
    exact = _apply(tiny[0], variables, pixels)
    assert 1e-4 < np.abs(output.latents - exact.latents).max() < 0.3
    assert output.pixels.dtype == output.latents.dtype == jnp.float32


def test_axis_names_are_boxed_with_the_parameters():
    variables = jax.eval_shape(
        VisionTokenizer(TINY).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    )
    params = variables["params"]
    assert params["quantize"]["embedding"].names == ("code", None)
    assert params["encoder"]["conv_in"]["kernel"].names == (None,) * 4
    block = params["decoder"]["mid"]["block_1"]
    assert block["conv1"]["kernel"].names == (None, None, None, "conv_out")
    assert block["norm1"]["norm_layer"]["scale"].names == ("norm",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(ch=10), "multiple of norm_groups"),
        (dict(embed_dim=8), "must equal z_channels"),
        (dict(temporal_downsample_factor=3), "power of two"),
        (dict(attn_resolutions=(2,)), "levels 0 to 1"),
        (dict(ch_mult=()), "at least one level"),
        (dict(codebook_size=0), "codebook_size must be at least 1"),
        (dict(dropout=1.0), r"dropout must lie in \[0, 1\)"),
        (dict(dtype="int8"), "dtype must be one of"),
    ],
)
def test_config_errors(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 9, 8, 3), "multiples of 2, found 9 x 8"),
        ((1, 6, 8, 8, 3), "multiple of 4, found 6"),
        ((1, 1, 8, 8, 3), "multiple of 4, found 1"),
        ((1, 8, 8, 4), r"\[B, H, W, 3\]"),
        ((8, 8, 3), r"\[B, H, W, 3\]"),
    ],
)
def test_pixel_errors(tiny, shape, words):
    model, variables = tiny
    with pytest.raises(ValueError, match=words):
        _apply(model, variables, jnp.zeros(shape), method="encode")


def test_bytes_are_no_pixels(tiny):
    model, variables = tiny
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], found uint8; .*to_model converts"):
        _apply(model, variables, jnp.zeros((1, 8, 8, 3), jnp.uint8), method="encode")


def test_code_errors(tiny):
    model, variables = tiny
    for codes in (jnp.zeros((4, 4), jnp.int32), jnp.zeros((1, 4, 4), jnp.float32)):
        with pytest.raises(ValueError, match="codes must be integers"):
            _apply(model, variables, codes, method="decode")
