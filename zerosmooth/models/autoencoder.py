"""The autoencoder of latent diffusion (Rombach et al. 2022): frames to latents and back, each frame by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import Upsample


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 128  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level over those of the first
    res_blocks: int = 2  # ResNet blocks a level of the encoder; the decoder has one more
    latent_channels: int = 4
    scale: float = 0.18215  # latents of the diffusion model = scale * latents of the autoencoder
    groups: int = 32  # of all group norms

    @property
    def factor(self) -> int:
        """Pixels for one latent, along each side."""
        return 2 ** (len(self.channel_mult) - 1)


class Autoencoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c)
        self.quant_conv = nn.Conv2d(2 * c.latent_channels, 2 * c.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(c.latent_channels, c.latent_channels, 1)
        self.decoder = Decoder(c)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior. x: n 3 h w in [-1, 1]; returns two of n c h/factor w/factor."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents for the diffusion model: the posterior's mode, scaled. x: n 3 h w in [-1, 1]."""
        return self.config.scale * self.moments(x)[0]

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """Frames in about [-1, 1] of latents of the diffusion model. z: n c h w.

        chunk: frames decoded at a time; frames do not depend on each other, so it changes memory only.
        """
        return torch.cat([self.decode_raw(part / self.config.scale) for part in z.split(chunk or len(z))])

    def decode_raw(self, z: Tensor) -> Tensor:
        """As `decode`, of unscaled latents."""
        return self.decoder(self.post_quant_conv(z))


class Encoder(nn.Module):
    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, c.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        ch = c.channels
        for i, mult in enumerate(c.channel_mult):
            out = mult * c.channels
            down = nn.Conv2d(out, out, 3, stride=2) if i < len(c.channel_mult) - 1 else None
            self.levels.append(Level(c, ch, out, c.res_blocks, down))
            ch = out
        self.middle = Middle(c, ch)
        self.norm_out = _norm(c, ch)
        self.conv_out = nn.Conv2d(ch, 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.levels:
            h = level.res(h)
            if level.resample is not None:
                h = level.resample(F.pad(h, (0, 1, 0, 1)))  # padded at the right and the bottom only
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        ch = c.channel_mult[-1] * c.channels
        self.conv_in = nn.Conv2d(c.latent_channels, ch, 3, padding=1)
        self.middle = Middle(c, ch)
        levels = []
        for i, mult in reversed(list(enumerate(c.channel_mult))):
            out = mult * c.channels
            levels.append(Level(c, ch, out, c.res_blocks + 1, Upsample(out) if i > 0 else None))
            ch = out
        self.levels = nn.ModuleList(reversed(levels))  # level 0 is full resolution, as in the encoder
        self.norm_out = _norm(c, ch)
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level in reversed(self.levels):
            h = level.res(h)
            if level.resample is not None:
                h = level.resample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Level(nn.Module):
    """ResNet blocks of one resolution, and the way to the next one."""

    def __init__(self, c: AutoencoderConfig, channels: int, out: int, blocks: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.Sequential(*(ResBlock(c, channels if i == 0 else out, out) for i in range(blocks)))
        self.resample = resample


class Middle(nn.Module):
    def __init__(self, c: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.res1 = ResBlock(c, channels, channels)
        self.attn = PixelAttention(c, channels)
        self.res2 = ResBlock(c, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x)))


class ResBlock(nn.Module):
    def __init__(self, c: AutoencoderConfig, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(c, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(c, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class PixelAttention(nn.Module):
    """Self-attention over the pixels of a frame, with one head."""

    def __init__(self, c: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(c, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = self.to_qkv(rearrange(self.norm(x), "n c h w -> n 1 (h w) c"))
        o = self.to_out(F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1)))
        return x + rearrange(o, "n 1 (h w) c -> n c h w", h=height, w=width)


def _norm(c: AutoencoderConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(c.groups, channels, eps=1e-6)
