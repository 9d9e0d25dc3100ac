"""Blocks of the vision tokenizer: residual and attention on frames, causal layers in time."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models.language.layers import precision
from emu3_jax.models.vision import strips
from emu3_jax.models.vision.canvas import Canvas
from emu3_jax.models.vision.convolution import CausalConv, conv1x1, conv3x3, repeat_nearest
from emu3_jax.models.vision.initializers import FAN_IN, ZEROS, haar_down, haar_up
from emu3_jax.models.vision.norms import GroupNorm, SpatialNorm, batch_norm

# Up to 64 x 64 positions (a 512-pixel image) all scores of a frame fit: 64 MiB of float32.
MAX_PLAIN_POSITIONS = 4096
QUERY_BLOCK = 512


def frame_norm(config, name: str, x, entries, canvas: Canvas | None):
    """GroupNorm in the encoder; SpatialNorm, conditioned on `entries`, in the decoder."""
    if entries is None:
        return GroupNorm(config, name=name)(x, canvas)
    return SpatialNorm(config, name=name)(x, entries, canvas)


class ResBlock(nn.Module):
    """norm, act, 3x3, norm, act, dropout, 3x3, plus the input (by 1x1 if the width changes).

    For large frames only the input and the result of the first convolution are held, and the
    block's result overwrites the latter. They have no dropout.
    """

    features: int
    config: object

    @nn.compact
    def __call__(self, x, entries=None, train: bool = False, canvas: Canvas | None = None):
        """float [F, H, W, C] or Rows, entries None or [F, h, w, D] -> [F, H, W, features]."""
        x = strips.in_strips(x)
        y = strips.silu(frame_norm(self.config, "norm1", x, entries, canvas))
        y = strips.whole(conv3x3(self.features, self.config, name="conv1")(y, canvas))
        y = strips.in_strips(y)
        y = strips.silu(frame_norm(self.config, "norm2", y, entries, canvas))
        if train and self.config.dropout:
            y = nn.Dropout(self.config.dropout)(strips.whole(y), deterministic=False)
        y = conv3x3(self.features, self.config, name="conv2", kernel_init=ZEROS)(y, canvas)
        if x.shape[-1] != self.features:
            x = conv1x1(self.features, self.config, name="nin_shortcut")(x)
        return strips.added(x, y)


def plain_attention(q_FPC, k_FSC, v_FSC, inside_FS=None):
    """softmax(q k^T / sqrt(C)) v for every frame; scores and softmax in float32.

    With `inside_FS`, bool, only these keys are attended to.
    """
    exact = precision(q_FPC.dtype)
    scores_FPS = jnp.einsum(
        "fpc,fsc->fps", q_FPC, k_FSC, precision=exact, preferred_element_type=jnp.float32
    )
    scores_FPS = scores_FPS / math.sqrt(q_FPC.shape[-1])
    if inside_FS is not None:
        scores_FPS = jnp.where(inside_FS[:, None], scores_FPS, jnp.finfo(jnp.float32).min)
    weights_FPS = jax.nn.softmax(scores_FPS, axis=-1)
    weights_FPS = weights_FPS.astype(v_FSC.dtype)
    return jnp.einsum("fps,fsc->fpc", weights_FPS, v_FSC, precision=exact)


def blockwise_attention(q_FSC, k_FSC, v_FSC, inside_FS=None, block: int = QUERY_BLOCK):
    """The same as `plain_attention`, `block` queries of every frame at a time.

    The backward pass computes the scores of a block again, so they are never all in memory.
    """
    F, S, C = q_FSC.shape
    blocks = -(-S // block)
    q_FSC = jnp.pad(q_FSC, ((0, 0), (0, blocks * block - S), (0, 0)))
    q_NFPC = q_FSC.reshape(F, blocks, block, C).swapaxes(0, 1)
    attend = jax.checkpoint(lambda q_FPC: plain_attention(q_FPC, k_FSC, v_FSC, inside_FS))
    y_NFPC = jax.lax.map(attend, q_NFPC)
    return y_NFPC.swapaxes(0, 1).reshape(F, blocks * block, C)[:, :S]


class AttnBlock(nn.Module):
    """Single-head attention among all positions of one frame, plus the input."""

    config: object

    @nn.compact
    def __call__(self, x, entries=None, canvas: Canvas | None = None):
        """float [F, H, W, C], entries None or [F, h, w, D] -> [F, H, W, C]."""
        F, H, W, C = x.shape
        y = frame_norm(self.config, "norm", x, entries, canvas)
        q, k, v = (
            conv1x1(C, self.config, name=name)(y).reshape(F, H * W, C) for name in ("q", "k", "v")
        )
        attend = plain_attention if H * W <= MAX_PLAIN_POSITIONS else blockwise_attention
        inside_FS = canvas and canvas.inside(x.shape).reshape(F, H * W)
        y = attend(q, k, v, inside_FS).reshape(F, H, W, C)
        return x + conv1x1(C, self.config, name="proj_out", kernel_init=ZEROS)(y)


class TemporalResBlock(nn.Module):
    """BatchNorm, act, causal 3x3x3, BatchNorm, act, dropout, causal 3x3x3, plus the input."""

    config: object

    @nn.compact
    def __call__(self, x, train: bool = False, canvas: Canvas | None = None):
        """float [B, T, H, W, C] -> the same shape."""
        C = x.shape[-1]
        y = nn.silu(batch_norm(self.config, train, "norm1")(x))
        y = CausalConv(C, self.config, (3, 3, 3), kernel_init=FAN_IN, name="conv1")(y, canvas)
        y = nn.silu(batch_norm(self.config, train, "norm2")(y))
        y = nn.Dropout(self.config.dropout)(y, deterministic=not train)
        y = CausalConv(C, self.config, (3, 3, 3), kernel_init=ZEROS, name="conv2")(y, canvas)
        return x + y


class TemporalDown(nn.Module):
    """Halves the time axis: causal convolution, kernel (4, 3, 3), stride 2."""

    config: object

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [B, T, H, W, C] -> [B, T/2, H, W, C]; T even."""
        conv = CausalConv(x.shape[-1], self.config, (4, 3, 3), 2, haar_down, name="conv")
        return conv(x, canvas)


class TemporalUp(nn.Module):
    """Doubles the time axis: nearest neighbour, then a causal 3x3x3 convolution."""

    config: object

    @nn.compact
    def __call__(self, x, canvas: Canvas | None = None):
        """float [B, T, H, W, C] -> [B, 2T, H, W, C]."""
        conv = CausalConv(x.shape[-1], self.config, (3, 3, 3), kernel_init=haar_up, name="conv")
        return conv(repeat_nearest(x, (2,)), canvas)
