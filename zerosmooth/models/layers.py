"""Layers that the networks of several families share. Images are (b f) c h w, tokens b f l d.

Layers that treat frames one by one can take a few at a time: see `frame_chunks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .kernels import Conv2d, GroupNorm, Linear, once


def sinusoid(position: Tensor, dim: int, period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding, cosines before sines. position: n (steps, fps or frames); returns n
    dim, float32."""
    frequency = once(frequencies, dim // 2, period, device=position.device, dtype=torch.float32)
    angle = position.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def frequencies(count: int, period: float) -> Tensor:
    """From 1 down to almost 1 / period, evenly in their logarithms."""
    return torch.exp(-math.log(period) * torch.arange(count, dtype=torch.float32) / count)


class TimestepEmbedding(nn.Sequential):
    """Linear, SiLU, Linear: from a sinusoid of timesteps, fps or positions to an embedding."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(Linear(dim, hidden), nn.SiLU(), Linear(hidden, out))


class PerFrame(nn.Module):
    """A layer that treats frames one by one. frame_chunk: frames at a time; None: all."""

    frame_chunk: int | None = None

    def in_chunks(self, work: Callable[..., Tensor], dim: int, *inputs: Tensor,
                  at_most: int | None = None) -> Tensor:
        """work(*inputs), in pieces along the inputs' axis `dim`, of `at_most` frames if that is
        less than frame_chunk."""
        f = inputs[0].shape[dim]
        frames = min(chunk for chunk in (self.frame_chunk, at_most, f) if chunk is not None)
        if f <= frames:
            return work(*inputs)
        pieces = zip(*(x.split(frames, dim) for x in inputs))
        return torch.cat([work(*piece) for piece in pieces], dim)


@contextmanager
def frame_chunks(network: nn.Module, frames: int | None) -> Iterator[None]:
    """Within, a network's layers that treat frames one by one take `frames` at a time: less memory,
    and the same result up to rounding. None: all at once."""
    layers = [module for module in network.modules() if isinstance(module, PerFrame)]
    for layer in layers:
        layer.frame_chunk = frames
    try:
        yield
    finally:
        for layer in layers:
            layer.frame_chunk = None


class FeedForward(PerFrame):
    """GEGLU: one half of the first projection gates the other. h: b f l d.

    The projection is a network's largest tensor. It is made in pieces of at most `LARGEST`
    elements, so that no kernel has to index beyond 2**31, and that it takes little memory.
    """

    LARGEST = 2**28

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = Linear(dim, 8 * dim)
        self.proj_out = Linear(4 * dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        frames = self.LARGEST // (8 * h[:, 0].numel())
        return self.in_chunks(self.feed, 1, h, at_most=max(1, frames))

    def feed(self, h: Tensor) -> Tensor:
        h, gate = self.proj_in(h).chunk(2, dim=-1)
        return self.proj_out(h * F.gelu(gate))


class Upsample(PerFrame):
    """Twice the height and width by nearest neighbour, then a 3x3 convolution. x: n c h w.

    Under the kernel lie nine pixels, copies of at most four. So a transposed convolution, with four
    products a pixel, gives the same. Its kernel is made in every call, which pays off unless there
    are fewer pixels than channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if n * h * w < c:
            return self.in_chunks(lambda x: self.conv(F.interpolate(x, scale_factor=2)), 0, x)
        transposed = partial(F.conv_transpose2d, weight=self.kernel(), bias=self.conv.bias,
                             stride=2, padding=1)
        return self.in_chunks(transposed, 0, x)

    def kernel(self) -> Tensor:
        """What a pixel adds to the 4x4 pixels around its 2x2 copies: i o 4 4."""
        w = self.conv.weight.transpose(0, 1)  # i o 3 3
        taps = once(taps_of_copies, device=w.device, dtype=w.dtype)
        return (w.flatten(2) @ taps).unflatten(2, (4, 4))


def taps_of_copies() -> Tensor:
    """Which taps of a 3x3 kernel meet a copy of a pixel, at each of the 4x4 pixels around its
    copies: 9 16, zeros and ones."""
    tap = torch.eye(3)
    axis = (F.pad(tap, (0, 0, 1, 0)) + F.pad(tap, (0, 0, 0, 1))).flip(0)  # 4 3
    return torch.kron(axis, axis).T


class ResBlock(PerFrame):
    """Twice norm, SiLU, convolution, and a residual. x: (b f) c h w, emb: b e, or None without one.

    across_frames: all frames of a video share the norms' statistics; else each frame has its own.
    """

    def __init__(self, channels: int, out: int, emb: int | None, groups: int, eps: float = 1e-5,
                 across_frames: bool = False) -> None:
        super().__init__()
        self.across_frames = across_frames
        self.norm1 = GroupNorm(groups, channels, eps=eps)
        self.conv1 = Conv2d(channels, out, 3, padding=1)
        self.emb = Linear(emb, out) if emb is not None else None
        self.norm2 = GroupNorm(groups, out, eps=eps)
        self.conv2 = Conv2d(out, out, 3, padding=1)
        self.skip = Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        if self.emb is None or emb is None:
            return self.in_chunks(self.convolve, 0, x)
        f = x.shape[0] // emb.shape[0]
        shift = self.emb(F.silu(emb)).repeat_interleave(f, dim=0)[:, :, None, None]
        if not self.across_frames:
            return self.in_chunks(self.convolve, 0, x, shift)
        h = self.in_chunks(self.conv1, 0, F.silu(norm_across_frames(self.norm1, x, f))) + shift
        h = self.in_chunks(self.conv2, 0, F.silu(norm_across_frames(self.norm2, h, f)))
        return self.skip(x) + h

    def convolve(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if shift is not None:
            h = h + shift
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class TemporalResBlock(nn.Module):
    """Twice norm, SiLU, convolution over 3 frames, and a residual; the norms see all frames (Stable
    Video Diffusion). x: (b f) c h w, emb: b e; without one, x is one video."""

    def __init__(self, channels: int, emb: int | None, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.emb = Linear(emb, channels) if emb is not None else None
        self.norm2 = GroupNorm(groups, channels)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        b = 1 if emb is None else emb.shape[0]
        x = rearrange(x, "(b f) c h w -> b c f h w", b=b)
        h = self.conv1(F.silu(self.norm1(x)))
        if self.emb is not None and emb is not None:
            h = h + self.emb(F.silu(emb))[:, :, None, None, None]
        return rearrange(x + self.conv2(F.silu(self.norm2(h))), "b c f h w -> (b f) c h w")


class Mix(nn.Module):
    """Mixes the outputs of layers within and between frames, by a learned share."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """sigmoid(factor) of the first, the rest of the second."""
        return torch.lerp(second, first, self.factor.sigmoid().to(first.dtype))


def norm_across_frames(norm: nn.GroupNorm, x: Tensor, f: int) -> Tensor:
    """A group norm with the statistics of all f frames of a video. x: (b f) c h w."""
    height = x.shape[-2]
    stacked = rearrange(x, "(b f) c h w -> b c (f h) w", f=f)
    return rearrange(norm(stacked), "b c (f h) w -> (b f) c h w", h=height)
