"""DynamiCrafter (Xing et al. 2023, arXiv 2310.12190): an image and a prompt to video, at 256, 512 and 1024.

VideoCrafter2's UNet, told of the image twice: its latents come beside the noisy ones, as in Stable Video Diffusion, and
cross-attention, with the same queries, attends to the prompt and to tokens of the image, 16 for each frame that the
network was trained on. A frame that a further stage inserts takes the tokens of the key frame before it: the paper has
no such network, so that is our reading; key frames keep theirs either way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from weights_convert import ldm, svd, videocrafter
from weights_convert.engine import Table
from zerosmooth.attention import CrossAttention
from zerosmooth.bus import name_modules
from zerosmooth.kernels import Linear
from zerosmooth.models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from zerosmooth.models.unet import SpatialBlock
from zerosmooth.models.videocrafter import UNet, UNetConfig
from zerosmooth.samplers import DDIMConfig

# --- the network


@dataclass(frozen=True)
class DynamiCrafterConfig(UNetConfig):
    in_channels: int = 8  # of the noisy latents and of the image's
    text_tokens: int = 77
    image_tokens: int = 16  # of each frame
    learned_scale: bool = False  # every module weights the image by a number of its own (the 256 model)


class DynamiCrafterUNet(UNet):
    """VideoCrafter2's, with another cross-attention. Its context: the prompt's tokens, then those of each key frame."""

    def __init__(self, config: DynamiCrafterConfig) -> None:
        super().__init__(config)
        for block in self.modules():
            if isinstance(block, SpatialBlock):
                dim = block.norm2.normalized_shape[0]
                block.cross_attn = TextImageAttention(config, dim)
        name_modules(self)


class TextImageAttention(CrossAttention):
    """Attention to a prompt and, with the same queries, to the image tokens of each frame: two softmaxes, one sum."""

    def __init__(self, c: DynamiCrafterConfig, dim: int) -> None:
        super().__init__(dim, c.context_dim, dim // c.head_dim, c.head_dim)
        self.text_tokens, self.image_tokens = c.text_tokens, c.image_tokens
        self.to_image_kv = Linear(c.context_dim, 2 * dim, bias=False)
        self.alpha = nn.Parameter(torch.zeros(())) if c.learned_scale else None

    def project(self, context: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the prompt, b h m d, and of each key frame's image, b k h t d.

        context: b m+k*t c, the prompt's m tokens and then t for each of k key frames."""
        text, image = context.tensor_split([self.text_tokens], dim=1)
        image = self.to_image_kv(image.unflatten(1, (-1, self.image_tokens)))
        k, v = rearrange(image, "b k t (two h d) -> two b k h t d", two=2, h=self.heads)
        return *super().project(text), k, v

    def attend(self, q: Tensor, *states: Tensor) -> Tensor:
        """ValueError if the frames are not those of the key frames or a multiple."""
        *text, k, v = states
        f, keys = q.shape[1], k.shape[1]
        if f % keys:
            raise ValueError(f"{f} frames with image tokens of {keys} key frames; a multiple of {keys} is needed")
        o = super().attend(q, *text)
        q = rearrange(q, "b (k n) l (h d) -> (b k) h (n l) d", k=keys, h=self.heads)  # n frames share their key frame's
        of_image = F.scaled_dot_product_attention(q, k.flatten(0, 1), v.flatten(0, 1))
        of_image = rearrange(of_image, "(b k) h (n l) d -> b (k n) l (h d)", k=keys, n=f // keys)
        return o + of_image if self.alpha is None else o + (self.alpha.tanh() + 1) * of_image


# --- its encoders


@dataclass(frozen=True)
class ResamplerConfig:
    width: int = 1024
    layers: int = 4
    heads: int = 12
    head_dim: int = 64
    tokens: int = 16  # of each frame
    frames: int = 16
    image_width: int = 1280  # of the image tower's tokens
    out: int = 1024


@dataclass(frozen=True)
class EncoderConfig:
    text: TextConfig = TextConfig()
    image: ImageConfig = ImageConfig()
    resampler: ResamplerConfig = ResamplerConfig()

    @property
    def context_shape(self) -> tuple[int, int]:
        """Tokens and channels of the condition."""
        return self.text.context_length + self.resampler.frames * self.resampler.tokens, self.text.width


class Encoder(nn.Module):
    """From prompts and images to the network's context."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTower(config.text)
        self.image = TokenTower(config.image)
        self.resampler = Resampler(config.resampler)

    def forward(self, ids: Tensor, images: Tensor, frames: int) -> Tensor:
        """ids: n m; images: n 3 h w in [-1, 1]; frames: k, those of the first stage. Returns n m+k*t c."""
        text = self.text(ids)
        image = self.resampler(self.image(self.image.prepare(images).to(text.dtype)))
        return torch.cat([text, image[:, : frames * self.config.resampler.tokens]], dim=1)


class TokenTower(ImageTower):
    """All tokens of the image; the last norm and the projection are left out."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        del self.norm_out, self.proj_out

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tokens(pixels)


class Resampler(nn.Module):
    """Learned queries, some for each frame, that read the image's tokens (as in Flamingo, arXiv 2204.14198)."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.queries = nn.Parameter(torch.randn(c.frames * c.tokens, c.width) / c.width**0.5)
        self.proj_in = nn.Linear(c.image_width, c.width)
        self.blocks = nn.ModuleList(ResamplerBlock(c) for _ in range(c.layers))
        self.proj_out = nn.Linear(c.width, c.out)
        self.norm_out = nn.LayerNorm(c.out)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: b m c of the image; returns b f*t c, frame by frame."""
        x, h = self.proj_in(tokens), self.queries.expand(len(tokens), -1, -1)
        for block in self.blocks:
            h = block(h, x)
        return self.norm_out(self.proj_out(h))


class ResamplerBlock(nn.Module):
    """h: b q d. Attention to x (b m d) and to h itself, then feed-forward."""

    def __init__(self, c: ResamplerConfig) -> None:
        super().__init__()
        self.heads, inner = c.heads, c.heads * c.head_dim
        self.norm_x, self.norm1 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.to_q = nn.Linear(c.width, inner, bias=False)
        self.to_kv = nn.Linear(c.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, c.width, bias=False)
        self.norm2 = nn.LayerNorm(c.width)
        self.fc1 = nn.Linear(c.width, 4 * c.width, bias=False)
        self.fc2 = nn.Linear(4 * c.width, c.width, bias=False)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        own = self.norm1(h)
        q = rearrange(self.to_q(own), "b q (h d) -> b h q d", h=self.heads)
        kv = self.to_kv(torch.cat([self.norm_x(x), own], dim=1))
        k, v = rearrange(kv, "b m (two h d) -> two b h m d", two=2, h=self.heads)
        h = h + self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h q d -> b q (h d)"))
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))


# --- where the tensors of `model.ckpt` go

IMAGE_ATTENTION = Table(
    [
        ("transformer_blocks.{}.attn2.to_k_ip.weight", "blocks.{}.cross_attn.to_image_kv.weight#0"),
        ("transformer_blocks.{}.attn2.to_v_ip.weight", "blocks.{}.cross_attn.to_image_kv.weight#1"),
        ("transformer_blocks.{}.attn2.alpha", "blocks.{}.cross_attn.alpha"),
    ]
)
UNET = Table(
    [
        *IMAGE_ATTENTION.within("input_blocks.{}.1.", "encoder.{-1}.spatial."),
        *IMAGE_ATTENTION.within("middle_block.1.", "middle.spatial."),
        *IMAGE_ATTENTION.within("output_blocks.{}.1.", "decoder.{}.spatial."),
        ("framestride_embed.*", "fps_embedding.*"),  # the 256 model's spelling
        *videocrafter.UNET.rows,
    ]
)
RESAMPLER = Table(
    [
        ("latents", "queries"),
        ("proj_in.*", "proj_in.*"),
        ("layers.{}.0.norm1.*", "blocks.{}.norm_x.*"),
        ("layers.{}.0.norm2.*", "blocks.{}.norm1.*"),
        *((f"layers.{{}}.0.{name}.weight", f"blocks.{{}}.{name}.weight") for name in ("to_q", "to_kv", "to_out")),
        ("layers.{}.1.0.*", "blocks.{}.norm2.*"),
        ("layers.{}.1.1.weight", "blocks.{}.fc1.weight"),
        ("layers.{}.1.3.weight", "blocks.{}.fc2.weight"),
        ("proj_out.*", "proj_out.*"),
        ("norm_out.*", "norm_out.*"),
    ]
)
IMAGE = Table(
    [row for row in svd.SGM_IMAGE.rows if row[0] not in ("ln_post.*", "proj")],
    dropped={"ln_post.*": "the tokens before it are taken", "proj": "the tokens before it are taken"},
)

# --- the published models

V_PREDICTION = DDIMConfig(
    prediction="v", zero_terminal_snr=True, spacing="trailing", data_scale=0.7, last_scale_stays=True
)
