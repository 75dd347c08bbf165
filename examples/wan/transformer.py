"""Wan 2.1's network (Wan Team 2025, arXiv 2503.20314): a transformer over all frames at once.

Every token attends to all tokens of all latent frames; where a token stands in time, height and
width is told by rotary positions alone. The frame rate is nothing but the distance of the latents'
positions in time, which may be fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zerosmooth import attention
from zerosmooth.attention import ContextStates, windowed, windows
from zerosmooth.bus import Stage, name_modules
from zerosmooth.fields import UserError
from zerosmooth.models import layers
from zerosmooth.models.kernels import Linear
from zerosmooth.models.layers import TimestepEmbedding, sinusoid


@dataclass(frozen=True)
class WanConfig:
    in_channels: int = 16  # of the latents
    out_channels: int = 16  # of the predicted velocity, noise - data
    heads: int = 12
    head_dim: int = 128
    layers: int = 30
    feed_forward: int = 8960  # channels inside
    context_dim: int = 4096
    time_dim: int = 256  # of the timestep's sinusoid
    patch: int = 2  # latents of a token's side
    frames: int = 21  # latent frames in training, and of a window of attention
    overlap: int = 11  # latent frames that two windows share

    def __post_init__(self) -> None:
        if self.head_dim % 2 or self.head_dim < 6 or not 0 < self.dim <= 1 << 14:
            raise UserError(f"{self.heads} heads of {self.head_dim} channels; a head's channels "
                            "must be an even number, 6 or more")
        if not 0 < self.patch <= 64 or self.time_dim % 2 or not 0 <= self.overlap < self.frames:
            raise UserError(f"patches of {self.patch}, a sinusoid of {self.time_dim}, windows of "
                            f"{self.frames} that share {self.overlap}")

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def side(self) -> int:
        return self.patch


class Transformer(nn.Module):
    """The predicted velocity of x, b f c h w.

    timestep: b, 0 to 1000. context: b m c, the prompt's states, with zeros as padding, or what
    `project_context` made of them. condition: b f, the latents' positions in time; None: 0, 1, ..
    A clip of more latents than `config.frames` is attended to in windows where it has a stage.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patches = nn.Conv3d(c.in_channels, c.dim, (1, c.patch, c.patch),
                                 stride=(1, c.patch, c.patch))
        self.time_embedding = TimestepEmbedding(c.time_dim, c.dim, c.dim)
        self.modulation = Linear(c.dim, 6 * c.dim)  # of all blocks
        self.caption = nn.Sequential(Linear(c.context_dim, c.dim), nn.GELU("tanh"),
                                     Linear(c.dim, c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.table_out = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)
        self.proj_out = Linear(c.dim, c.patch**2 * c.out_channels)
        name_modules(self)

    def project_context(self, context: Tensor) -> ContextStates:
        """Padding is attended to: what the layers here make of zeros is no zero."""
        return attention.project_context(self, self.caption(context))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | ContextStates,
                condition: Tensor | None = None, stage: Stage | None = None) -> Tensor:
        p, f = self.config.patch, x.shape[1]
        if x.shape[-2] % p or x.shape[-1] % p:
            raise ValueError(f"latents of {x.shape[-2]}x{x.shape[-1]}; each side must be a "
                             f"multiple of {p}")
        states = self.project_context(context) if isinstance(context, Tensor) else context
        sinus = sinusoid(timestep, self.config.time_dim).to(self.modulation.weight.dtype)
        emb = self.time_embedding(sinus)
        shifts = self.modulation(F.silu(emb)).unflatten(1, (6, -1))
        h = self.patches(rearrange(x, "b f c h w -> b c f h w"))
        height, width = h.shape[-2:]
        h = rearrange(h, "b d f h w -> b f (h w) d")
        if condition is None:
            condition = torch.arange(f, device=x.device).expand(len(x), -1)
        rope = rotations(condition, height, width, self.config.head_dim)
        spans = [(0, f)] if stage is None else windows(f, stage.window, stage.overlap)
        for block in self.blocks:
            h = block(h, shifts, states, rope, spans)
        shift, scale = spread(self.table_out + emb[:, None])
        h = self.proj_out(modulated(h, shift, scale))
        return rearrange(h, "b f (h w) (p q c) -> b f c (h p) (w q)", h=height, p=p, q=p)


def rotations(positions: Tensor, height: int, width: int, head_dim: int) -> Tensor:
    """Cosine and sine of each pair of a head's channels: 2 b 1 (f h w) head_dim/2, float32.

    A third of the channels turns with the row, a third with the column, the rest with the time.
    positions: b f, of the latent frames in time.
    """
    side = head_dim // 6 * 2
    rows, columns = (torch.arange(n, device=positions.device) for n in (height, width))
    t, y, x = (turns(at, n) for at, n in
               ((positions, head_dim - 2 * side), (rows, side), (columns, side)))
    b, f = positions.shape
    angles = torch.cat([t[:, :, None, None].expand(-1, -1, height, width, -1),
                        y[:, None].expand(b, f, -1, width, -1),
                        x.expand(b, f, height, -1, -1)], dim=-1)
    angles = rearrange(angles, "b f h w d -> b 1 (f h w) d")
    return torch.stack([angles.cos(), angles.sin()]).float()


def turns(position: Tensor, channels: int) -> Tensor:
    """Angles of an axis' pairs of channels, float64."""
    pair = torch.arange(channels // 2, device=position.device, dtype=torch.float64)
    return position.double()[..., None] * 10_000 ** (-2 * pair / channels)


def turned(x: Tensor, rope: Tensor) -> Tensor:
    """x, b heads n d, its adjacent channels turned as pairs."""
    cos, sin = rope
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A norm without weights of its own, in float32."""
    norm = F.layer_norm(h.float(), h.shape[-1:], eps=1e-6)
    return torch.addcmul(shift.float(), norm, 1 + scale.float()).to(h.dtype)


def spread(numbers: Tensor) -> list[Tensor]:
    """b n d to n of b 1 1 d: one of each for all frames and tokens."""
    return [x[:, None, None] for x in numbers.unbind(1)]


class Block(nn.Module):
    """h: b f l d. Attention among all tokens and feed-forward, both modulated; between them
    attention to the prompt, which is not."""

    def __init__(self, c: WanConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)
        self.attn = JointAttention(c)
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.cross_attn = CrossAttention(c)
        self.ff = FeedForward(c)

    def forward(self, h: Tensor, shifts: Tensor, context: ContextStates, rope: Tensor,
                spans: list[tuple[int, int]]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = spread(self.table + shifts)
        h = torch.addcmul(h, gate1, self.attn(modulated(h, shift1, scale1), rope, spans))
        h = h + self.cross_attn(self.norm(h), context)
        return torch.addcmul(h, gate2, self.ff(modulated(h, shift2, scale2)))


class JointAttention(nn.Module):
    """Attention among the tokens of all frames, or of each window of frames, whose outputs are
    fused. h: b f l d. Queries and keys have a norm over all heads together."""

    def __init__(self, c: WanConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.to_qkv, self.to_out = Linear(c.dim, 3 * c.dim), Linear(c.dim, c.dim)
        self.norm_q, self.norm_k = nn.RMSNorm(c.dim, eps=1e-6), nn.RMSNorm(c.dim, eps=1e-6)

    def forward(self, h: Tensor, rope: Tensor, spans: list[tuple[int, int]]) -> Tensor:
        f, tokens = h.shape[1:3]
        q, k, v = self.to_qkv(h).chunk(3, dim=-1)
        q, k, v = (rearrange(x, "b f l (h d) -> b h (f l) d", h=self.heads)
                   for x in (self.norm_q(q), self.norm_k(k), v))
        q, k = turned(q, rope), turned(k, rope)
        q, k, v = (rearrange(x, "b h (f l) d -> b h f (l d)", f=f) for x in (q, k, v))
        o = windowed(partial(attend, tokens), q, k, v, spans)
        return self.to_out(rearrange(o, "b h f (l d) -> b f l (h d)", l=tokens))


def attend(tokens: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention among all tokens of some frames. q, k, v: b h f (l d)."""
    f = q.shape[2]
    q, k, v = (rearrange(x, "b h f (l d) -> b h (f l) d", l=tokens) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h (f l) d -> b h f (l d)", f=f)


class CrossAttention(attention.CrossAttention):
    """Queries and keys have a norm over all heads together."""

    def __init__(self, c: WanConfig) -> None:
        super().__init__(c.dim, c.dim, c.heads, c.head_dim, bias=True)
        self.norm_q, self.norm_k = nn.RMSNorm(c.dim, eps=1e-6), nn.RMSNorm(c.dim, eps=1e-6)

    def project(self, context: Tensor) -> tuple[Tensor, ...]:
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return tuple(rearrange(x, "b m (h d) -> b h m d", h=self.heads)
                     for x in (self.norm_k(k), v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.norm_q(q), k, v)


class FeedForward(layers.FeedForward):
    """Without a gate."""

    def __init__(self, c: WanConfig) -> None:
        super().__init__(c.dim)
        self.proj_in, self.proj_out = Linear(c.dim, c.feed_forward), Linear(c.feed_forward, c.dim)

    def feed(self, h: Tensor) -> Tensor:
        return self.proj_out(F.gelu(self.proj_in(h), approximate="tanh"))
