"""The Emu3 vision tokenizer: images and clips to integer codes and back.

A 2-D encoder processes every frame alone, a small causal part in time shortens the clip, and a
quantizer (Emu3: the nearest codebook entry) gives each latent its code. The decoder mirrors that;
its norms are conditioned on the entries. A still is a clip of one frame repeated
`temporal_downsample_factor` times, and frame 0 of the result is returned. The 2-D parts process
frames alone, so they run once for a still. The temporal part runs in full: its zero padding makes
equal frames differ.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emu3_jax.models import cpu
from emu3_jax.models.vision import strips
from emu3_jax.models.vision.blocks import (
    AttnBlock,
    ResBlock,
    TemporalDown,
    TemporalResBlock,
    TemporalUp,
    frame_norm,
)
from emu3_jax.models.vision.canvas import Canvas
from emu3_jax.models.vision.convolution import CausalConv, Downsample, Upsample, conv3x3
from emu3_jax.models.vision.quantizers import make_quantizer
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig

__all__ = ["VisionOutput", "VisionTokenizer", "VisionTokenizerConfig"]


class VisionOutput(NamedTuple):
    """The outputs of one training pass; t, h, w are the code grid's sides (t = 1 for a still).

    Attributes:
      pixels: float32, shaped as the input: the reconstruction.
      codes: int32 [B, h, w] for stills, [B, t, h, w] for clips.
      latents: float32 [B, t, h, w, D] before quantisation.
      vectors: float32 [B, t, h, w, D], the decoded entries of the codes, with the quantizer's
        gradient.
      losses: name -> float32 scalar, the quantizer's; see `quantizers.Quantized`.
    """

    pixels: jax.Array
    codes: jax.Array
    latents: jax.Array
    vectors: jax.Array
    losses: dict[str, jax.Array]


def res_block(features: int, config: VisionTokenizerConfig, name: str, x, *others):
    """Applies a ResBlock of this name; with `config.remat`, training keeps only its input.

    `others` are the other arguments of the block: entries, train, canvas.
    """
    _, train, _ = others
    if config.remat and train:
        again = nn.remat(ResBlock, static_argnums=(3,))
        return again(features, config, name=name)(strips.whole(x), *others)
    return ResBlock(features, config, name=name)(x, *others)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    config: VisionTokenizerConfig

    @nn.compact
    def __call__(self, x, entries, train: bool, canvas: Canvas | None):
        """float [F, h, w, C] -> the same shape."""
        config, channels = self.config, x.shape[-1]
        x = res_block(channels, config, "block_1", x, entries, train, canvas)
        x = AttnBlock(config, name="attn_1")(x, entries, canvas)
        return res_block(channels, config, "block_2", x, entries, train, canvas)


class Level(nn.Module):
    """The blocks of one resolution, then the resampling to the next one, if any."""

    config: VisionTokenizerConfig
    index: int
    blocks: int
    resample: str | None

    @nn.compact
    def __call__(self, x, entries, train: bool, canvas: Canvas | None):
        """float [F, H, W, C] -> [F, H', W', widths[index]]."""
        config, width = self.config, self.config.widths[self.index]
        for i in range(self.blocks):
            x = res_block(width, config, f"block_{i}", x, entries, train, canvas)
            if self.index in config.attn_resolutions:
                x = AttnBlock(config, name=f"attn_{i}")(x, entries, canvas)
        if self.resample == "down":
            return Downsample(config, name="downsample")(x, canvas)
        if self.resample == "up":
            return Upsample(config, name="upsample")(x, canvas)
        return x


class Encoder(nn.Module):
    """Frames to latents on the code grid, before `quant_conv`."""

    config: VisionTokenizerConfig

    @nn.compact
    def __call__(self, pixels, train: bool, canvas: Canvas | None):
        """float [B, T, H, W, C] -> [B, t, h, w, D]; T = 1 means a still."""
        config = self.config
        B, T, H, W, C = pixels.shape
        x = pixels.reshape(B * T, H, W, C).astype(config.dtype)
        of_frames = canvas and canvas.repeated(T)
        if not train and cpu.one_at_a_time(B * T, H, W, config.ch):

            def one(self, _, frame):
                x, canvas = jax.tree.map(lambda array: array[None], frame)
                return None, self.frames(x, train, canvas)[0]

            alone = nn.scan(one, variable_broadcast="params", split_rngs={"params": False})
            _, x = alone(self, None, (x, of_frames))
        else:
            x = self.frames(x, train, of_frames)

        x = x.reshape(B, T, *x.shape[1:])
        if T == 1:  # a still; the check of the pixels refuses clips of one frame
            x = jnp.repeat(x, config.temporal_downsample_factor, axis=1)
        for i in range(config.temporal_halvings):
            x = nn.silu(TemporalDown(config, name=f"time_conv_{i}")(x, canvas))
        for i in range(config.num_res_blocks):
            x = TemporalResBlock(config, name=f"time_res_stack_{i}")(x, train, canvas)
        return x

    @nn.nowrap
    def frames(self, x, train: bool, canvas: Canvas | None):
        """The 2-D part: float [F, H, W, C] -> [F, h, w, D]."""
        config = self.config
        x = strips.in_strips(x, config.ch)
        x = strips.whole(conv3x3(config.ch, config, name="conv_in", narrow=True)(x, canvas))
        last = len(config.ch_mult) - 1
        for i in range(last + 1):
            resample = "down" if i < last else None
            level = Level(config, i, config.num_res_blocks, resample, name=f"down_{i}")
            x = level(x, None, train, canvas)
        x = Middle(config, name="mid")(x, None, train, canvas)
        x = nn.silu(frame_norm(config, "norm_out", x, None, canvas))
        return conv3x3(config.z_channels, config, name="conv_out", narrow=True)(x, canvas)


class Decoder(nn.Module):
    """Latents and their entries to frames."""

    config: VisionTokenizerConfig

    @nn.compact
    def __call__(self, latents, entries, still: bool, train: bool, canvas: Canvas | None):
        """Two float [B, t, h, w, D] -> [B, T, H, W, C], T = 1 for a still."""
        config = self.config
        B = latents.shape[0]
        of_both = canvas and canvas.replace(sizes=jnp.concatenate([canvas.sizes] * 2))
        # Both pass the temporal layers as one batch, so BatchNorm takes joint statistics.
        x = jnp.concatenate([latents, entries.astype(latents.dtype)])
        for i in range(config.num_res_blocks):
            x = TemporalResBlock(config, name=f"time_res_stack_{i}")(x, train, of_both)
        for i in range(config.temporal_halvings):
            x = nn.silu(TemporalUp(config, name=f"time_conv_{i}")(x, of_both))
        if still:
            x = x[:, :1]
        T = x.shape[1]
        x, entries = jnp.split(x.reshape(-1, *x.shape[2:]), 2)

        canvas = canvas and canvas.repeated(T)
        x = conv3x3(config.widths[-1], config, name="conv_in", narrow=True)(x, canvas)
        x = Middle(config, name="mid")(x, entries, train, canvas)
        for i in reversed(range(len(config.ch_mult))):
            resample = "up" if i > 0 else None
            level = Level(config, i, config.num_res_blocks + 1, resample, name=f"up_{i}")
            x = level(x, entries, train, canvas)
        x = strips.silu(frame_norm(config, "norm_out", strips.in_strips(x), entries, canvas))
        x = conv3x3(config.out_channels, config, name="conv_out", narrow=True)(x, canvas)
        x = strips.whole(x)
        return x.reshape(B, T, *x.shape[1:])


class VisionTokenizer(nn.Module):
    """Pixels to codes and back; collections "params" and "batch_stats".

    Outside training, BatchNorm uses running statistics. In training the caller passes
    mutable=["batch_stats"], and a "dropout" key if the config has dropout. Codes depend on small
    differences of the latents: use dtype float32 for codes that agree with the released model.
    """

    config: VisionTokenizerConfig

    def setup(self):  # noqa: D102 (linen's hook)
        config = self.config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = make_quantizer(config)
        self.quant_conv = CausalConv(config.embed_dim, config)
        self.post_quant_conv = CausalConv(config.z_channels, config)

    def encode(self, pixels: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Codes of images or clips.

        Args:
          pixels: float in [-1, 1], [B, H, W, C] for stills or [B, T, H, W, C] for clips.
          sizes: int32 [B, 2], (h, w) of each one's codes, if the images are smaller than the array:
            each is in the top left corner, and only the codes there count. Shorter clips need no
            size: codes do not depend on later frames.

        Returns:
          int32 [B, h, w] or [B, T / temporal factor, h, w], with h = H / spatial factor.

        Raises:
          ValueError: a side or T is not a multiple of its factor, the rank or C is wrong, or the
            pixels are integers.
        """
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise ValueError(
                f"pixels must be floats in [-1, 1], found {pixels.dtype}; emu3_jax.data.media"
                ".to_model converts uint8"
            )
        codes = self.quantize.codes(self._latents(pixels, False, sizes))
        return codes[:, 0] if pixels.ndim == 4 else codes

    def decode(
        self, codes: jax.Array, sizes: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Pixels of codes; a still returns one frame.

        Args:
          codes: int in [0, codebook_size), [B, h, w] for stills or [B, t, h, w] for clips.
          sizes: as for `encode`; only pixels of these codes count.
          train: whether the decoder is trained on them.

        Returns:
          float32, about [-1, 1] but not clipped: [B, H, W, C] or [B, t * temporal factor, H, W, C].

        Raises:
          ValueError: the rank is wrong or the codes are not integers.
        """
        if codes.ndim not in (3, 4) or not jnp.issubdtype(codes.dtype, jnp.integer):
            raise ValueError(
                "codes must be integers of shape [B, h, w] or [B, t, h, w], found "
                f"{codes.dtype} {list(codes.shape)}."
            )
        still = codes.ndim == 3
        entries = self.quantize.entries(codes[:, None] if still else codes)
        pixels = self._pixels(entries, still, train, sizes)
        return pixels[:, 0] if still else pixels

    def __call__(self, pixels: jax.Array, train: bool = False) -> VisionOutput:
        """Encodes, quantises and decodes; arguments as in `encode`."""
        still = pixels.ndim == 4
        latents = self._latents(pixels, train)
        codes, vectors, losses = self.quantize(latents)
        decoded = self._pixels(vectors, still, train)
        if still:
            decoded, codes = decoded[:, 0], codes[:, 0]
        return VisionOutput(decoded, codes, latents, vectors, losses)

    def _latents(self, pixels, train, sizes=None):
        """Checked pixels -> float32 [B, t, h, w, D] before quantisation."""
        self._check_pixels(pixels)
        factor = self.config.spatial_factor
        grid = tuple(side // factor for side in pixels.shape[-3:-1])
        canvas = None if sizes is None else Canvas(sizes, grid)
        frames = pixels[:, None] if pixels.ndim == 4 else pixels
        return self.quant_conv(self.encoder(frames, train, canvas)).astype(jnp.float32)

    def _pixels(self, entries, still, train, sizes=None):
        """float [B, t, h, w, D] -> float32 [B, T, H, W, C]."""
        canvas = None if sizes is None else Canvas(sizes, entries.shape[2:4])
        latents = self.post_quant_conv(entries)
        return self.decoder(latents, entries, still, train, canvas).astype(jnp.float32)

    def _check_pixels(self, pixels):
        config = self.config
        if pixels.ndim not in (4, 5) or pixels.shape[-1] != config.in_channels:
            raise ValueError(
                f"pixels must have the shape [B, H, W, {config.in_channels}] or "
                f"[B, T, H, W, {config.in_channels}], found {list(pixels.shape)}."
            )
        H, W = pixels.shape[-3:-1]
        if min(H, W) < 1 or H % config.spatial_factor or W % config.spatial_factor:
            raise ValueError(
                f"the height and width of pixels must be multiples of {config.spatial_factor}, "
                f"found {H} x {W}."
            )
        if pixels.ndim == 5:
            T, factor = pixels.shape[1], config.temporal_downsample_factor
            if T < 1 or T % factor:
                raise ValueError(
                    f"the number of frames of a clip must be a multiple of {factor}, found {T}."
                )
