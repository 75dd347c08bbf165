"""The autoencoder of latent diffusion (Rombach et al. 2022): frames to latents and back.

Each frame is coded by itself; Stable Video Diffusion's decoder (Blattmann et al. 2023, arXiv
2311.15127) mixes neighbouring frames: `temporal`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import fusion_weights, windows
from .kernels import Conv2d, GroupNorm, Linear
from .layers import Mix, ResBlock, TemporalResBlock, Upsample

MakeBlock = Callable[[int, int], nn.Module]  # of channels in and out


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 128  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # of each level, relative to the first
    res_blocks: int = 2  # ResNet blocks a level of the encoder; the decoder has one more
    latent_channels: int = 4
    scale: float = 0.18215  # latents of the diffusion model = scale * latents of the autoencoder
    groups: int = 32  # of all group norms
    temporal: bool = False  # the decoder mixes neighbouring frames; there is no post_quant_conv
    float32: bool = False  # it stays in float32, as it overflows in half precision

    @property
    def decode_chunk_size(self) -> int:
        """Frames decoded at a time by default."""
        return 8 if self.temporal else 16

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** (len(self.channel_mult) - 1)


class Autoencoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        latent = c.latent_channels
        self.encoder = Encoder(c)
        self.quant_conv = Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Identity() if c.temporal else Conv2d(latent, latent, 1)
        self.decoder = Decoder(c)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior. x: n 3 h w in [-1, 1]; returns two of n c
        h/factor w/factor."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents for the diffusion model: the posterior's mode, scaled. x as in `moments`."""
        return self.config.scale * self.moments(x)[0]

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """Frames, in about [-1, 1], of one video's latents from the diffusion model. z: f c h w.

        chunk: frames decoded at a time, to save memory. Chunks of a temporal decoder overlap by
        half and fade into each other; their ends, where the decoder sees no neighbours, weigh
        least, which hides the seams of chunks of 8 or more.
        """
        z = z / self.config.scale
        chunk = chunk or len(z)
        if not self.config.temporal or len(z) <= chunk:
            return torch.cat([self.decode_raw(part) for part in z.split(chunk)])
        weights = torch.zeros(len(z), 1, 1, 1).to(z)
        for start, end in windows(len(z), chunk, chunk // 2):
            weight = fusion_weights(end - start).to(z)[:, None, None, None] ** 2
            part = weight * self.decode_raw(z[start:end])
            if start == 0:
                total = part.new_zeros(len(z), *part.shape[1:])
            total[start:end] += part
            weights[start:end] += weight
        return total / weights

    def decode_raw(self, z: Tensor) -> Tensor:
        """As `decode`, in one chunk and of unscaled latents."""
        return self.decoder(self.post_quant_conv(z))


class Encoder(nn.Module):
    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = Conv2d(3, c.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        ch = c.channels
        for i, mult in enumerate(c.channel_mult):
            out = mult * c.channels
            down = Conv2d(out, out, 3, stride=2) if i < len(c.channel_mult) - 1 else None
            self.levels.append(Level(ch, out, c.res_blocks, down, partial(_res, c)))
            ch = out
        self.middle = middle(c, ch, partial(_res, c))
        self.norm_out = _norm(c, ch)
        self.conv_out = Conv2d(ch, 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.levels:
            assert isinstance(level, Level)
            h = level.res(h)
            if level.resample is not None:
                h = level.resample(F.pad(h, (0, 1, 0, 1)))  # at the right and the bottom only
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        ch = c.channel_mult[-1] * c.channels
        self.conv_in = Conv2d(c.latent_channels, ch, 3, padding=1)
        res = partial(TemporalDecoderBlock if c.temporal else _res, c)
        self.middle = middle(c, ch, res)
        levels = []
        for i, mult in reversed(list(enumerate(c.channel_mult))):
            out = mult * c.channels
            levels.append(Level(ch, out, c.res_blocks + 1, Upsample(out) if i > 0 else None, res))
            ch = out
        self.levels = nn.ModuleList(reversed(levels))  # level 0 is the largest, as in the encoder
        self.norm_out = _norm(c, ch)
        self.conv_out = Conv2d(ch, 3, 3, padding=1)
        self.temporal_conv = nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0)) if c.temporal else None

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level in reversed(self.levels):
            assert isinstance(level, Level)
            h = level.res(h)
            if level.resample is not None:
                h = level.resample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        if self.temporal_conv is None:
            return h
        h = self.temporal_conv(rearrange(h, "f c h w -> 1 c f h w"))
        return rearrange(h, "1 c f h w -> f c h w")


class Level(nn.Module):
    """ResNet blocks of one resolution, and the way to the next one."""

    def __init__(self, channels: int, out: int, blocks: int, resample: nn.Module | None,
                 res: MakeBlock) -> None:
        super().__init__()
        self.res = nn.Sequential(*(res(channels if i == 0 else out, out) for i in range(blocks)))
        self.resample = resample


def middle(c: AutoencoderConfig, channels: int, res: MakeBlock) -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        res1=res(channels, channels), attn=PixelAttention(c, channels),
        res2=res(channels, channels)))


class TemporalDecoderBlock(nn.Module):
    """A ResNet block within frames, one between frames, and a learned mix of both. x: f c h w."""

    def __init__(self, c: AutoencoderConfig, channels: int, out: int) -> None:
        super().__init__()
        self.spatial = _res(c, channels, out)
        self.temporal = TemporalResBlock(out, None, c.groups)
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        h = self.spatial(x)
        return self.mix(self.temporal(h), h)


class PixelAttention(nn.Module):
    """Self-attention over the pixels of a frame, with one head."""

    def __init__(self, c: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(c, channels)
        self.to_qkv = Linear(channels, 3 * channels)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = self.to_qkv(rearrange(self.norm(x), "n c h w -> n 1 (h w) c"))
        o = self.to_out(F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1)))
        return x + rearrange(o, "n 1 (h w) c -> n c h w", h=height, w=width)


def _res(c: AutoencoderConfig, channels: int, out: int) -> ResBlock:
    return ResBlock(channels, out, None, c.groups, eps=1e-6)


def _norm(c: AutoencoderConfig, channels: int) -> nn.GroupNorm:
    return GroupNorm(c.groups, channels, eps=1e-6)
