"""CLIP's two towers (Radford et al. 2021).

Text: OpenCLIP's ViT-H/14 for VideoCrafter, OpenAI's ViT-L/14 for LaVie. Images: OpenCLIP's ViT-H/14
for Stable Video Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..fields import Range, check
from .tokenizer import Tokenizer


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int = 49408  # 256 bytes, 256 that end a word, the merges, start and end of text
    context_length: int = 77  # tokens, start and end included
    width: int = 1024
    heads: int = 16
    layers: int = 23  # blocks that run: VideoCrafter leaves out the last of 24
    pad_token: int = 0  # follows the end of text
    activation: Literal["gelu", "quick_gelu"] = "gelu"

    def __post_init__(self) -> None:
        check("activation", self.activation, Literal["gelu", "quick_gelu"])
        check("pad_token", self.pad_token, int, Range(0, self.vocab_size - 1))

    @property
    def merges(self) -> int:
        """Number of byte pairs that the tokenizer merges."""
        return self.vocab_size - 2 * 256 - 2

    @property
    def context_shape(self) -> tuple[int, int]:
        """Tokens and channels of a network's context."""
        return self.context_length, self.width


@dataclass(frozen=True)
class ImageConfig:
    image_size: int = 224  # pixels, both sides
    patch_size: int = 14
    width: int = 1280
    heads: int = 16
    layers: int = 32
    out: int = 1024  # channels of the embedding

    @property
    def context_shape(self) -> tuple[int, int]:
        return 1, self.out


class TextTower(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.width)
        self.positional_embedding = nn.Parameter(torch.randn(c.context_length, c.width) * 0.01)
        self.blocks = nn.ModuleList(TowerBlock(c.width, c.heads, c.activation, causal=True)
                                    for _ in range(c.layers))
        self.norm_out = nn.LayerNorm(c.width)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.config.merges, self.config.context_length, self.config.pad_token)

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts as a network's context: n m width."""
        return self(self.tokenizer(prompts).to(self.positional_embedding.device))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: b m with m = context_length; returns b m width, normalised."""
        h = self.token_embedding(ids) + self.positional_embedding
        for block in self.blocks:
            h = block(h)
        return self.norm_out(h)


class ImageTower(nn.Module):
    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch_embedding = nn.Conv2d(3, c.width, c.patch_size, stride=c.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(c.width) * 0.02)
        tokens = 1 + (c.image_size // c.patch_size) ** 2
        self.positional_embedding = nn.Parameter(torch.randn(tokens, c.width) * 0.02)
        self.norm_in = nn.LayerNorm(c.width)
        self.blocks = nn.ModuleList(TowerBlock(c.width, c.heads) for _ in range(c.layers))
        self.norm_out = nn.LayerNorm(c.width)
        self.proj_out = nn.Linear(c.width, c.out, bias=False)

    def encode(self, images: Tensor) -> Tensor:
        """A network's context for images of any size: n 1 out. images: as for `prepare`."""
        return self(self.prepare(images).to(self.class_embedding.dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: b 3 h w, as `prepare` returns them; returns b 1 out, one token an image."""
        return self.proj_out(self.norm_out(self.tokens(pixels)[:, :1]))

    def tokens(self, pixels: Tensor) -> Tensor:
        """The last block's output, not normalised: the image's token, then the patches'. Returns b
        1+patches width."""
        patches = rearrange(self.patch_embedding(pixels), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(pixels), 1, -1)
        h = self.norm_in(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.blocks:
            h = block(h)
        return h

    def prepare(self, image: Tensor) -> Tensor:
        """The tower's input for images of any size: image_size square, normalised as CLIP's.
        image: b 3 h w in [-1, 1], float32."""
        mean, deviation = (torch.tensor(x, device=image.device)[:, None, None] for x in (
            [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))
        return ((shrink(image, self.config.image_size) + 1) / 2 - mean) / deviation


class TowerBlock(nn.Module):
    """h: b m d. Self-attention and a feed-forward."""

    def __init__(self, width: int, heads: int, activation: str = "gelu",
                 causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.activation = heads, causal, ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm1(h))
        q, k, v = rearrange(qkv, "b m (three h d) -> three b h m d", three=3, h=self.heads)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.to_out(rearrange(o, "b h m d -> b m (h d)"))
        return h + self.fc2(self.activation(self.fc1(self.norm2(h))))


def shrink(image: Tensor, size: int) -> Tensor:
    """Resize to size x size as Stable Video Diffusion does: blur, then bicubic, corners aligned.

    image: b 3 h w. The blur is a Gaussian, cut off at two deviations. Its deviation is half of what
    a side shrinks by beyond 1: for an eighth of the side, 3.5 pixels.
    """
    for dim in (-1, -2):
        deviation = max((image.shape[dim] / size - 1) / 2, 0.001)
        taps = int(max(4 * deviation, 3)) // 2 * 2 + 1
        at = torch.arange(taps, device=image.device, dtype=image.dtype) - taps // 2
        kernel = (-(at**2) / (2 * deviation**2)).exp()
        kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, taps)
        padding = [taps // 2] * 2 + [0, 0]
        if dim == -2:
            padding, kernel = padding[::-1], kernel.transpose(-1, -2)
        padded = F.pad(image, padding, mode="reflect")
        image = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=True)
