"""MaxViT's attention (Tu et al. 2022, arXiv 2204.01697) as LDMVFI has it: in windows of neighbours,
then on grids. Images are b d h w."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

BLOCK = "b d (x w1) (y w2)"  # neighbours
GRID = "b d (w1 x) (w2 y)"  # pixels that are h/window and w/window apart
TOKENS = "(b x y) (w1 w2) d"


class MaxViT(nn.Module):
    """Attention and feed-forward in blocks, then on grids; without a residual around both.

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
