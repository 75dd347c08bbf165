"""LaVie's UNet (Wang et al. 2023, arXiv 2309.15103).

Stable Diffusion 1.4's UNet with temporal attention in every transformer block, between the
attention to the text and the feed-forward; it has rotary embeddings and a learned bias by distance.
ResNet blocks normalise over all frames together, transformers frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..attention import ContextStates, CrossAttention, SpatialSelfAttention, TemporalAttention
from ..bus import Stage, name_modules
from .layers import FeedForward, ResBlock
from .positions import RotaryBias
from .unet import Block, Skeleton, SkeletonConfig, Transformer


@dataclass(frozen=True)
class LaVieConfig(SkeletonConfig):
    heads: int = 8  # at every level
    context_dim: int = 768


class LaVieUNet(Skeleton):
    def __init__(self, config: LaVieConfig) -> None:
        super().__init__(config, partial(LaVieBlock, config), across_frames=True)
        name_modules(self)


class LaVieBlock(Block):
    def __init__(self, c: LaVieConfig, channels: int, out: int, attention: bool,
                 **more: bool) -> None:
        res = partial(ResBlock, emb=4 * c.channels, groups=c.groups, across_frames=True)
        super().__init__(res, channels, out, **more)
        self.transformer = LaVieTransformer(c, out) if attention else None


class LaVieTransformer(Transformer):
    def __init__(self, c: LaVieConfig, channels: int) -> None:
        super().__init__(channels, channels, c.groups)
        self.blocks.append(LaVieTransformerBlock(c, channels))


class LaVieTransformerBlock(nn.Module):
    """h: b f l d. Attention within each frame, to the text, along the frames; feed-forward."""

    def __init__(self, c: LaVieConfig, dim: int) -> None:
        super().__init__()
        heads, head_dim = c.heads, dim // c.heads
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = SpatialSelfAttention(dim, heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, c.context_dim, heads, head_dim)
        self.norm_temporal = nn.LayerNorm(dim)
        self.temporal_attn = TemporalAttention(dim, heads, head_dim, RotaryBias(heads, head_dim))
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        h = h + self.self_attn(self.norm1(h), stage)
        h = h + self.cross_attn(self.norm2(h), context, stage)
        h = h + self.temporal_attn(self.norm_temporal(h), stage)
        return h + self.ff(self.norm3(h))
