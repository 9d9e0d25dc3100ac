"""Gradients through the choice of an entry, which has no gradient of its own.

The values of every function are exactly the entries; only the gradient of the latents differs.
"""

import jax
import jax.numpy as jnp

# Vectors shorter than this count as having no direction.
SHORT = 1e-6


def straight_through(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """The values of `entries` with the gradient of `latents`; both float32 [..., D].

    The latents enter as their difference from themselves, which is exactly zero. The usual
    `x + (e - x)` equals the entries only up to rounding.
    """
    return jax.lax.stop_gradient(entries) + (latents - jax.lax.stop_gradient(latents))


def rotated(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """The values of `entries`, as constant rotations and scalings of the latents; [..., D].

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424, section 4.2): an entry q is
    |q| / |x| R x with the rotation R = I - 2 r r' + 2 q^ x^' in the plane of both, where x^ and q^
    are the directions and r that of x^ + q^. R and the factor are held constant, so the angle
    between gradient and entry is that between the latent's gradient and the latent. A latent
    without a direction passes the gradient unscaled.
    """
    x, q = jax.lax.stop_gradient(latents), jax.lax.stop_gradient(entries)
    x_length, q_length = _length(x), _length(q)
    x_unit, q_unit = unit_length(x), unit_length(q)
    r = unit_length(x_unit + q_unit)
    scale = jnp.where(x_length > SHORT, q_length / x_length, 1.0)
    rotated_latents = latents - 2 * _dot(latents, r) * r + 2 * _dot(latents, x_unit) * q_unit
    return straight_through(scale * rotated_latents, q)


def unit_length(x: jax.Array) -> jax.Array:
    """float [..., D] -> the same directions with length 1; zeros stay zero."""
    return x / _length(x)


def _length(x):
    # The root of a sum below SHORT squared would have an infinite gradient at zero.
    return jnp.sqrt(jnp.maximum(_dot(x, x), SHORT**2))


def _dot(x, y):
    return jnp.sum(x * y, axis=-1, keepdims=True)
