"""The vision tokenizer and its discriminator in torch's modules, for `tokenizer_training.py`.

Nothing of this package is imported. Names of modules are those of the released layout, so
`load_state_dict` reads what `interop.vision.tokenizer_files.save` writes.

It has the optimisations of a careful torch user: 2-D layers process a still once, a 1x1 convolution
comes before the enlargement it commutes with, attention is `scaled_dot_product_attention`, the
discriminator's pass over the reconstruction serves both losses, unneeded gradients are not
computed, Adam is the fused one, and no copy changes a layout.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn


class Norm(nn.Module):
    """GroupNorm; in the decoder the entries determine scale and shift."""

    def __init__(self, config, channels: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(config.embed_dim, channels, 1)
        self.conv_b = nn.Conv2d(config.embed_dim, channels, 1)

    def forward(self, x, entries):
        """[F, C, H, W] and [F, D, h, w] -> [F, C, H, W]."""
        scale, shift = self.conv_y(entries), self.conv_b(entries)
        if scale.shape != x.shape:
            scale, shift = (F.interpolate(y, size=x.shape[-2:]) for y in (scale, shift))
        return torch.addcmul(shift, self.norm_layer(x), scale)


class PlainNorm(nn.GroupNorm):
    """The encoder's norm, without entries."""

    def __init__(self, config, channels: int):
        super().__init__(config.norm_groups, channels, eps=1e-6)

    def forward(self, x, entries):
        """[F, C, H, W] and None -> [F, C, H, W]."""
        return super().forward(x)


class ResBlock(nn.Module):
    """norm, act, 3x3, norm, act, 3x3, plus the input."""

    def __init__(self, config, norm, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.norm2 = norm(config, inputs), norm(config, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, entries=None):
        """[F, inputs, H, W] -> [F, outputs, H, W]."""
        y = self.conv1(F.silu(self.norm1(x, entries)))
        y = self.conv2(F.silu(self.norm2(y, entries)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y


class AttnBlock(nn.Module):
    """Attention among the positions of one frame, plus the input."""

    def __init__(self, config, norm, channels: int):
        super().__init__()
        self.norm = norm(config, channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x, entries=None):
        """[F, C, H, W] -> the same shape."""
        y = self.norm(x, entries)
        q, k, v = (f(y).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(y.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        """[F, C, H, W] -> [F, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        """[F, C, H, W] -> [F, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2))


class CausalConv(nn.Module):
    """3-D convolution after two zero frames."""

    def __init__(self, channels: int, kernel=(3, 1, 1), time_stride: int = 1):
        super().__init__()
        sides = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(channels, channels, kernel, (time_stride, 1, 1), sides)

    def forward(self, x):
        """[B, C, T, H, W] -> [B, C, T', H, W]."""
        return self.conv(F.pad(x, (0, 0, 0, 0, 2, 0)))


class TemporalResBlock(nn.Module):
    """BatchNorm, act, 3x3x3, BatchNorm, act, 3x3x3, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(channels), nn.BatchNorm3d(channels)
        self.conv1 = CausalConv(channels, (3, 3, 3))
        self.conv2 = CausalConv(channels, (3, 3, 3))

    def forward(self, x):
        """[B, C, T, H, W] -> the same shape."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class TemporalResample(nn.Module):
    """Halves the time axis, or doubles it."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        kernel, stride = ((3, 3, 3), 1) if up else ((4, 3, 3), 2)
        self.conv = CausalConv(channels, kernel, stride)

    def forward(self, x):
        """[B, C, T, H, W] -> [B, C, T/2 or 2T, H, W]."""
        return F.silu(self.conv(F.interpolate(x, scale_factor=(2, 1, 1)) if self.up else x))


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, config, norm, channels: int):
        super().__init__()
        self.block_1 = ResBlock(config, norm, channels, channels)
        self.attn_1 = AttnBlock(config, norm, channels)
        self.block_2 = ResBlock(config, norm, channels, channels)

    def forward(self, x, entries=None):
        """[F, C, h, w] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x, entries), entries), entries)


class Level(nn.Module):
    """The blocks of one resolution and the step to the next."""

    def __init__(self, config, norm, index: int, inputs: int, blocks: int, resample: str):
        super().__init__()
        width = config.ch * config.ch_mult[index]
        channels = [inputs, *[width] * blocks]
        self.block = nn.ModuleList(
            ResBlock(config, norm, channels[i], channels[i + 1]) for i in range(blocks)
        )
        with_attention = index in config.attn_resolutions
        self.attn = nn.ModuleList(
            AttnBlock(config, norm, width) for _ in range(blocks * with_attention)
        )
        if resample == "down":
            self.downsample = Downsample(width)
        elif resample == "up":
            self.upsample = Upsample(width)

    def forward(self, x, entries=None):
        """[F, C, H, W] -> [F, C', H', W']."""
        for i, block in enumerate(self.block):
            x = block(x, entries)
            if self.attn:
                x = self.attn[i](x, entries)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


def frames_in(x):
    """[B, T, C, H, W] -> [B, C, T, H, W]: a view, whatever the layout."""
    return x.transpose(1, 2)


class Encoder(nn.Module):
    """Frames to latents, before `quant_conv`."""

    def __init__(self, config):
        super().__init__()
        self.factor = config.temporal_downsample_factor
        widths = [config.ch * multiple for multiple in config.ch_mult]
        last, blocks = len(widths) - 1, config.num_res_blocks
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(config, PlainNorm, i, before, blocks, "down" if i < last else "")
            for i, before in enumerate([config.ch, *widths[:-1]])
        )
        self.mid = Middle(config, PlainNorm, widths[-1])
        self.norm_out = PlainNorm(config, widths[-1])
        D = config.z_channels
        self.conv_out = nn.Conv2d(widths[-1], D, 3, padding=1)
        halvings = self.factor.bit_length() - 1
        self.time_conv = nn.ModuleList(TemporalResample(D, up=False) for _ in range(halvings))
        self.time_res_stack = nn.ModuleList(TemporalResBlock(D) for _ in range(blocks))

    def forward(self, pixels):
        """[B, T, 3, H, W], T = 1 for stills -> [B, D, t, h, w]."""
        x = self.conv_in(pixels.flatten(0, 1))
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x), None)))
        x = frames_in(x.unflatten(0, pixels.shape[:2]))
        if x.shape[2] == 1:
            x = x.expand(-1, -1, self.factor, -1, -1)
        for layer in (*self.time_conv, *self.time_res_stack):
            x = layer(x)
        return x


class Decoder(nn.Module):
    """Latents and their entries to frames."""

    def __init__(self, config):
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        D, blocks = config.z_channels, config.num_res_blocks
        self.time_res_stack = nn.ModuleList(TemporalResBlock(D) for _ in range(blocks))
        halvings = config.temporal_downsample_factor.bit_length() - 1
        self.time_conv = nn.ModuleList(TemporalResample(D, up=True) for _ in range(halvings))
        self.conv_in = nn.Conv2d(D, widths[-1], 3, padding=1)
        self.mid = Middle(config, Norm, widths[-1])
        self.up = nn.ModuleList(
            Level(config, Norm, i, before, blocks + 1, "up" if i else "")
            for i, before in enumerate([*widths[1:], widths[-1]])
        )
        self.norm_out = Norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, latents, entries, still: bool):
        """Two [B, D, t, h, w] -> [B, T, 3, H, W], T = 1 for stills."""
        x = torch.cat([latents, entries])
        for layer in (*self.time_res_stack, *self.time_conv):
            x = layer(x)
        x = frames_in(x[:, :, :1] if still else x)
        x, entries = (half.flatten(0, 1) for half in x.chunk(2))
        x = self.mid(self.conv_in(x), entries)
        for level in reversed(self.up):
            x = level(x, entries)
        x = self.conv_out(F.silu(self.norm_out(x, entries)))
        return x.unflatten(0, (latents.shape[0], -1))


class Tokenizer(nn.Module):
    """Pixels through the nearest entries and back."""

    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config.codebook_size, config.embed_dim)
        self.quant_conv = CausalConv(config.embed_dim)
        self.post_quant_conv = CausalConv(config.z_channels)

    def forward(self, pixels):
        """[B, T, 3, H, W] -> the same shape, and the losses: commitment, codebook."""
        latents = self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 4, 1)
        with torch.no_grad():
            table, flat = self.quantize.embedding.weight, latents.flatten(0, 3)
            distances = torch.addmm(table.square().sum(1), flat, table.T, alpha=-2)
            codes = distances.argmin(1).view(latents.shape[:-1])
        entries = self.quantize.embedding(codes)
        losses = F.mse_loss(latents, entries.detach()), F.mse_loss(entries, latents.detach())
        vectors = (latents + (entries - latents).detach()).permute(0, 4, 1, 2, 3)
        return self.decoder(self.post_quant_conv(vectors), vectors, pixels.shape[1] == 1), losses


class Discriminator(nn.Module):
    """PatchGAN of stills (frames = 1), or of clips of this many frames."""

    def __init__(self, config, frames: int):
        super().__init__()
        self.layers, self.in_time = config.layers, frames > 1
        conv = nn.Conv3d if self.in_time else nn.Conv2d
        kernel = (3, 4, 4) if self.in_time else 4
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        for i, (before, width) in enumerate(zip([3, *widths], widths, strict=False)):
            stride = 2 if i < config.layers else 1
            if self.in_time:
                stride = (stride if frames >= 4 else 1, stride, stride)
                frames = -(-frames // stride[0])
            layer = conv(before, width, kernel, stride, padding=1, bias=i == 0)
            setattr(self, f"conv_{i}", layer)
            if i:
                setattr(self, f"norm_{i}", nn.GroupNorm(config.norm_groups, width, eps=1e-6))
        self.logits = conv(widths[-1], 1, kernel, padding=1)

    def forward(self, x):
        """[B, T, 3, H, W] -> logits."""
        x = frames_in(x) if self.in_time else x[:, 0]
        for i in range(self.layers + 1):
            x = getattr(self, f"conv_{i}")(x)
            x = getattr(self, f"norm_{i}")(x) if i else x
            x = F.leaky_relu(x, 0.2)
        return self.logits(x)
