"""Frames of several sizes in one array, each in the top left corner of its canvas.

One compiled program then serves many sizes. Inside a frame, results are those of the frame alone to
rounding: its convolutions read zeros beyond its sides, and its norms and its attention read nothing
else. What is outside of a frame is never read, whatever it is.
"""

import flax
import jax
import jax.numpy as jnp

from emu3_jax.models.vision import strips


@flax.struct.dataclass
class Canvas:
    """The sizes of frames [F, H, W, C], or of clips [F, T, H, W, C], at every resolution.

    Attributes:
      sizes: int32 [F, 2], height and width of each frame in positions of the code grid.
      grid: height and width of the canvas in these positions.
    """

    sizes: jax.Array
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)

    def repeated(self, times: int) -> "Canvas":
        """The canvas of `times` frames in place of each."""
        return self.replace(sizes=jnp.repeat(self.sizes, times, axis=0))

    def inside(self, shape: tuple[int, ...], start=0, rows: int = 0) -> jax.Array:
        """bool [F, rows, W, 1]: what belongs to a frame, in the rows from `start` on.

        Args:
          shape: (F, H, W, C) of the whole array.
          start: the first row.
          rows: number of rows; 0 for all of them.
        """
        height, width = self.limits(shape)
        row = start + jnp.arange(rows or shape[1])
        column = jnp.arange(shape[2])
        inside = (row < height[:, None])[:, :, None] & (column < width[:, None])[:, None, :]
        return inside[..., None]

    def limits(self, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """int32 [F] heights and [F] widths of the frames in an array of shape (F, H, W, C)."""
        height, width = self.sizes.T
        return height * (shape[1] // self.grid[0]), width * (shape[2] // self.grid[1])


def mean_over_positions(x_FHWC: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """[F, C], the mean over the positions of each frame, or over those of `Canvas.inside`."""
    if inside is None:
        return jnp.mean(x_FHWC, axis=(1, 2))
    total_FC = jnp.sum(jnp.where(inside, x_FHWC, 0), axis=(1, 2))
    return total_FC / jnp.maximum(jnp.sum(inside, axis=(1, 2)), 1)


def cleared(x, canvas: Canvas | None):
    """Frames, Rows or clips with zeros outside; as they are without a canvas."""
    if canvas is None:
        return x
    if isinstance(x, strips.Rows):

        def clear(rows, start):
            return jnp.where(canvas.inside(x.shape, start, rows.shape[1]), rows, 0)

        return x.then(clear, x.shape[-1])
    if x.ndim == 5:
        inside = canvas.inside((x.shape[0], *x.shape[2:]))[:, None]
    else:
        inside = canvas.inside(x.shape)
    return jnp.where(inside, x, 0)
