"""CLIP's text tower (Radford et al. 2021), in OpenCLIP's ViT-H/14 size for VideoCrafter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int = 49408  # 256 bytes, 256 bytes that end a word, the merges, and start and end of text
    context_length: int = 77  # tokens, start and end included
    width: int = 1024
    heads: int = 16
    layers: int = 23  # blocks that run: VideoCrafter leaves out the last of 24
    pad_token: int = 0  # behind the end of text

    @property
    def merges(self) -> int:
        """Byte pairs that the tokenizer merges."""
        return self.vocab_size - 2 * 256 - 2


class TextTower(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.positional_embedding = nn.Parameter(torch.randn(c.context_length, c.width) * 0.01)
        self.blocks = nn.ModuleList(TextBlock(c) for _ in range(c.layers))
        self.norm_out = nn.LayerNorm(c.width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: b m with m = context_length; returns b m width, one vector a token, normalised."""
        h = self.token_embedding(ids) + self.positional_embedding
        for block in self.blocks:
            h = block(h)
        return self.norm_out(h)


class TextBlock(nn.Module):
    """h: b m d. Causal self-attention and a feed-forward."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm1 = nn.LayerNorm(c.width)
        self.to_qkv = nn.Linear(c.width, 3 * c.width)
        self.to_out = nn.Linear(c.width, c.width)
        self.norm2 = nn.LayerNorm(c.width)
        self.fc1 = nn.Linear(c.width, 4 * c.width)
        self.fc2 = nn.Linear(4 * c.width, c.width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(self.norm1(h)), "b m (three h d) -> three b h m d", three=3, h=self.heads)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.to_out(rearrange(o, "b h m d -> b m (h d)"))
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
