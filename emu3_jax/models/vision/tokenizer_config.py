"""The config of a vision tokenizer, which fixes all of its shapes."""

import dataclasses
import math

_DTYPES = ("float32", "bfloat16", "float16")
QUANTIZERS = ("nearest", "cosine", "ibq", "lfq", "fsq")
# Quantizers with a choice of gradients; the others have their own.
_WITH_GRADIENTS = ("nearest", "cosine")
_MAX_CODES = 2**30  # codes are int32
COMPUTATION = ("dtype", "param_dtype", "remat")
"""Fields that change how to compute, not what; files of weights do not have them."""


@dataclasses.dataclass(frozen=True)
class VisionTokenizerConfig:
    """Sizes of a vision tokenizer; the defaults are the released config.json of Emu3.

    Attributes:
      codebook_size: number of codebook entries.
      embed_dim: dimensions of an entry; must equal `z_channels`, since the decoder sends the
        entries and the latents through the same temporal layers.
      z_channels: channels of the latents.
      in_channels: channels of the pixels read.
      out_channels: channels of the pixels written.
      temporal_downsample_factor: frames per latent frame, a power of two.
      ch: base width of the 2-D networks.
      ch_mult: width of each level as a multiple of `ch`, highest resolution first; every level
        but the last halves the height and the width.
      num_res_blocks: residual blocks per level in the encoder, one more in the decoder; also the
        number of temporal residual blocks in each of the two, as in the released code.
      attn_resolutions: the levels with attention (indices into `ch_mult`, as in the released
        code).
      dropout: rate inside the residual blocks while training.
      norm_groups: groups of every GroupNorm; 32 in the released code.
      quantizer: "nearest" as Emu3 has it; "cosine", the same on the unit sphere; "ibq", the largest
        inner product with gradients for all entries; "lfq", one bit per dimension, and "fsq", a
        few levels per dimension, both without a table. See `models.vision.quantizers`.
      gradient: "straight_through" as Emu3's, or "rotation" (with "nearest" and "cosine").
      fsq_levels: for "fsq", the levels of each of the `embed_dim` dimensions; their product is
        `codebook_size`.
      dtype: compute type of the networks. The search for the nearest entry is always float32.
      param_dtype: type in which the parameters are created.
      remat: training keeps only the input of each residual block of frames and computes the rest
        again in the backward pass; else it keeps all that the gradient needs.
    """

    codebook_size: int = 32768
    embed_dim: int = 4
    z_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    temporal_downsample_factor: int = 4
    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (3,)
    dropout: float = 0.0
    norm_groups: int = 32
    quantizer: str = "nearest"
    gradient: str = "straight_through"
    fsq_levels: tuple[int, ...] = ()
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "attn_resolutions", tuple(self.attn_resolutions))
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        self._check_sizes()
        self._check_levels()
        self._check_quantizer()

    def _check_sizes(self):
        for name in (
            "codebook_size",
            "embed_dim",
            "z_channels",
            "in_channels",
            "out_channels",
            "ch",
            "num_res_blocks",
            "norm_groups",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.embed_dim != self.z_channels:
            raise ValueError(
                f"embed_dim ({self.embed_dim}) must equal z_channels ({self.z_channels}), because "
                "entries and latents pass through the same temporal layers of the decoder."
            )
        factor = self.temporal_downsample_factor
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"temporal_downsample_factor must be a power of two, found {factor}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}.")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(
                    f"{name} must be one of {', '.join(_DTYPES)}, found {getattr(self, name)!r}."
                )

    def _check_levels(self):
        if not self.ch_mult:
            raise ValueError("ch_mult must name at least one level, found none.")
        for level, width in enumerate(self.widths):
            if width < 1 or width % self.norm_groups:
                raise ValueError(
                    f"ch * ch_mult[{level}] = {width} must be a positive multiple of norm_groups = "
                    f"{self.norm_groups}."
                )
        if self.ch % self.norm_groups:
            raise ValueError(
                f"ch = {self.ch} must be a multiple of norm_groups = {self.norm_groups}."
            )
        for level in self.attn_resolutions:
            if not 0 <= level < len(self.ch_mult):
                raise ValueError(
                    f"attn_resolutions holds {level}, but it lists levels and ch_mult has only the "
                    f"levels 0 to {len(self.ch_mult) - 1}."
                )

    def _check_quantizer(self):
        if self.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer must be one of {', '.join(QUANTIZERS)}, found {self.quantizer!r}."
            )
        if self.gradient not in ("straight_through", "rotation"):
            raise ValueError(
                f"gradient must be straight_through or rotation, found {self.gradient!r}."
            )
        if self.gradient == "rotation" and self.quantizer not in _WITH_GRADIENTS:
            raise ValueError(
                f"gradient = 'rotation' needs quantizer = 'nearest' or 'cosine', found "
                f"{self.quantizer!r}, which has a gradient of its own."
            )
        if self.codebook_size > _MAX_CODES:
            raise ValueError(
                f"codebook_size must be at most {_MAX_CODES}, found {self.codebook_size}."
            )
        if self.quantizer == "lfq" and self.codebook_size != 2**self.embed_dim:
            raise ValueError(
                "quantizer = 'lfq' has one bit per dimension, so codebook_size must be "
                f"2^embed_dim = {2**self.embed_dim}, found {self.codebook_size}."
            )
        self._check_fsq_levels()

    def _check_fsq_levels(self):
        levels = self.fsq_levels
        if self.quantizer != "fsq":
            if levels:
                raise ValueError(
                    f"fsq_levels = {list(levels)} needs quantizer = 'fsq', found "
                    f"{self.quantizer!r}."
                )
            return
        if len(levels) != self.embed_dim or min(levels) < 2:
            raise ValueError(
                f"fsq_levels must be {self.embed_dim} numbers of at least 2, one for each of "
                f"embed_dim dimensions, found {list(levels)}."
            )
        if math.prod(levels) != self.codebook_size:
            raise ValueError(
                f"codebook_size must be the product of fsq_levels {list(levels)} = "
                f"{math.prod(levels)}, found {self.codebook_size}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along the height and along the width."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def temporal_halvings(self) -> int:
        """Layers that halve the time axis in the encoder; as many double it in the decoder."""
        return self.temporal_downsample_factor.bit_length() - 1
