"""The UNet of VideoCrafter2 and VideoCrafter1 (Chen et al. 2024, arXiv 2401.09047; 2023, arXiv
2310.19512).

A Stable Diffusion UNet over single frames, with a temporal transformer after every spatial one and,
in VideoCrafter2, a temporal convolution in every ResNet block. Temporal convolutions and temporal
transformers normalise over all frames together, everything else frame by frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import ContextStates, TemporalAttention
from ..bus import Stage, name_modules
from .kernels import GroupNorm, Linear, once
from .layers import FeedForward, ResBlock, TimestepEmbedding, sinusoid
from .positions import RelativePosition
from .unet import Block, Skeleton, SkeletonConfig, SpatialBlock, Transformer


@dataclass(frozen=True)
class UNetConfig(SkeletonConfig):
    head_dim: int = 64  # channels an attention head
    transformer_depth: int = 1  # blocks a spatial transformer
    temporal_conv: bool = True
    relative_position: bool = False  # learned relative keys and values in temporal attention
    fps_condition: bool = True
    guidance_dim: int = 0  # channels of the guidance scale's sinusoid, if guidance-distilled
    initial_attention: bool = True  # a temporal transformer of 8 heads after the first convolution


VC2 = UNetConfig()
VC1 = replace(VC2, temporal_conv=False, relative_position=True, fps_condition=False)


class UNet(Skeleton):
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        c = config
        super().__init__(c, partial(VideoCrafterBlock, c))
        if c.fps_condition:
            self.fps_embedding = TimestepEmbedding(c.channels, 4 * c.channels, 4 * c.channels)
        if c.guidance_dim:
            self.guidance_embedding = Linear(c.guidance_dim, c.channels, bias=False)
        if c.initial_attention:
            self.init_attn = TemporalTransformer(c, c.channels, heads=8, depth=c.transformer_depth)
        name_modules(self)

    def embed(self, timestep: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        """condition: b, frames a second, if the config has fps_condition; b 2, with the guidance
        scale, if it also has guidance_dim."""
        c = self.config
        if not c.fps_condition:
            return super().embed(timestep, condition, dtype)
        if condition is None:
            raise ValueError("the condition is missing: frames a second, one number a video")
        emb = sinusoid(timestep, c.channels).to(dtype)
        if c.guidance_dim:
            condition, scale = condition.unbind(1)
            emb = emb + self.guidance_embedding(guidance_sinusoid(scale, c.guidance_dim).to(dtype))
        fps = sinusoid(condition, c.channels).to(dtype)
        return self.time_embedding(emb) + self.fps_embedding(fps)

    def stem(self, x: Tensor, b: int, stage: Stage | None) -> Tensor:
        h = self.conv_in(x)
        return self.init_attn(h, b, stage) if self.config.initial_attention else h


def guidance_sinusoid(scale: Tensor, dim: int) -> Tensor:
    """The embedding of guidance scales in distilled networks: of 1000 times the scale, sines before
    cosines, and the last frequency is 1 / 10000. scale: n; returns n dim, float32."""
    frequency = once(guidance_frequencies, dim // 2, device=scale.device, dtype=torch.float32)
    angle = 1000 * scale.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def guidance_frequencies(count: int) -> Tensor:
    return torch.exp(-math.log(10_000) / (count - 1) * torch.arange(count, dtype=torch.float32))


class VideoCrafterBlock(Block):
    """Attention is a spatial and a temporal transformer."""

    def __init__(self, c: UNetConfig, channels: int, out: int, attention: bool,
                 **more: bool) -> None:
        super().__init__(partial(VideoCrafterResBlock, c), channels, out, **more)
        self.spatial = SpatialTransformer(c, out) if attention else None
        self.temporal = TemporalTransformer(c, out, out // c.head_dim) if attention else None

    def attend(self, x: Tensor, b: int, context: ContextStates, stage: Stage | None) -> Tensor:
        if self.spatial is None or self.temporal is None:
            return x
        return self.temporal(self.spatial(x, b, context, stage), b, stage)


class VideoCrafterResBlock(ResBlock):
    """x: (b f) c h w, emb: b e. The temporal convolution comes after the residual sum."""

    def __init__(self, c: UNetConfig, channels: int, out: int) -> None:
        super().__init__(channels, out, 4 * c.channels, c.groups)
        self.temporal_conv = TemporalConv(c, out) if c.temporal_conv else None

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        assert emb is not None  # a UNet gives one to every block
        h = super().forward(x, emb)
        return h if self.temporal_conv is None else self.temporal_conv(h, emb.shape[0])


class TemporalConv(nn.Module):
    """Four times norm over all frames, SiLU, convolution over 3 frames; and a residual."""

    def __init__(self, c: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(GroupNorm(c.groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
                                   for _ in range(4))

    def forward(self, x: Tensor, b: int) -> Tensor:
        h = x = rearrange(x, "(b f) c h w -> b c f h w", b=b)
        for norm, conv in zip(self.norms, self.convs):
            h = conv(nn.functional.silu(norm(h)))
        return rearrange(x + h, "b c f h w -> (b f) c h w")


class SpatialTransformer(Transformer):
    def __init__(self, c: UNetConfig, channels: int) -> None:
        heads = channels // c.head_dim
        inner = heads * c.head_dim
        super().__init__(channels, inner, c.groups)
        for _ in range(c.transformer_depth):
            self.blocks.append(SpatialBlock(inner, c.context_dim, heads, c.head_dim))


class TemporalTransformer(nn.Module):
    """Norm over all frames, temporal blocks, and a residual. x: (b f) c h w."""

    def __init__(self, c: UNetConfig, channels: int, heads: int, depth: int = 1) -> None:
        super().__init__()
        inner = heads * c.head_dim
        self.norm = GroupNorm(c.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.blocks = nn.ModuleList(TemporalBlock(c, inner, heads) for _ in range(depth))
        self.proj_out = Linear(inner, channels)

    def forward(self, x: Tensor, b: int, stage: Stage | None) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(rearrange(x, "(b f) c h w -> b c f h w", b=b))
        h = self.proj_in(rearrange(h, "b c f h w -> b f (h w) c"))
        for block in self.blocks:
            h = block(h, stage)
        return x + rearrange(self.proj_out(h), "b f (h w) c -> (b f) c h w", h=height, w=width)


class TemporalBlock(nn.Module):
    """Twice attention along the frames, then feed-forward. h: b f l d."""

    def __init__(self, c: UNetConfig, dim: int, heads: int) -> None:
        super().__init__()
        position = [RelativePosition(c.head_dim, c.frames) if c.relative_position else None
                    for _ in range(2)]
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = TemporalAttention(dim, heads, c.head_dim, position[0])
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = TemporalAttention(dim, heads, c.head_dim, position[1])
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, stage: Stage | None) -> Tensor:
        h = h + self.attn1(self.norm1(h), stage)
        h = h + self.attn2(self.norm2(h), stage)
        return h + self.ff(self.norm3(h))
