"""The UNet of VideoCrafter2 and VideoCrafter1 (Chen et al. 2024, arXiv 2401.09047; 2023, arXiv 2310.19512).

A Stable Diffusion UNet over single frames, with a temporal transformer behind every spatial one and, in VideoCrafter2,
a temporal convolution in every ResNet block. Temporal convolutions and temporal transformers normalise over all
frames together, everything else frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import (
    CrossAttention,
    RelativePosition,
    SpatialSelfAttention,
    TemporalAttention,
    TextStates,
    name_attention,
    project_text,
)
from ..bus import Stage
from .layers import EmbeddingMLP, FeedForward, Upsample, sinusoid


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 4  # of the latents
    out_channels: int = 4
    channels: int = 320  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level over those of the first
    res_blocks: int = 2  # ResNet blocks a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (1, 2, 4)  # downsampling factors at which there is attention
    head_dim: int = 64  # channels an attention head
    transformer_depth: int = 1  # blocks a spatial transformer
    context_dim: int = 1024  # channels of a text token
    frames: int = 16  # frames the network was trained on
    temporal_conv: bool = True
    relative_position: bool = False  # learned relative keys and values in temporal attention
    fps_condition: bool = True
    initial_attention: bool = True  # a temporal transformer behind the first convolution, with 8 heads at any width
    groups: int = 32  # of all group norms


VC2 = UNetConfig()
VC1 = replace(VC2, temporal_conv=False, relative_position=True, fps_condition=False)


class UNet(nn.Module):
    """Predicts the noise (or v, as the checkpoint was trained) of noisy latents."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        emb = 4 * c.channels
        self.time_embedding = EmbeddingMLP(c.channels, emb, emb)
        if c.fps_condition:
            self.fps_embedding = EmbeddingMLP(c.channels, emb, emb)
        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1)
        if c.initial_attention:
            self.init_attn = TemporalTransformer(c, c.channels, heads=8, depth=c.transformer_depth)

        ch, factor, skips = c.channels, 1, [c.channels]
        self.encoder = nn.ModuleList()
        for level, mult in enumerate(c.channel_mult):
            for _ in range(c.res_blocks):
                self.encoder.append(Block(c, ch, mult * c.channels, attention=factor in c.attention_resolutions))
                ch = mult * c.channels
                skips.append(ch)
            if level < len(c.channel_mult) - 1:
                self.encoder.append(nn.Conv2d(ch, ch, 3, stride=2, padding=1))
                skips.append(ch)
                factor *= 2
        self.middle = Block(c, ch, ch, attention=True, second_res=True)
        self.decoder = nn.ModuleList()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            for i in range(c.res_blocks + 1):
                self.decoder.append(
                    Block(
                        c,
                        ch + skips.pop(),
                        mult * c.channels,
                        attention=factor in c.attention_resolutions,
                        upsample=level > 0 and i == c.res_blocks,
                    )
                )
                ch = mult * c.channels
            factor //= 2
        self.norm_out = nn.GroupNorm(c.groups, ch)
        self.conv_out = nn.Conv2d(ch, c.out_channels, 3, padding=1)
        name_attention(self)

    def project_text(self, context: Tensor) -> TextStates:
        """What `forward` needs of a prompt, computed once. context: b m c, the text tower's output."""
        return project_text(self, context)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | TextStates,
        fps: Tensor | None = None,
        bus: Stage | None = None,
    ) -> Tensor:
        """x: b f c h w noisy latents; timestep: b, 0 to 999; context: b m c or `project_text` of it;
        fps: b frames a second, where the config has fps_condition; bus: a stage of a `HiddenStateBus`, or None for
        the plain network. Returns b f c h w. ValueError if h or w is not a multiple of the total downsampling."""
        b, f = x.shape[:2]
        factor = 2 ** (len(self.config.channel_mult) - 1)
        if x.shape[-2] % factor or x.shape[-1] % factor:
            raise ValueError(f"latents of {x.shape[-2]}x{x.shape[-1]}; each side must be a multiple of {factor}")
        text = self.project_text(context) if isinstance(context, Tensor) else context
        emb = self.time_embedding(sinusoid(timestep, self.config.channels).to(x.dtype))
        if self.config.fps_condition:
            if fps is None:
                raise ValueError("this network has an fps condition; pass fps, one number a video")
            emb = emb + self.fps_embedding(sinusoid(fps, self.config.channels).to(x.dtype))

        h = rearrange(x, "b f c h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
        h = self.conv_in(h)  # stays in that layout, in which tokens are a view of pixels
        if self.config.initial_attention:
            h = self.init_attn(h, b, bus)
        skips = [h]
        for block in self.encoder:
            h = block(h, emb, text, bus) if isinstance(block, Block) else block(h)
            skips.append(h)
        h = self.middle(h, emb, text, bus)
        for block in self.decoder:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, text, bus)
        h = self.conv_out(nn.functional.silu(self.norm_out(h)))
        return rearrange(h, "(b f) c h w -> b f c h w", f=f)


class Block(nn.Module):
    """A ResNet block, then where there is attention a spatial and a temporal transformer, then what is asked for."""

    def __init__(
        self,
        c: UNetConfig,
        channels: int,
        out: int,
        attention: bool,
        second_res: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = ResBlock(c, channels, out)
        self.spatial = SpatialTransformer(c, out) if attention else None
        self.temporal = TemporalTransformer(c, out, out // c.head_dim) if attention else None
        self.res2 = ResBlock(c, out, out) if second_res else None
        self.upsample = Upsample(out) if upsample else None

    def forward(self, x: Tensor, emb: Tensor, text: TextStates, bus: Stage | None) -> Tensor:
        b = emb.shape[0]
        x = self.res(x, emb)
        if self.spatial is not None and self.temporal is not None:
            x = self.temporal(self.spatial(x, b, text, bus), b, bus)
        if self.res2 is not None:
            x = self.res2(x, emb)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class ResBlock(nn.Module):
    """x: (b f) c h w, emb: b e. The temporal convolution comes after the residual sum."""

    def __init__(self, c: UNetConfig, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(c.groups, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.emb = nn.Linear(4 * c.channels, out)
        self.norm2 = nn.GroupNorm(c.groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.temporal_conv = TemporalConv(c, out) if c.temporal_conv else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        b, f = emb.shape[0], x.shape[0] // emb.shape[0]
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = h + self.emb(nn.functional.silu(emb)).repeat_interleave(f, dim=0)[:, :, None, None]
        h = self.skip(x) + self.conv2(nn.functional.silu(self.norm2(h)))
        return h if self.temporal_conv is None else self.temporal_conv(h, b)


class TemporalConv(nn.Module):
    """Four norm, SiLU, convolution over 3 frames, and a residual. All frames share the norm's statistics."""

    def __init__(self, c: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(c.groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4))

    def forward(self, x: Tensor, b: int) -> Tensor:
        h = x = rearrange(x, "(b f) c h w -> b c f h w", b=b)
        for norm, conv in zip(self.norms, self.convs):
            h = conv(nn.functional.silu(norm(h)))
        return rearrange(x + h, "b c f h w -> (b f) c h w")


class SpatialTransformer(nn.Module):
    """x: (b f) c h w. Self-attention within each frame, attention to the text, feed-forward."""

    def __init__(self, c: UNetConfig, channels: int) -> None:
        super().__init__()
        inner = channels // c.head_dim * c.head_dim
        self.norm = nn.GroupNorm(c.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.blocks = nn.ModuleList(SpatialBlock(c, inner) for _ in range(c.transformer_depth))
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, b: int, text: TextStates, bus: Stage | None) -> Tensor:
        height, width = x.shape[-2:]
        h = self.proj_in(rearrange(self.norm(x), "(b f) c h w -> b f (h w) c", b=b))
        for block in self.blocks:
            h = block(h, text, bus)
        return x + rearrange(self.proj_out(h), "b f (h w) c -> (b f) c h w", h=height, w=width)


class SpatialBlock(nn.Module):
    """h: b f l d."""

    def __init__(self, c: UNetConfig, dim: int) -> None:
        super().__init__()
        heads = dim // c.head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = SpatialSelfAttention(dim, heads, c.head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, c.context_dim, heads, c.head_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, text: TextStates, bus: Stage | None) -> Tensor:
        h = h + self.self_attn(self.norm1(h), bus)
        h = h + self.cross_attn(self.norm2(h), text, bus)
        return h + self.ff(self.norm3(h))


class TemporalTransformer(nn.Module):
    """x: (b f) c h w. Twice self-attention along the frames, then feed-forward; the norm sees all frames together."""

    def __init__(self, c: UNetConfig, channels: int, heads: int, depth: int = 1) -> None:
        super().__init__()
        inner = heads * c.head_dim
        self.norm = nn.GroupNorm(c.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.blocks = nn.ModuleList(TemporalBlock(c, inner, heads) for _ in range(depth))
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, b: int, bus: Stage | None) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(rearrange(x, "(b f) c h w -> b c f h w", b=b))
        h = self.proj_in(rearrange(h, "b c f h w -> b f (h w) c"))
        for block in self.blocks:
            h = block(h, bus)
        return x + rearrange(self.proj_out(h), "b f (h w) c -> (b f) c h w", h=height, w=width)


class TemporalBlock(nn.Module):
    """h: b f l d."""

    def __init__(self, c: UNetConfig, dim: int, heads: int) -> None:
        super().__init__()
        position = [RelativePosition(c.head_dim, c.frames) if c.relative_position else None for _ in range(2)]
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = TemporalAttention(dim, heads, c.head_dim, position[0])
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = TemporalAttention(dim, heads, c.head_dim, position[1])
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, h: Tensor, bus: Stage | None) -> Tensor:
        h = h + self.attn1(self.norm1(h), bus)
        h = h + self.attn2(self.norm2(h), bus)
        return h + self.ff(self.norm3(h))
