"""Layers that the networks of several families share. Images are (b f) c h w, tokens b f l d."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(position: Tensor, dim: int, period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding, cosines before sines. position: n (steps, fps or frames); returns n dim, float32."""
    frequency = torch.exp(-math.log(period) * torch.arange(dim // 2, dtype=torch.float32) / (dim // 2))
    angle = position.float()[:, None] * frequency.to(position.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class EmbeddingMLP(nn.Sequential):
    """Linear, SiLU, Linear: what turns a sinusoid into an embedding."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, out))


class FeedForward(nn.Module):
    """GEGLU: half of the first projection gates the other half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        h, gate = self.proj_in(h).chunk(2, dim=-1)
        return self.proj_out(h * F.gelu(gate))


class Upsample(nn.Module):
    """Twice the height and width by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
