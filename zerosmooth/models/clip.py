"""CLIP's two towers (Radford et al. 2021): text for VideoCrafter (OpenCLIP's ViT-H/14) and LaVie (OpenAI's ViT-L/14),
images for Stable Video Diffusion (OpenCLIP's ViT-H/14)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .tokenizer import Tokenizer


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's stand-in for GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int = 49408  # 256 bytes, 256 bytes that end a word, the merges, and start and end of text
    context_length: int = 77  # tokens, start and end included
    width: int = 1024
    heads: int = 16
    layers: int = 23  # blocks that run: VideoCrafter leaves out the last of 24
    pad_token: int = 0  # behind the end of text
    activation: str = "gelu"  # or "quick_gelu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}; use one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.pad_token < self.vocab_size:
            raise ValueError(f"pad_token={self.pad_token} is none of {self.vocab_size} tokens")

    @property
    def merges(self) -> int:
        """Byte pairs that the tokenizer merges."""
        return self.vocab_size - 2 * 256 - 2

    @property
    def context_shape(self) -> tuple[int, int]:
        """Tokens and channels of the condition."""
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
        self.blocks = nn.ModuleList(TowerBlock(c.width, c.heads, c.activation, causal=True) for _ in range(c.layers))
        self.norm_out = nn.LayerNorm(c.width)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.config.merges, self.config.context_length, self.config.pad_token)

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts as a network's context: n m width."""
        return self(self.tokenizer(prompts).to(self.positional_embedding.device))

    def forward(self, ids: Tensor) -> Tensor:
        """ids: b m with m = context_length; returns b m width, one vector a token, normalised."""
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
        """Images as a network's context: n 1 out. images: n 3 h w in [-1, 1], of any size, float32."""
        return self(self.prepare(images).to(self.class_embedding.dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: b 3 h w of image_size, normalised as CLIP's (see `prepare`); returns b 1 out, one token an image."""
        return self.proj_out(self.norm_out(self.tokens(pixels)[:, :1]))

    def tokens(self, pixels: Tensor) -> Tensor:
        """All tokens behind the last block, not normalised, the image's and then the patches': b 1+patches width."""
        patches = rearrange(self.patch_embedding(pixels), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(pixels), 1, -1)
        h = self.norm_in(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.blocks:
            h = block(h)
        return h

    def prepare(self, image: Tensor) -> Tensor:
        """The tower's pixels of images of any size. image: b 3 h w in [-1, 1], float32."""
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=image.device)[:, None, None]
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=image.device)[:, None, None]
        return ((shrink(image, self.config.image_size) + 1) / 2 - mean) / deviation


class TowerBlock(nn.Module):
    """h: b m d. Self-attention and a feed-forward."""

    def __init__(self, width: int, heads: int, activation: str = "gelu", causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.activation = heads, causal, ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(self.norm1(h)), "b m (three h d) -> three b h m d", three=3, h=self.heads)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.to_out(rearrange(o, "b h m d -> b m (h d)"))
        return h + self.fc2(self.activation(self.fc1(self.norm2(h))))


def shrink(image: Tensor, size: int) -> Tensor:
    """Resize to size x size as Stable Video Diffusion does: a Gaussian against aliasing, then bicubic, corners aligned.

    image: b 3 h w. The Gaussian's deviation is half of what a side shrinks by beyond 1, cut off at two deviations.
    """
    for dim in (-1, -2):
        deviation = max((image.shape[dim] / size - 1) / 2, 0.001)
        taps = int(max(4 * deviation, 3)) // 2 * 2 + 1
        at = torch.arange(taps, device=image.device, dtype=image.dtype) - taps // 2
        kernel = (-(at**2) / (2 * deviation**2)).exp()
        kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, taps)
        side = taps // 2
        if dim == -1:
            padded = F.pad(image, (side, side, 0, 0), mode="reflect")
        else:
            padded, kernel = F.pad(image, (0, 0, side, side), mode="reflect"), kernel.transpose(-1, -2)
        image = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=True)
