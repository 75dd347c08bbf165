"""DynamiCrafter (Xing et al. 2023, arXiv 2310.12190): an image and a prompt to video, at 256, 512
and 1024.

VideoCrafter2's UNet, which sees the image twice: its latents come beside the noisy ones, as in
Stable Video Diffusion, and cross-attention attends, with the same queries, to the prompt and to
tokens of the image, 16 for each frame that the network was trained on. A frame that a further stage
inserts takes the tokens of the key frame before it. The paper has no such network: this is our
reading. Key frames keep their own tokens either way.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from weights_convert import ldm, svd, videocrafter
from weights_convert.engine import ConversionError, Table, same
from weights_convert.source import Source
from zerosmooth.attention import CrossAttention
from zerosmooth.bus import name_modules
from zerosmooth.config import Defaults, ModelConfig, Sampling
from zerosmooth.family import Family, Networks
from zerosmooth.guidance import Branch, Inputs
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from zerosmooth.models.kernels import Linear
from zerosmooth.models.unet import SpatialBlock
from zerosmooth.models.videocrafter import UNet, UNetConfig
from zerosmooth.samplers import DDIMConfig
from zerosmooth.settings import Settings

# --- the network


@dataclass(frozen=True)
class DynamiCrafterConfig(UNetConfig):
    in_channels: int = 8  # of the noisy latents and of the image's
    text_tokens: int = 77
    image_tokens: int = 16  # of each frame
    learned_scale: bool = False  # each module has a weight of its own for the image (256)
    told_stride: bool = False  # the condition is a frame stride, not a frame rate (256)


class DynamiCrafterUNet(UNet):
    """VideoCrafter2's, with another cross-attention. Its context is the prompt's tokens, then those
    of each key frame."""

    def __init__(self, config: DynamiCrafterConfig) -> None:
        super().__init__(config)
        for block in self.modules():
            if isinstance(block, SpatialBlock):
                dim = block.self_attn.to_qkv.in_features
                block.cross_attn = TextImageAttention(config, dim)
        name_modules(self)


class TextImageAttention(CrossAttention):
    """Attention to a prompt plus, with the same queries, attention to the image tokens of each
    frame."""

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
        """ValueError if the frames are not a multiple of the key frames. Fewer frames take the
        tokens of the first ones."""
        *text, k, v = states
        f, keys = q.shape[1], min(q.shape[1], k.shape[1])
        if f % keys:
            raise ValueError(f"{f} frames with image tokens of {keys} key frames; "
                             f"a multiple of {keys} is needed")
        o = super().attend(q, *text)
        # n frames share the tokens of their key frame
        q = rearrange(q, "b (k n) l (h d) -> (b k) h (n l) d", k=keys, h=self.heads)
        k, v = (x[:, :keys].flatten(0, 1) for x in (k, v))
        of_image = F.scaled_dot_product_attention(q, k, v)
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
        image_tokens = self.resampler.frames * self.resampler.tokens
        return self.text.context_length + image_tokens, self.text.width


class Encoder(nn.Module):
    """From prompts and images to the network's context."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTower(config.text)
        self.image = TokenTower(config.image)
        self.resampler = Resampler(config.resampler)

    def encode(self, prompts: Sequence[str], images: Tensor, frames: int) -> Tensor:
        """images: n 3 h w in [-1, 1], float32; frames: k, of the first stage. Returns n m+k*t c."""
        text = self.text.encode(list(prompts))
        image = self.resampler(self.image.encode(images))
        return torch.cat([text, image[:, : frames * self.config.resampler.tokens]], dim=1)


class TokenTower(ImageTower):
    """All tokens of the image; the last norm and the projection are left out."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        del self.norm_out, self.proj_out

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tokens(pixels)


class Resampler(nn.Module):
    """Learned queries, some for each frame, that attend to the image's tokens (as in Flamingo,
    arXiv 2204.14198)."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.queries = nn.Parameter(torch.randn(1, c.frames * c.tokens, c.width) / c.width**0.5)
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
        o = F.scaled_dot_product_attention(q, k, v)
        h = h + self.to_out(rearrange(o, "b h q d -> b q (h d)"))
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))


# --- where the tensors of `model.ckpt` go

CROSS, OURS = f"{ldm.BLOCK}.attn2", f"{ldm.OURS}.cross_attn"
IMAGE_ATTENTION = Table([
    *ldm.joined(f"{CROSS}.to_{{part}}_ip", f"{OURS}.to_image_kv", "k v"),
    (f"{CROSS}.alpha", f"{OURS}.alpha")])
UNET = Table([
    *IMAGE_ATTENTION.within("input_blocks.{}.1.", "encoder.{-1}.spatial."),
    *IMAGE_ATTENTION.within("middle_block.1.", "middle.spatial."),
    *IMAGE_ATTENTION.within("output_blocks.{}.1.", "decoder.{}.spatial."),
    ("framestride_embed.*", "fps_embedding.*"),  # the 256 model's spelling
    *videocrafter.UNET.rows])
RESAMPLER = Table([
    ("latents", "queries"), *same("proj_in", "proj_out", "norm_out"),
    ("layers.{}.0.norm1.*", "blocks.{}.norm_x.*"), ("layers.{}.0.norm2.*", "blocks.{}.norm1.*"),
    *Table(same("to_q", "to_kv", "to_out")).within("layers.{}.0.", "blocks.{}."),
    ("layers.{}.1.0.*", "blocks.{}.norm2.*"), ("layers.{}.1.1.*", "blocks.{}.fc1.*"),
    ("layers.{}.1.3.*", "blocks.{}.fc2.*")])
UNUSED = ("ln_post.*", "proj")  # the tokens before them are taken
IMAGE = Table([row for row in svd.SGM_IMAGE.rows if row[0] not in UNUSED],
              dropped=dict.fromkeys(UNUSED, "the tokens before it are taken"))


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """The whole file: the network, VideoCrafter2's autoencoder and text tower, the image's tower
    and resampler."""
    rest = videocrafter.table(replace(config, encoder=config.encoder.text), names)
    clip = "embedder.model."
    return Table(
        [*UNET.within("model.diffusion_model.", "unet."),
         *IMAGE.within(f"{clip}visual.", "encoder.image."),
         *RESAMPLER.within("image_proj_model.", "encoder.resampler."),
         *((source, re.sub("^encoder", "encoder.text", target)) for source, target in rest.rows)],
        dropped={
            **rest.dropped,
            **{f"{clip}visual.{name}": why for name, why in IMAGE.dropped.items()},
            **{clip + name: "of the image encoder's text tower, which is not used"
               for name in ("token_embedding.*", *svd.TEXT_TOWER)}})


class DynamiCrafterConversion(videocrafter.VideoCrafterConversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", choices=MODELS, help="which published model it is (default: "
                                                            "as weights and noise schedule say)")

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        """Only the 256 model weights its images. The others differ in the scale of their data."""
        if args.model is not None:
            return MODELS[args.model]
        if any(name.endswith("attn2.alpha") for name in source.shapes):
            return MODELS["256"]
        if "scale_arr" not in source.shapes:
            raise ConversionError(f"{source.name} does not show which model it is; "
                                  "add --model 512, or 1024")
        return MODELS["512" if source.read("scale_arr")[-1] > 0.5 else "1024"]


# --- the family


def model(unet: DynamiCrafterConfig, sampler: DDIMConfig, **defaults: Any) -> ModelConfig:
    prompt = "a campfire with a rocket in the night sky"
    return ModelConfig("dynamicrafter", unet, AutoencoderConfig(), EncoderConfig(), sampler,
                       Defaults(guidance_scale=7.5, prompt=prompt, **defaults))


V512 = DDIMConfig(prediction="v", zero_terminal_snr=True, spacing="trailing", data_scale=0.7,
                  last_scale_stays=True)
MODELS = {
    "256": model(DynamiCrafterConfig(learned_scale=True, told_stride=True),
                 DDIMConfig(more_steps=True), height=256, width=256, fps=8),
    "512": model(DynamiCrafterConfig(), V512, height=320, width=512, fps=24, guidance_rescale=0.7),
    "1024": model(DynamiCrafterConfig(), replace(V512, data_scale=0.3), height=576, width=1024,
                  fps=10, guidance_rescale=0.7),
}


class DynamiCrafter(Family):
    name = "dynamicrafter"
    config = MODELS["512"]
    takes = ("prompt", "image")
    idle = ("motion_bucket_id", "noise_aug_strength")
    conversion = DynamiCrafterConversion(table)

    def unet(self, config: DynamiCrafterConfig) -> nn.Module:
        return DynamiCrafterUNet(config)

    def encoder(self, config: EncoderConfig) -> nn.Module:
        return Encoder(config)

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        """The unconditional branch has the negative prompt and the tokens of a grey image, but the
        latents of the image itself."""
        prompts, pixels = inputs.prompts, inputs.pixels
        mean, log_variance = networks.vae.moments(pixels.to(networks.vae.dtype))
        noise = inputs.noise.flatten(1)[:, : mean[0].numel()].view(mean.shape)  # of the posterior
        latents = networks.vae.config.scale * (mean + (log_variance / 2).exp() * noise)
        negative = [settings.negative_prompt] * len(prompts)
        contexts = [networks.encoder.encode(*shown, settings.key_frames)
                    for shown in ((prompts, pixels), (negative, torch.zeros_like(pixels)))]
        return [Branch(context, latents.to(context.dtype)) for context in contexts]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return networks.encoder.text.tokenizer.overflow(prompt)

    def told_rate(self, config: ModelConfig) -> bool:
        return True

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        """The frame rate, or the frame stride in a film of 24 frames a second."""
        assert isinstance(config.unet, DynamiCrafterConfig)
        return torch.tensor(24 / fps if config.unet.told_stride else fps)


FAMILY = DynamiCrafter()
