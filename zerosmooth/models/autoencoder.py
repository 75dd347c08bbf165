"""The autoencoder of latent diffusion (Rombach et al. 2022): frames to latents and back, each frame by itself.

Stable Video Diffusion's decoder (Blattmann et al. 2023, arXiv 2311.15127) mixes neighbouring frames: `temporal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention import fusion_weights, windows
from ..kernels import Conv2d, GroupNorm, Linear
from .layers import Mix, ResBlock, TemporalResBlock, Upsample

MakeBlock = Callable[[int, int], nn.Module]  # of channels in and out


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 128  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level over those of the first
    res_blocks: int = 2  # ResNet blocks a level of the encoder; the decoder has one more
    latent_channels: int = 4
    scale: float = 0.18215  # latents of the diffusion model = scale * latents of the autoencoder
    groups: int = 32  # of all group norms
    temporal: bool = False  # the decoder mixes neighbouring frames, and there is no post_quant_conv
    float32: bool = False  # the networks' precision does not apply to it: it overflows in half precision

    @property
    def decode_chunk_size(self) -> int:
        """Frames decoded at a time, if nothing is said."""
        return 8 if self.temporal else 16

    @property
    def factor(self) -> int:
        """Pixels for one latent, along each side."""
        return 2 ** (len(self.channel_mult) - 1)


class Autoencoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c)
        self.quant_conv = Conv2d(2 * c.latent_channels, 2 * c.latent_channels, 1)
        self.post_quant_conv = nn.Identity() if c.temporal else Conv2d(c.latent_channels, c.latent_channels, 1)
        self.decoder = Decoder(c)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior. x: n 3 h w in [-1, 1]; returns two of n c h/factor w/factor."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents for the diffusion model: the posterior's mode, scaled. x: n 3 h w in [-1, 1]."""
        return self.config.scale * self.moments(x)[0]

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """Frames in about [-1, 1] of one video's latents of the diffusion model. z: f c h w.

        chunk: frames decoded at a time. Where frames do not depend on each other it changes memory only. Chunks of a
        temporal decoder overlap by half and are faded into each other, the ends of a chunk, where the decoder sees no
        neighbours, weighing least: that hides the seams of chunks of 8 and more.
        """
        z = z / self.config.scale
        chunk = chunk or len(z)
        if not self.config.temporal or len(z) <= chunk:
            return torch.cat([self.decode_raw(part) for part in z.split(chunk)])
        frames: list[Tensor] = []
        weights = torch.zeros(len(z)).to(z)
        for start, end in windows(len(z), chunk, chunk // 2):
            weight = fusion_weights(end - start).to(z) ** 2
            part = weight[:, None, None, None] * self.decode_raw(z[start:end])
            shared = len(frames) - start
            frames[start:] = [old + new for old, new in zip(frames[start:], part)] + list(part[shared:])
            weights[start:end] += weight
        return torch.stack([frame / weight for frame, weight in zip(frames, weights)])

    def decode_raw(self, z: Tensor) -> Tensor:
        """As `decode` in one chunk, of unscaled latents."""
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
        self.middle = Middle(c, ch, partial(_res, c))
        self.norm_out = _norm(c, ch)
        self.conv_out = Conv2d(ch, 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.levels:
            assert isinstance(level, Level)
            h = level.res(h)
            if level.resample is not None:
                h = level.resample(F.pad(h, (0, 1, 0, 1)))  # padded at the right and the bottom only
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        ch = c.channel_mult[-1] * c.channels
        self.conv_in = Conv2d(c.latent_channels, ch, 3, padding=1)
        res = partial(TemporalDecoderBlock if c.temporal else _res, c)
        self.middle = Middle(c, ch, res)
        levels = []
        for i, mult in reversed(list(enumerate(c.channel_mult))):
            out = mult * c.channels
            levels.append(Level(ch, out, c.res_blocks + 1, Upsample(out) if i > 0 else None, res))
            ch = out
        self.levels = nn.ModuleList(reversed(levels))  # level 0 is full resolution, as in the encoder
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
        return rearrange(self.temporal_conv(rearrange(h, "f c h w -> 1 c f h w")), "1 c f h w -> f c h w")


class Level(nn.Module):
    """ResNet blocks of one resolution, and the way to the next one."""

    def __init__(self, channels: int, out: int, blocks: int, resample: nn.Module | None, res: MakeBlock) -> None:
        super().__init__()
        self.res = nn.Sequential(*(res(channels if i == 0 else out, out) for i in range(blocks)))
        self.resample = resample


class Middle(nn.Module):
    def __init__(self, c: AutoencoderConfig, channels: int, res: MakeBlock) -> None:
        super().__init__()
        self.res1 = res(channels, channels)
        self.attn = PixelAttention(c, channels)
        self.res2 = res(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x)))


class TemporalDecoderBlock(nn.Module):
    """A ResNet block within frames, one between frames, and a learned mix of their results. x: f c h w, one video."""

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
