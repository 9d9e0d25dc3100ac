"""LPIPS: how different two images look, as a distance of VGG16's features, in pure functions.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
2018, section 3, and version 0.1 of the authors' `lpips` package (net="vgg"). Results equal the
package's on the same weights.

Weights are a plain tree of arrays; `interop.vision.perceptual_weights` reads them from files:

  {"vgg": {"conv1_1": {"kernel": float [3, 3, in, out], "bias": float [out]}, … "conv5_3": …},
   "heads": five float [C], C the width of conv1_2, conv2_2, conv3_3, conv4_3, conv5_3}

Any widths work; VGG16 has 64, 128, 256, 512, 512. The heads weigh channels and are >= 0.
"""

import jax
import jax.numpy as jnp

from emu3_jax.models.vision.canvas import Canvas, cleared, mean_over_positions
from emu3_jax.models.vision.convolution import conv_2d

# Convolutions in each of the five blocks (VGG16: Simonyan and Zisserman 2014, table 1, column D).
BLOCKS = (2, 2, 3, 3, 3)
CONVS = tuple(f"conv{i}_{j}" for i, size in enumerate(BLOCKS, 1) for j in range(1, size + 1))
LAST_CONVS = tuple(f"conv{i}_{size}" for i, size in enumerate(BLOCKS, 1))

# The package's scaling layer, red, green, blue. It is what torchvision's networks expect (mean
# 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225 of values in [0, 1]) for values in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10  # the package's, added to the length of a feature vector

MIN_SIDE = 2 ** (len(BLOCKS) - 1)  # four poolings leave one pixel


def vgg16_features(vgg, pixels_BHWC, sizes=None) -> tuple[jax.Array, ...]:
    """VGG16's features after the last ReLU of each block.

    Args:
      vgg: the tree above; rounded to the type of the pixels.
      pixels_BHWC: float [B, H, W, 3], red, green, blue in [-1, 1]; any float type.
      sizes: int32 [B, 2], (H, W) of each image if it fills only the top left corner of the array;
        the features there are those of the image alone.

    Returns:
      Five arrays [B, H / 2^i, W / 2^i, C_i], rounded down, i = 0 .. 4, in the type of the pixels:
      relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.

    Raises:
      ValueError: not three channels, not floating, or a side below 16 pixels.
    """
    _check_pixels(pixels_BHWC)
    dtype = pixels_BHWC.dtype
    shift, scale = (jnp.asarray(numbers, jnp.float32) for numbers in (SHIFT, SCALE))
    x = ((pixels_BHWC - shift) / scale).astype(dtype)
    features = []
    for i, size in enumerate(BLOCKS, 1):
        if i > 1:
            x = _halved(x)
        canvas = _canvas(x, sizes, i - 1)
        for j in range(1, size + 1):
            layer = vgg[f"conv{i}_{j}"]
            x = conv_2d(
                cleared(x, canvas), jnp.asarray(layer["kernel"], dtype), 1, ((1, 1), (1, 1))
            )
            x = jax.nn.relu(x + jnp.asarray(layer["bias"], dtype))
        features.append(x)
    return tuple(features)


def means(features, sizes=None) -> list[jax.Array]:
    """Means over positions, [B, C_i] each, of arrays shaped as those of `vgg16_features`."""
    canvases = [_canvas(x, sizes, i) for i, x in enumerate(features)]
    return [
        mean_over_positions(x, canvas and canvas.inside(x.shape))
        for x, canvas in zip(features, canvases, strict=True)
    ]


def lpips(weights, a_BHWC, b_BHWC, sizes=None) -> jax.Array:
    """LPIPS between two batches of images: float32 [B], 0 for identical ones, otherwise above.

    The gradient is finite everywhere; all-zero features get none.

    Args:
      weights: the tree above.
      a_BHWC: float [B, H, W, 3] in [-1, 1]. Its type is that of the convolutions; distances are
        summed in float32 (in float64 if the pixels are).
      b_BHWC: likewise, of the same shape.
      sizes: as in `vgg16_features`, of both.

    Raises:
      ValueError: as in `vgg16_features`, or the shapes differ.
    """
    if a_BHWC.shape != b_BHWC.shape:
        raise ValueError(
            "lpips compares images of one shape, found "
            f"{list(a_BHWC.shape)} and {list(b_BHWC.shape)}"
        )
    # Two passes, not one over both: a side that needs no gradient then has no backward pass.
    sides = (vgg16_features(weights["vgg"], side, sizes) for side in (a_BHWC, b_BHWC))
    pairs = zip(*sides, strict=True)
    squares = [jnp.square(_unit_length(a) - _unit_length(b)) for a, b in pairs]
    distance_B = 0.0
    for mean_BC, head_C in zip(means(squares, sizes), weights["heads"], strict=True):
        distance_B += mean_BC @ jnp.asarray(head_C, mean_BC.dtype)
    return distance_B


def _canvas(x, sizes, halvings: int) -> Canvas | None:
    """Of images of these sizes after some halvings, which leave odd rows and columns out."""
    return None if sizes is None else Canvas(sizes >> halvings, x.shape[1:3])


def _check_pixels(pixels_BHWC) -> None:
    shape = list(pixels_BHWC.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"the perceptual distance needs pixels [B, H, W, 3], found {shape}")
    if min(shape[1:3]) < MIN_SIDE:
        raise ValueError(
            f"the perceptual distance needs sides of at least {MIN_SIDE} pixels (VGG16 halves them "
            f"four times), found {shape[1]} x {shape[2]}"
        )
    if not jnp.issubdtype(pixels_BHWC.dtype, jnp.floating):
        raise ValueError(
            "the perceptual distance needs floating-point pixels in [-1, 1], found "
            f"{pixels_BHWC.dtype}"
        )


def _halved(x):
    """The largest of each 2 x 2, an odd last row or column left out: [B, H // 2, W // 2, C].

    As maxima of slices: the gradient of `reduce_window` takes ten times as long on a CPU.
    """
    _, H, W, _ = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _unit_length(x):
    """Feature vectors divided by their length, in float32 at least; zero ones stay zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root's slope at zero is infinite, and infinite times zero is not a number. A ReLU prevents
    # that for zero features, but not for those whose squares are too small for the type.
    some = squares > 0
    return jnp.where(some, x / (jnp.sqrt(jnp.where(some, squares, 1)) + EPS), 0)
