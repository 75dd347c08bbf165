"""VQ-FIGAN, the autoencoder of LDMVFI (Danier et al. 2023, arXiv 2303.09508).

It encodes a frame alone, but decodes it with the help of the frames before and after: it attends to
their features at every level, and composes the frame from their pixels by deformable separable
convolutions (Cheng & Chen 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zerosmooth.models.autoencoder import Level
from zerosmooth.models.kernels import Conv2d
from zerosmooth.models.layers import ResBlock, Upsample

TAPS = 5  # of the synthesis along each axis
HEAD_DIM, WINDOW = 32, 8  # of the attention to the neighbours' features


@dataclass(frozen=True)
class VQFIGANConfig:
    channels: int = 64  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2, 2, 4)  # of each level; each halves the size
    res_blocks: int = 1  # ResNet blocks a level, down and up
    latent_channels: int = 3
    codes: int = 8192  # of the codebook


BLOCK = "b d (x w1) (y w2)"  # neighbours
GRID = "b d (w1 x) (w2 y)"  # pixels that are h/window and w/window apart
TOKENS = "(b x y) (w1 w2) d"

_res = partial(ResBlock, emb=None, groups=32, eps=1e-6)
_norm = partial(nn.GroupNorm, 32, eps=1e-6)
Features = list[Tensor]  # of a frame, by level: at half its size, a quarter, ..


class VQFIGAN(nn.Module):
    """Images are b 3 h w in [-1, 1]; h and w are multiples of WINDOW times the factor
    by which latents are smaller, 32 as published."""

    def __init__(self, c: VQFIGANConfig) -> None:
        super().__init__()
        self.config = c
        self.encoder = Encoder(c)
        self.quant_conv = Conv2d(c.latent_channels, c.latent_channels, 1)
        self.codebook = nn.Parameter(torch.zeros(c.codes, c.latent_channels))
        self.post_quant_conv = Conv2d(c.latent_channels, c.latent_channels, 1)
        self.decoder = Decoder(c)

    def encode(self, x: Tensor) -> tuple[Tensor, Features]:
        """Latents before quantisation, b c h/factor w/factor, and features for the decoder."""
        h, features = self.encoder(x)
        return self.quant_conv(h), features

    def codes(self, z: Tensor) -> Tensor:
        """The index of the codebook vector nearest to each latent: b h w."""
        flat = z.movedim(1, -1)
        square = flat.square().sum(-1, keepdim=True) + self.codebook.square().sum(-1)
        return (square - 2 * flat @ self.codebook.T).argmin(-1)

    def decode(self, z: Tensor, prev: Tensor, next_: Tensor, features: list[Features]) -> Tensor:
        """The frame between prev and next_, in about [-1, 1]. z: its latents; features: of both
        neighbours."""
        z = self.codebook[self.codes(z)].movedim(-1, 1)
        return self.decoder(self.post_quant_conv(z), prev, next_, features)


class Encoder(nn.Module):
    def __init__(self, c: VQFIGANConfig) -> None:
        super().__init__()
        self.conv_in = Conv2d(3, c.channels, 3, padding=1)
        sizes = [c.channels, *(mult * c.channels for mult in c.channel_mult)]
        self.levels = nn.ModuleList(Level(a, b, c.res_blocks, Conv2d(b, b, 3, stride=2), _res)
                                    for a, b in zip(sizes, sizes[1:]))
        self.middle = Middle(ch := sizes[-1])
        self.norm_out = _norm(ch)
        self.conv_out = Conv2d(ch, c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        h, features = self.conv_in(x), []
        for level in self.levels:
            assert isinstance(level, Level) and level.resample is not None
            h = level.resample(F.pad(level.res(h), (0, 1, 0, 1)))  # at the right and the bottom
            features.append(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h)))), features


class Decoder(nn.Module):
    def __init__(self, c: VQFIGANConfig) -> None:
        super().__init__()
        sizes = [mult * c.channels for mult in (*c.channel_mult, c.channel_mult[-1])]
        self.conv_in = Conv2d(c.latent_channels, sizes[-1], 3, padding=1)
        self.middle = Middle(sizes[-1])
        self.levels = nn.ModuleList(DecoderLevel(b, a, c.res_blocks)  # from full resolution down
                                    for a, b in zip(sizes, sizes[1:]))
        ch = sizes[0]
        self.norm_out = _norm(ch)
        self.conv_out = Conv2d(ch, ch, 3, padding=1)
        self.synthesis = Synthesis(ch)

    def forward(self, z: Tensor, prev: Tensor, next_: Tensor, features: list[Features]) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level, *both in reversed(list(zip(self.levels, *features))):
            h = level(h, torch.cat(both, dim=1))
        return self.synthesis(self.conv_out(F.silu(self.norm_out(h))), prev, next_)


class DecoderLevel(nn.Module):
    """ResNet blocks, attention to both neighbours' features, and upsampling."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.res = nn.Sequential(*(_res(channels if i == 0 else out, out) for i in range(blocks)))
        self.neighbours = mbconv(2 * out, out)
        self.attn = MaxViT(out, HEAD_DIM, WINDOW)
        self.resample = Upsample(out)

    def forward(self, x: Tensor, both: Tensor) -> Tensor:
        return self.resample(self.attn(self.res(x), self.neighbours(both)))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res1, self.res2 = _res(channels, channels), _res(channels, channels)
        self.attn = MaxViT(channels, channels, WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x)))


def mbconv(channels: int, out: int) -> nn.Sequential:
    """MobileNetV2's inverted block (Sandler et al. 2018) with squeeze-excitation, four times as
    wide as `out`, without a residual."""
    inner = 4 * out
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.GELU(),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner), nn.GELU(),
        Excitation(inner), nn.Conv2d(inner, out, 1), nn.BatchNorm2d(out))


class Excitation(nn.Module):
    """Each channel times a gate, computed from the means of all channels (Hu et al. 2018). x:
    b c h w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 4, bias=False)
        self.fc2 = nn.Linear(channels // 4, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class Synthesis(nn.Module):
    """The frame from the decoder's last features: each pixel is a weighted sum of TAPS x TAPS
    places in either neighbour."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def two(out: int) -> nn.ModuleList:
            return nn.ModuleList(head(channels, out) for _ in range(2))

        self.vertical, self.horizontal = two(TAPS), two(TAPS)
        self.alpha, self.beta = two(TAPS**2), two(TAPS**2)
        self.mask, self.residual = head(channels, TAPS**2), head(channels, 3)

    def forward(self, h: Tensor, prev: Tensor, next_: Tensor) -> Tensor:
        mask, frame = self.mask(h).sigmoid(), self.residual(h)
        for i, (x, share) in enumerate(((prev, mask), (next_, 1 - mask))):
            v, across, alpha, beta = (
                heads[i](h) for heads in (self.vertical, self.horizontal, self.alpha, self.beta))
            frame = frame + deformable(x, v, across, alpha, beta, share)
        return frame


def head(channels: int, out: int) -> nn.Sequential:
    sizes = [(channels, 64), (64, 32), (32, out), (out, out)]
    layers = [layer for a, b in sizes for layer in (Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def deformable(x: Tensor, vertical: Tensor, horizontal: Tensor, alpha: Tensor, beta: Tensor,
               mask: Tensor) -> Tensor:
    """Deformable separable convolution as LDMVFI runs it: b c h w.

    x: b c h w; vertical, horizontal: b TAPS h w; alpha, beta, mask: b TAPS^2 h w, how far each tap
    moves down and right, and its weight. Taps lie around the pixel one up and one left. At the
    border and beyond, along either axis, a pixel counts twice: both of its bilinear weights are 1.
    The checkpoint was trained like that, and `grid_sample` does not do it.
    """
    height, width = x.shape[-2:]
    x = F.pad(x, (TAPS // 2,) * 4, mode="replicate")
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    out = torch.zeros_like(x[..., :height, :width])
    for tap in range(TAPS**2):
        i, j = divmod(tap, TAPS)
        value = torch.zeros_like(out)
        for y, share in _nearest(rows + (i - 1) + alpha[:, tap], x.shape[-2]):
            for z, other in _nearest(columns + (j - 1) + beta[:, tap], x.shape[-1]):
                at = (y * x.shape[-1] + z).flatten(1)[:, None].expand(-1, x.shape[1], -1)
                pixels = x.flatten(2).gather(2, at).unflatten(2, (height, width))
                value += (share * other)[:, None] * pixels
        out += (vertical[:, i] * horizontal[:, j] * mask[:, tap])[:, None] * value
    return out


def _nearest(at: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Along an axis, the two pixels around a place and their weights: both 1 at and beyond the
    border."""
    inside = at.clamp(0, size - 1)
    low, high = at.floor().clamp(0, size - 1), (at.floor() + 1).clamp(0, size - 1)
    return [(low.long(), 1 + low - inside), (high.long(), 1 - (high - inside))]


class MaxViT(nn.Module):
    """MaxViT's attention (Tu et al. 2022, arXiv 2204.01697) as LDMVFI has it: attention and
    feed-forward in windows of neighbours, then on grids; without a residual around both. Images are
    b d h w.

    With a context, an image of x's shape, attention is to its pixels. ValueError if h or w is not a
    multiple of the window.
    """

    def __init__(self, dim: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.window, heads = window, dim // head_dim
        self.attn_block, self.attn_grid = (WindowAttention(dim, heads, window) for _ in range(2))
        self.ff_block, self.ff_grid = FeedForward(dim), FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height, width, w = *x.shape[-2:], self.window
        if height % w or width % w:
            raise ValueError(f"an image of {height}x{width} for attention in windows of {w}; use "
                             f"multiples of {w}")
        for pixels, attention, feed in ((BLOCK, self.attn_block, self.ff_block),
                                        (GRID, self.attn_grid, self.ff_grid)):
            h, told = (rearrange(image, f"{pixels} -> {TOKENS}", w1=w, w2=w)
                       for image in (x, x if context is None else context))
            h = feed(attention(h, told))
            x = rearrange(h, f"{TOKENS} -> {pixels}", x=height // w, y=width // w, w1=w, w2=w)
        return x


class WindowAttention(nn.Module):
    """x + attention of x to the context, with a learned bias by distance. x, context: n w*w d, with
    the same norm."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h, told = self.norm(x), self.norm(context)
        qkv = self.to_q(h), self.to_k(told), self.to_v(told)
        q, k, v = (rearrange(x, "n t (h d) -> n h t d", h=self.heads) for x in qkv)
        bias = self.bias[self.distance().to(x.device)].permute(2, 0, 1).contiguous()
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + self.to_out(rearrange(o, "n h t d -> n t (h d)"))

    def distance(self) -> Tensor:
        """The row of the bias for each query and key of a window: by how far down and right the
        query is from the key."""
        at = torch.cartesian_prod(*[torch.arange(self.window)] * 2)
        down, right = (at[:, None] - at[None, :] + self.window - 1).unbind(-1)
        return down * (2 * self.window - 1) + right


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))
