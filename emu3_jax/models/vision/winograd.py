"""3x3 convolutions with 2.25 times fewer products: Winograd's minimal filtering, for CPUs.

Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3): a tile of 2 x 2
results needs 16 products for each pair of channels instead of 36, between 4 x 4 sums of inputs and
4 x 4 sums of weights; sums of these products are the results. The sums have another order, but the
same accuracy as direct ones. `cpu.winograd_pays` decides where it is used.
"""

import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import precision

# Positions in a strip: its sixteen transforms fit into the cache (measured at 32 to 256 columns).
STRIP = 4096


def conv_3x3(x: jax.Array, kernel: jax.Array, padding) -> jax.Array:
    """The convolution with stride 1, strip by strip. Do not differentiate it: see `convolution`.

    Args:
      x: float32 [F, H, W, I].
      kernel: float32 [3, 3, I, O].
      padding: zeros around a frame, ((top, bottom), (left, right)).

    Returns:
      Float32 [F, H + top + bottom - 2, W + left + right - 2, O].
    """
    frames, height, width = (
        x.shape[0],
        *(size + sum(sides) - 2 for size, sides in zip(x.shape[1:3], padding, strict=True)),
    )
    strips = -(-height * width // STRIP)
    rows, columns = -(-height // (2 * strips)), -(-width // 2)  # of tiles, in a strip
    strips = -(-height // (2 * rows))
    sizes = (2 * rows * strips - height, 2 * columns - width)
    ends = [(start, end + more) for (start, end), more in zip(padding, sizes, strict=True)]
    # The compiler would compute the weights of all layers first, and hold them. A zero that it
    # cannot fold (nothing is below minus infinity) makes them wait for the input of their layer.
    some = x[0, 0, 0, 0]
    zero = (some < -jnp.inf).astype(x.dtype)
    weights = [_weight_sums(row) for row in _weight_sums(kernel + zero)]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))

    def strip(frame, top):
        size = (1, 2 * rows + 2, 2 * columns + 2, x.shape[-1])
        window = jax.lax.dynamic_slice(x, (frame, top, 0, 0), size)
        window = window.reshape(rows + 1, 2, columns + 1, 2, -1)

        def tile_inputs(i, j):  # row i and column j of the inputs of every tile
            return window[i // 2 : i // 2 + rows, i % 2, j // 2 : j // 2 + columns, j % 2]

        inputs = [_input_sums([tile_inputs(i, j) for j in range(4)]) for i in range(4)]
        inputs = [_input_sums(column) for column in zip(*inputs, strict=True)]
        sums = []
        for j in range(4):
            products = [
                jnp.dot(inputs[j][i], weights[i][j], precision=precision(x.dtype)) for i in range(4)
            ]
            sums.append(_result_sums(products))
        pairs = [jnp.concatenate(_result_sums(row), -1) for row in zip(*sums, strict=True)]
        return jnp.stack(pairs, axis=1).reshape(1, 2 * rows, 2 * columns, -1)

    def write(i, y):
        frame, top = i // strips, i % strips * 2 * rows
        return jax.lax.dynamic_update_slice(y, strip(frame, top), (frame, top, 0, 0))

    # Zeros would be one constant shared by all such loops: held throughout, and copied.
    y = jnp.full((frames, 2 * rows * strips, 2 * columns, kernel.shape[-1]), some)
    y = jax.lax.fori_loop(0, frames * strips, write, y)
    return y[:, :height, :width]


def _weight_sums(g):
    """Three weights along the first axis as the four that are multiplied (G of the paper)."""
    return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]


def _input_sums(d):
    """Four neighbours along an axis as the four that are multiplied (B of the paper)."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _result_sums(m):
    """Four products as the two results of a tile along an axis (A of the paper)."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
