"""Norms of the vision tokenizer; scales and shifts have the logical axis name "norm"."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.vision import strips
from emu3_jax.models.vision.canvas import Canvas, mean_over_positions
from emu3_jax.models.vision.convolution import conv1x1, repeat_nearest
from emu3_jax.models.vision.initializers import ONES, ZEROS

# GroupNorm: epsilon of the released code. BatchNorm: torch's defaults (1e-5; momentum 0.1, which is
# a decay of 0.9 here).
GROUP_NORM_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
BATCH_NORM_DECAY = 0.9


class GroupNorm(nn.Module):
    """GroupNorm over one frame, statistics in float32; of a frame on a canvas, over it alone.

    Sums run over positions first, then over the channels of a group, so the large array is never
    reshaped into groups. The variance is taken around the mean (two passes), as in torch.
    """

    config: object

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [F, H, W, C] or Rows -> the same shape."""
        frames, _, _, channels = x.shape
        groups = self.config.norm_groups
        param_dtype = jnp.dtype(self.config.param_dtype)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (channels,),
            param_dtype,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
            (channels,),
            param_dtype,
        )

        def over_groups(values, inside):
            mean_FC = mean_over_positions(values, inside)
            mean_FG = jnp.mean(mean_FC.reshape(frames, groups, -1), axis=-1)
            return jnp.repeat(mean_FG, channels // groups, axis=-1)[:, None, None, :]

        def moments(values, start=0):
            inside = canvas and canvas.inside(x.shape, start, values.shape[1])
            values = values.astype(jnp.float32)
            mean = over_groups(values, inside)
            return mean, over_groups(jnp.square(values - mean), inside)

        def normalised(values, mean, variance):
            gain = jax.lax.rsqrt(variance + GROUP_NORM_EPS)
            centred = values.astype(jnp.float32) - mean
            return (centred * (gain * scale) + bias).astype(values.dtype)

        if not isinstance(x, strips.Rows):
            return normalised(x, *moments(x))
        means, variances = strips.map_strips(moments, x)
        weights = canvas and jnp.broadcast_to(_rows_of_strips(x.shape, canvas), means.shape)
        mean = jnp.average(means, 0, weights)
        variance = jnp.average(variances + jnp.square(means - mean), 0, weights)
        return x.then(lambda rows, _: normalised(rows, mean, variance), channels)


def _rows_of_strips(shape: tuple[int, ...], canvas: Canvas):
    """float32 [strips, F, 1, 1, 1]: the rows of each frame in every strip of (F, H, W, C)."""
    height = strips.strip_height(shape[1])
    starts = jnp.arange(0, shape[1], height)[:, None]
    rows = jnp.clip(canvas.limits(shape)[0] - starts, 0, height)
    return rows.astype(jnp.float32)[..., None, None, None]


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at each position come from the codebook entry there.

    The entries are enlarged to the grid of x by nearest neighbour. A 1x1 convolution commutes with
    that, so it is applied before, on the small grid.
    """

    config: object

    @nn.compact
    def __call__(self, x, entries, canvas: Canvas | None = None):
        """float [F, H, W, C] or Rows, entries [F, h, w, D] -> the same shape; H/h, W/w whole."""
        factors = (x.shape[1] // entries.shape[1], x.shape[2] // entries.shape[2])
        y = GroupNorm(self.config, name="norm_layer")(x, canvas)
        channels = x.shape[-1]
        in_strips = isinstance(y, strips.Rows)
        entries = strips.of_array(entries) if in_strips else entries
        # Zero kernels: at first a plain GroupNorm; the influence of the entries is learned.
        start = dict(narrow=True, kernel_init=ZEROS)
        scale = conv1x1(channels, self.config, name="conv_y", bias_init=ONES, **start)(entries)
        shift = conv1x1(channels, self.config, name="conv_b", **start)(entries)
        if not in_strips:
            return y * repeat_nearest(scale, factors) + repeat_nearest(shift, factors)

        def conditioned(rows, start):
            # Computed again for each strip: whole results of all norms would take 1.3 GiB.
            above = (start + jnp.arange(rows.shape[1])) // factors[0]
            first, several = start // factors[0], rows.shape[1] // factors[0] + 2
            parts = (small.rows(first, several) for small in (scale, shift))
            here = (jnp.take(part, above - first, axis=1) for part in parts)
            gain, offset = (repeat_nearest(part, (1, factors[1])) for part in here)
            return rows * gain + offset

        return y.then(conditioned, channels)


def batch_norm(config, train: bool, name: str) -> nn.BatchNorm:
    """BatchNorm over all axes but the channels: batch statistics in training, else running ones.

    The running variance averages the biased batch variance (torch: the unbiased one, larger by
    n / (n - 1) for the n = B*T*H*W values of a channel, which is negligible at these n).
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_DECAY,
        epsilon=BATCH_NORM_EPS,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        use_fast_variance=False,
        name=name,
    )
