"""Images and clips on a canvas are computed as if they were alone, whatever is around them."""

import jax
import numpy as np
import pytest
from tiny_vision_tokenizer import TINY, random_variables

from emu3_jax.data.codec.programs import transposed
from emu3_jax.models.vision import blocks, strips
from emu3_jax.models.vision.tokenizer import VisionTokenizer

FACTOR = TINY.spatial_factor
SIZES = np.array([[6, 8], [2, 8], [5, 3], [1, 1]], np.int32)
# Float32 rounding of sums in another order, through some thirty layers; values are about 1.
ROUNDING = dict(rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def tokenizer():
    """A module and variables without zeros, which would hide paths."""
    return VisionTokenizer(TINY), random_variables(TINY)


def _on_canvas(parts, dtype):
    """The parts in the corners of a canvas that is filled with what must not be read."""
    rank = parts[0].ndim
    sides = [max(part.shape[i] for part in parts) for i in range(rank)]
    around = np.nan if np.issubdtype(dtype, np.floating) else TINY.codebook_size - 1
    canvas = np.full((len(parts), *sides), around, dtype)
    for row, part in zip(canvas, parts, strict=True):
        row[tuple(map(slice, part.shape))] = part
    return canvas


def _pixels(size, frames=()):
    rng = np.random.default_rng(size.tolist())
    return rng.uniform(-1, 1, (*frames, *size * FACTOR, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "frames, large",
    [
        pytest.param((), True, id="images in strips"),
        pytest.param((8,), False, id="whole clips"),
        pytest.param((), False, id="whole images", marks=pytest.mark.slow),
        pytest.param((8,), True, id="clips in strips", marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_the_image_alone(tokenizer, frames, large, monkeypatch):
    if large:  # frames in strips, attention in blocks
        monkeypatch.setattr(strips, "LARGE_FRAME", 500)
        monkeypatch.setattr(strips, "STRIP", 4)
        monkeypatch.setattr(blocks, "MAX_PLAIN_POSITIONS", 20)
    module, variables = tokenizer

    @jax.jit
    def both_ways(pixels, codes, sizes=None):
        return (
            module.apply(variables, pixels, False, sizes, method="_latents"),
            module.apply(variables, codes, sizes, method="decode"),
        )

    images = [_pixels(size, frames) for size in SIZES]
    codes = [
        np.random.default_rng(0).integers(0, 64, (*[2] * len(frames), *size)) for size in SIZES
    ]
    found = both_ways(_on_canvas(images, np.float32), _on_canvas(codes, np.int32), SIZES)
    for i, (h, w) in enumerate(SIZES):
        latents, pixels = both_ways(images[i][None], codes[i][None])
        np.testing.assert_allclose(found[0][i][:, :h, :w], latents[0], **ROUNDING)
        there = found[1][i][..., : h * FACTOR, : w * FACTOR, :]
        np.testing.assert_allclose(there, pixels[0], **ROUNDING)


def test_frames_after_the_last_change_nothing(tokenizer):
    module, variables = tokenizer
    size = SIZES[2]
    clip, longer = _pixels(size, (8,)), _pixels(size, (16,))
    longer[:8] = clip
    latents = jax.jit(lambda x: module.apply(variables, x, False, method="_latents"))
    np.testing.assert_allclose(latents(longer[None])[0, :2], latents(clip[None])[0], **ROUNDING)
    decode = jax.jit(lambda c: module.apply(variables, c, method="decode"))
    codes = np.random.default_rng(0).integers(0, 64, (1, 4, *size))
    np.testing.assert_allclose(decode(codes)[0, :8], decode(codes[:, :2])[0], **ROUNDING)


@pytest.mark.parametrize("frames", [(), (8,)], ids=["images", "clips"])
def test_transposed_kernels_compute_transposed_images(tokenizer, frames):
    module, variables = tokenizer
    turned = transposed(variables)
    latents = jax.jit(lambda v, x: module.apply(v, x, False, method="_latents"))
    image = _pixels(SIZES[2], frames)[None]
    expected = latents(variables, image)
    found = latents(turned, image.swapaxes(-3, -2))
    np.testing.assert_allclose(found.swapaxes(2, 3), expected, **ROUNDING)
    assert np.abs(latents(variables, image.swapaxes(-3, -2)).swapaxes(2, 3) - expected).max() > 0.01


def test_frames_one_at_a_time_keep_their_sizes(tokenizer, monkeypatch):
    """As a single CPU computes large frames."""
    module, variables = tokenizer
    canvas = _on_canvas([_pixels(size) for size in SIZES], np.float32)
    apply = lambda: module.apply(variables, canvas, False, SIZES, method="_latents")  # noqa: E731
    together = jax.jit(apply)()
    monkeypatch.setattr("emu3_jax.models.cpu.LARGE_FRAME", 1)
    alone = jax.jit(apply)()
    for i, (h, w) in enumerate(SIZES):
        np.testing.assert_allclose(alone[i, :, :h, :w], together[i, :, :h, :w], **ROUNDING)


def test_a_trained_tokenizer_gives_the_same_codes():
    from emu3_jax import shipped
    from emu3_jax.train import weights

    module, variables = weights.load_vision_tokenizer(shipped.vision_tokenizer("nano"))
    factor = module.config.spatial_factor
    rng = np.random.default_rng(0)
    sizes = np.array([[8, 12], [3, 12], [8, 5]], np.int32)
    images = [  # smooth, as photographs are
        np.kron(rng.uniform(-1, 1, (h, w, 3)), np.ones((factor, factor, 1))).astype(np.float32)
        for h, w in sizes
    ]
    encode = jax.jit(lambda x, s=None: module.apply(variables, x, s, method="encode"))
    together = encode(_on_canvas(images, np.float32), sizes)
    for image, codes, (h, w) in zip(images, together, sizes, strict=True):
        np.testing.assert_array_equal(codes[:h, :w], encode(image[None])[0])
