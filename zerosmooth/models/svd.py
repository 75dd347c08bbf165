"""Stable Video Diffusion's UNet (Blattmann et al. 2023, arXiv 2311.15127), image to video.

Stable Diffusion 2.1's UNet with a temporal ResNet block after every ResNet block and a temporal
transformer block after every transformer block, each mixed in by a learned share. Frames have
absolute positions. The reference image comes as latents beside the noisy ones, and as the only
token of cross-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..attention import ContextStates, TemporalAttention, TokenCrossAttention, frame_positions
from ..bus import Stage, name_modules
from .layers import FeedForward, Mix, ResBlock, TemporalResBlock, TimestepEmbedding, sinusoid
from .unet import Block, Skeleton, SkeletonConfig, SpatialBlock, Transformer

POSITIONS = "positions"  # in the states of a context: other positions of the frames, f


@dataclass(frozen=True)
class SVDConfig(SkeletonConfig):
    in_channels: int = 8  # of the noisy latents and of the reference image's
    head_dim: int = 64  # channels an attention head
    transformer_depth: int = 1  # spatial and temporal blocks a transformer
    condition_dim: int = 256  # channels of the sinusoid of each number of the condition
    frames: int = 14  # frames the network was trained on; 25 in the xt variants
    # Of ResNet norms in the decoder and in the encoder's levels with attention; diffusers has 1e-6.
    outer_eps: float = 1e-5


class SVDUNet(Skeleton):
    """timestep: 0.25 log sigma; context: one token, the image's; condition: b 3, frames a second
    minus one, motion bucket, augmentation noise."""

    config: SVDConfig

    def __init__(self, config: SVDConfig) -> None:
        c = config
        super().__init__(c, partial(SVDBlock, c))
        embedded = 4 * c.channels
        self.condition_embedding = TimestepEmbedding(3 * c.condition_dim, embedded, embedded)
        for block in [*self.encoder, *self.decoder]:
            if isinstance(block, SVDBlock) and (block in self.decoder or block.transformer):
                for norm in block.res.modules():
                    if isinstance(norm, nn.GroupNorm):
                        norm.eps = c.outer_eps
        name_modules(self)

    def embed(self, timestep: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        if condition is None:
            raise ValueError("the condition is missing: frames a second minus one, motion bucket, "
                             "augmentation noise, b 3")
        numbers = sinusoid(condition.flatten(), self.config.condition_dim).view(len(condition), -1)
        embedded = self.condition_embedding(numbers.to(dtype))
        return super().embed(timestep, condition, dtype) + embedded


class SVDBlock(Block):
    def __init__(self, c: SVDConfig, channels: int, out: int, attention: bool,
                 **more: bool) -> None:
        super().__init__(partial(SVDResBlock, c), channels, out, **more)
        self.transformer = SVDTransformer(c, out) if attention else None


class SVDResBlock(nn.Module):
    """x: (b f) c h w, emb: b e."""

    def __init__(self, c: SVDConfig, channels: int, out: int) -> None:
        super().__init__()
        self.spatial = ResBlock(channels, out, 4 * c.channels, c.groups)
        self.temporal = TemporalResBlock(out, 4 * c.channels, c.groups)
        self.mix = Mix()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.spatial(x, emb)
        return self.mix(h, self.temporal(h, emb))


class SVDTransformer(Transformer):
    """Spatial and temporal blocks in turn; the latter see the frames' positions (Eq. 16-17)."""

    def __init__(self, c: SVDConfig, channels: int) -> None:
        heads = channels // c.head_dim
        inner = heads * c.head_dim
        super().__init__(channels, inner, c.groups)
        self.channels = channels
        self.temporal_blocks = nn.ModuleList()
        for _ in range(c.transformer_depth):
            self.blocks.append(
                SpatialBlock(inner, c.context_dim, heads, c.head_dim, one_token=True))
            self.temporal_blocks.append(SVDTemporalBlock(c, inner, heads))
        self.position_embedding = TimestepEmbedding(channels, 4 * channels, channels)
        self.mix = Mix()

    def run_blocks(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        placed = context.get(POSITIONS) or (frame_positions(h.shape[1], stage, h.device),)
        sinusoids = sinusoid(placed[0], self.channels).to(h.dtype)
        embedded = self.position_embedding(sinusoids)[:, None]  # f 1 d
        for spatial, temporal in zip(self.blocks, self.temporal_blocks):
            h = spatial(h, context, stage)
            h = self.mix(h, temporal(h + embedded, context, stage))
        return h


class SVDTemporalBlock(nn.Module):
    """h: b f l d. Feed-forward, attention along the frames and to the image, feed-forward."""

    def __init__(self, c: SVDConfig, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.ff_in = FeedForward(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TemporalAttention(dim, heads, c.head_dim)
        self.cross_attn = TokenCrossAttention(dim, c.context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        h = h + self.ff_in(self.norm_in(h))
        h = h + self.attn(self.norm1(h), stage)
        h = h + self.cross_attn(h, context, stage)
        return h + self.ff(self.norm3(h))
