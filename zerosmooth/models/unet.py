"""The skeleton of all families' UNets: Stable Diffusion's, over frames. Families add their own
blocks and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import attention
from ..attention import ContextStates, CrossAttention, SpatialSelfAttention, TokenCrossAttention
from ..bus import Stage
from .kernels import Conv2d, GroupNorm, Linear, laid_out
from .layers import FeedForward, TimestepEmbedding, Upsample, norm_across_frames, sinusoid


@dataclass(frozen=True)
class SkeletonConfig:
    """What every family's config has; families add fields and change defaults."""

    in_channels: int = 4  # of the latents
    out_channels: int = 4
    channels: int = 320  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # of each level, relative to the first
    res_blocks: int = 2  # ResNet blocks a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (1, 2, 4)  # downsampling factors with attention
    context_dim: int = 1024  # channels of a token of the context
    frames: int = 16  # frames the network was trained on
    groups: int = 32  # of all group norms

    @property
    def side(self) -> int:
        """The latents' height and width are multiples of so many."""
        return 2 ** (len(self.channel_mult) - 1)


Layers = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """A ResNet block, the family's attention, and perhaps a second ResNet block or upsampling.

    x: (b f) c h w, emb: b e. res: makes the family's ResNet block, (x, emb) -> x, of channels in
    and out.
    """

    def __init__(self, res: Callable[[int, int], nn.Module], channels: int, out: int,
                 second_res: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.res = res(channels, out)
        self.res2 = res(out, out) if second_res else None
        self.upsample = Upsample(out) if upsample else None
        self.transformer: nn.Module | None = None  # a family sets it, or its own `attend`

    def forward(self, x: Tensor, emb: Tensor, context: ContextStates,
                stage: Stage | None) -> Tensor:
        x = self.attend(self.res(x, emb), emb.shape[0], context, stage)
        if self.res2 is not None:
            x = self.res2(x, emb)
        return x if self.upsample is None else self.upsample(x)

    def attend(self, x: Tensor, b: int, context: ContextStates, stage: Stage | None) -> Tensor:
        return x if self.transformer is None else self.transformer(x, b, context, stage)


def run_deep(deep: Layers, stage: Stage | None, h: Tensor) -> Tensor:
    return deep(h)


class Skeleton(nn.Module):
    """block: (channels, out, attention, second_res, upsample) -> Block.

    around_deep: (deep, stage, h) -> the deep features of h, by all levels but the outermost one;
    set from outside to reuse them (see extensions/reuse.py).
    """

    around_deep = staticmethod(run_deep)

    def __init__(self, c: SkeletonConfig, block: Callable[..., Block],
                 across_frames: bool = False) -> None:
        super().__init__()
        self.config, self.across_frames = c, across_frames
        self.time_embedding = TimestepEmbedding(c.channels, 4 * c.channels, 4 * c.channels)
        self.conv_in = Conv2d(c.in_channels, c.channels, 3, padding=1)
        ch, factor, skips = c.channels, 1, [c.channels]
        self.encoder = nn.ModuleList()
        for level, mult in enumerate(c.channel_mult):
            for _ in range(c.res_blocks):
                attends = factor in c.attention_resolutions
                self.encoder.append(block(ch, mult * c.channels, attention=attends))
                ch = mult * c.channels
                skips.append(ch)
            if level < len(c.channel_mult) - 1:
                self.encoder.append(Conv2d(ch, ch, 3, stride=2, padding=1))
                skips.append(ch)
                factor *= 2
        self.middle = block(ch, ch, attention=True, second_res=True)
        self.decoder = nn.ModuleList()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            for i in range(c.res_blocks + 1):
                self.decoder.append(block(
                    ch + skips.pop(), mult * c.channels, upsample=level > 0 and i == c.res_blocks,
                    attention=factor in c.attention_resolutions))
                ch = mult * c.channels
            factor //= 2
        self.norm_out = GroupNorm(c.groups, ch)
        self.conv_out = Conv2d(ch, c.out_channels, 3, padding=1)

    def project_context(self, context: Tensor) -> ContextStates:
        """What `forward` needs of a context b m c, the encoder's output: computed only once."""
        return attention.project_context(self, context)

    def embed(self, timestep: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The embedding of a video's timestep for all ResNet blocks: b e. Networks that take a
        condition add its embedding."""
        return self.time_embedding(sinusoid(timestep, self.config.channels).to(dtype))

    def stem(self, x: Tensor, b: int, stage: Stage | None) -> Tensor:
        """The layers before the first block. x: (b f) c h w."""
        return self.conv_in(x)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | ContextStates,
                condition: Tensor | None = None, stage: Stage | None = None) -> Tensor:
        """The noise or v in noisy latents, as the checkpoint was trained: b f c h w.

        x: b f c h w; an image's latents follow the noisy ones where the family takes them.
        timestep: b. context: b m c, the encoder's output, or `project_context` of it. condition: b
        .., see `Family.condition`. stage: of a `HiddenStateBus`, or None for the plain network.
        ValueError if h or w is not a multiple of the downsampling, or a condition is missing.
        """
        b, f = x.shape[:2]
        if x.shape[-2] % self.config.side or x.shape[-1] % self.config.side:
            raise ValueError(f"latents of {x.shape[-2]}x{x.shape[-1]}; each side must be a "
                             f"multiple of {self.config.side}")
        emb = self.embed(timestep, condition, x.dtype)
        states = self.project_context(context) if isinstance(context, Tensor) else context
        x = laid_out(rearrange(x, "b f c h w -> (b f) c h w"))

        def run(skips: list[Tensor], down: nn.ModuleList, within: Layers,
                up: nn.ModuleList) -> Tensor:
            h = skips[-1]
            for block in down:
                h = block(h, emb, states, stage) if isinstance(block, Block) else block(h)
                skips.append(h)
            h = within(h)
            for block in up:
                h = block(torch.cat([h, skips.pop()], dim=1), emb, states, stage)
            return h

        n = self.config.res_blocks  # of the outermost level, on the way down

        def deep(h: Tensor) -> Tensor:
            middle = partial(self.middle, emb=emb, context=states, stage=stage)
            return run([h], self.encoder[n:], middle, self.decoder[: -n - 1])

        within = partial(self.around_deep, deep, stage)
        h = run([self.stem(x, b, stage)], self.encoder[:n], within, self.decoder[-n - 1 :])
        h = norm_across_frames(self.norm_out, h, f) if self.across_frames else self.norm_out(h)
        return rearrange(self.conv_out(F.silu(h)), "(b f) c h w -> b f c h w", f=f)


class Transformer(nn.Module):
    """Norm, projection, `blocks` (the family's), projection, and a residual. x: (b f) c h w.

    across_frames: all frames of a video share the norm's statistics; else each frame has its own.
    """

    def __init__(self, channels: int, inner: int, groups: int, across_frames: bool = False) -> None:
        super().__init__()
        self.across_frames = across_frames
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.proj_out = Linear(inner, channels)
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor, b: int, context: ContextStates, stage: Stage | None) -> Tensor:
        height, width = x.shape[-2:]
        f = len(x) // b
        h = norm_across_frames(self.norm, x, f) if self.across_frames else self.norm(x)
        h = self.proj_in(rearrange(h, "(b f) c h w -> b f (h w) c", b=b))
        h = self.run_blocks(h, context, stage)
        return x + rearrange(self.proj_out(h), "b f (h w) c -> (b f) c h w", h=height, w=width)

    def run_blocks(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        for block in self.blocks:
            h = block(h, context, stage)
        return h


class SpatialBlock(nn.Module):
    """Self-attention in each frame, attention to the context, feed-forward. h: b f l d.

    one_token: the context is a single token, to which attention needs no query.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int,
                 one_token: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = SpatialSelfAttention(dim, heads, head_dim)
        self.norm2: nn.Module = nn.Identity()
        if one_token:
            self.cross_attn: nn.Module = TokenCrossAttention(dim, context_dim)
        else:
            self.norm2 = nn.LayerNorm(dim)
            self.cross_attn = CrossAttention(dim, context_dim, heads, head_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        h = h + self.self_attn(self.norm1(h), stage)
        h = h + self.cross_attn(self.norm2(h), context, stage)
        return h + self.ff(self.norm3(h))
