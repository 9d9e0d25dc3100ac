"""Resizing to the side that a feature network reads: bilinear, without antialiasing."""

import jax
import jax.numpy as jnp


def resized(pixels: jax.Array, side: int, sizes: jax.Array | None = None) -> jax.Array:
    """Images or clips of any size → float32 [..., side, side, C].

    Bilinear between pixel centres; the ratio of the sides is not kept.

    Args:
      pixels: float [..., H, W, C].
      side: height and width of the results.
      sizes: int32 [B, 2], (H, W) of each of pixels [B, H, W, C] that fills only the top left corner
        of the array.
    """
    x = pixels.astype(jnp.float32)
    if sizes is None:
        shape = (*x.shape[:-3], side, side, x.shape[-1])
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    return jax.vmap(lambda x, size: _resized_corner(x, size, side))(x, sizes)


def _resized_corner(x_HWC: jax.Array, size: jax.Array, side: int) -> jax.Array:
    # Beyond its centre, the last row or column counts alone.
    rows, columns = (jnp.minimum(jnp.arange(x_HWC.shape[i]), size[i] - 1) for i in range(2))
    x = x_HWC[rows][:, columns]
    shape, scale = (side, side, x.shape[-1]), side / size.astype(jnp.float32)
    shift = jnp.zeros(2, jnp.float32)
    return jax.image.scale_and_translate(x, shape, (0, 1), scale, shift, "linear", antialias=False)
