"""Frames too large to be held several times: the same layers, one strip of rows at a time.

At 1024 x 1024 pixels one feature map of the released decoder takes 2 GiB. `Rows` is a frame that is
not stored: it can compute any of its rows from an array that is. Layers turn `Rows` into `Rows`;
`whole` and `added` compute them. Convolutions compute the rows around a strip again, so that all
sums equal those of the whole frame.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Frames of more numbers than this, 256 MiB of float32, are processed in strips: 512 x 512 positions
# of 512 channels are, of 256 channels are not.
LARGE_FRAME = 2**26
# Rows of a strip, at most; 32 rows of 1024 positions and 512 channels are 64 MiB.
STRIP = 32

Read = Callable[[Any, int], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Frames [F, H, W, C] that are computed row by row.

    Attributes:
      source: float [F, h, w, c], the array that the rows are computed from.
      shape: (F, H, W, C).
      make: (read, start, count) -> float [F, count, W, C], the rows from `start` on; rows outside
        the frame are any finite numbers. `read(start, count)` returns rows of `source`.
    """

    source: jax.Array
    shape: tuple[int, int, int, int]
    make: Callable[[Read, Any, int], jax.Array]

    def rows(self, start, count: int) -> jax.Array:
        """`count` rows from `start` on, computed from the source."""
        return self.make(lambda *where: _read(self.source, *where), start, count)

    def then(self, function: Callable[[jax.Array, Any], jax.Array], channels: int) -> "Rows":
        """Followed by `function(rows, start)`, which treats each row alone."""
        shape = (*self.shape[:-1], channels)
        return Rows(
            self.source, shape, lambda read, *where: function(self.make(read, *where), where[0])
        )

    def around(self, halo: int, function: Callable[[jax.Array], jax.Array], channels: int):
        """Followed by `function`, which reads `halo` more rows on both sides, zeros outside."""

        def make(read, start, count):
            rows = self.make(read, start - halo, count + 2 * halo)
            index = start - halo + jnp.arange(count + 2 * halo)
            inside = (index >= 0) & (index < self.shape[1])
            return function(jnp.where(inside[:, None, None], rows, 0))

        return Rows(self.source, (*self.shape[:-1], channels), make)

    def doubled(self, function: Callable[[jax.Array], jax.Array], channels: int) -> "Rows":
        """Followed by `function`: twice the rows and columns, each from three rows around it."""
        F, H, W, _ = self.shape
        seen = self.around(1, lambda rows: rows, self.shape[-1])

        def make(read, start, count):
            first, several = start // 2, count // 2 + 1
            rows = function(seen.make(read, first, several))[:, 2:-2]
            return jax.lax.dynamic_slice_in_dim(rows, start - 2 * first, count, 1)

        return Rows(self.source, (F, 2 * H, 2 * W, channels), make)


def in_strips(x, channels: int = 0):
    """The frames as `Rows` if they are large with at least `channels` channels."""
    shape = (*x.shape[:-1], max(channels, x.shape[-1]))
    return x if isinstance(x, Rows) or not is_large(shape) else of_array(x)


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether a frame of [F, H, W, C] is large enough for strips."""
    return shape[1] * shape[2] * shape[3] > LARGE_FRAME


def of_array(x: jax.Array) -> Rows:
    """The rows of an array."""
    return Rows(x, x.shape, lambda read, start, count: read(start, count))


def silu(x):
    """SiLU of an array or of Rows."""
    return x.then(lambda rows, _: nn.silu(rows), x.shape[-1]) if isinstance(x, Rows) else nn.silu(x)


def map_strips(function: Callable[[jax.Array, Any], Any], x: Rows) -> Any:
    """`function(rows, start)` of every strip, stacked along a new first axis; equal heights."""
    height = strip_height(x.shape[1])
    starts = jnp.arange(0, x.shape[1], height)
    return jax.lax.map(lambda start: function(x.rows(start, height), start), starts)


def whole(x):
    """The array of Rows, in their source's type; arrays are returned unchanged."""
    if not isinstance(x, Rows):
        return x
    height = strip_height(x.shape[1])

    def write(i, out):
        rows = x.rows(i * height, height).astype(out.dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, rows, i * height, 1)

    # Zeros would be one constant shared by all such loops: held throughout, and copied.
    out = jnp.full(x.shape, x.source[0, 0, 0, 0])
    return jax.lax.fori_loop(0, x.shape[1] // height, write, out)


def added(x, y):
    """x + y; for Rows, the sum overwrites the source of y, which has the same shape."""
    if not isinstance(y, Rows):
        return whole(x) + y
    x = in_strips(x)
    make = lambda read, *where: x.rows(*where) + y.make(read, *where)  # noqa: E731
    return _overwritten(Rows(y.source, y.shape, make))


def _overwritten(x: Rows) -> jax.Array:
    """As `whole`, in the memory of the source; a row may depend on one row around it."""
    height = strip_height(x.shape[1])

    def write(i, carry):
        frames, window = carry  # window: old rows, from one above the strip to one below

        def read(start, count):
            return jax.lax.dynamic_slice_in_dim(window, start - (i * height - 1), count, 1)

        rows = x.make(read, i * height, height).astype(frames.dtype)
        frames = jax.lax.dynamic_update_slice_in_dim(frames, rows, i * height, 1)
        # Read after the write: for a read before it the compiler would copy the frames.
        below = _read(frames, (i + 1) * height + 1, height)
        return frames, jnp.concatenate([window[:, -2:], below], axis=1)

    carry = (x.source, _read(x.source, -1, height + 2))
    return jax.lax.fori_loop(0, x.shape[1] // height, write, carry)[0]


def strip_height(rows: int) -> int:
    """The largest divisor of `rows` up to STRIP."""
    return next(height for height in range(min(rows, STRIP), 0, -1) if rows % height == 0)


def _read(x: jax.Array, start, count: int) -> jax.Array:
    """Rows of an array; the edge rows are repeated outside it."""
    return jnp.take(x, start + jnp.arange(count), axis=1, mode="clip")
