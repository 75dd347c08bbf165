"""AnimateDiff (Guo et al. 2023, arXiv 2307.04725): Stable Diffusion 1.5 with motion modules.

    python -m weights_convert --family examples/animatediff.py SD15 \\
        --motion v3_sd15_mm.ckpt -o ad.safetensors
    python sample.py --family examples/animatediff.py --ckpt ad.safetensors --prompt "..."

A family in one file: the network, the names of its published weights, and its settings. Behind
every ResNet block of Stable Diffusion, after its spatial transformer where it has one, stands a
motion module: attention along the frames, twice, with absolute positions, and a feed-forward. The
versions differ little: v2 has one more in the middle, and v1 was trained with ResNet blocks whose
norms see all frames together.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from weights_convert import configs, diffusers, ldm, lora
from weights_convert.conversion import Conversion
from weights_convert.engine import ConversionError, Shapes, Table
from weights_convert.source import Source, join, open_folder, open_source
from weights_convert.videocrafter import BUFFERS, SPATIAL
from zerosmooth.attention import ContextStates, TemporalAttention, frame_positions
from zerosmooth.bus import Stage, name_modules
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family
from zerosmooth.fields import UserError
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.models.layers import FeedForward, ResBlock, sinusoid
from zerosmooth.models.unet import Block, Skeleton, SkeletonConfig, SpatialBlock, Transformer
from zerosmooth.samplers import DDIMConfig

# --- the network

VERSIONS, NORMS = ("v1", "v2", "v3"), ("authors", "diffusers")


@dataclass(frozen=True)
class AnimateDiffConfig(SkeletonConfig):
    context_dim: int = 768
    heads: int = 8  # at every level
    motion_heads: int = 8
    motion_groups: int = 32  # of the motion modules' norms
    version: str = "v3"  # of the motion modules, one of VERSIONS
    norms: str = "authors"  # or "diffusers": which frames share statistics (see `AnimateDiffBlock`)

    def __post_init__(self) -> None:
        if self.version not in VERSIONS or self.norms not in NORMS:
            raise UserError(f"version={self.version!r}, norms={self.norms!r}; "
                            f"use one of {VERSIONS} and of {NORMS}")

    @property
    def res_across_frames(self) -> bool:
        """Whether all frames share the statistics of the norms in ResNet blocks and of the last
        norm."""
        return self.version == "v1" and self.norms == "authors"


class AnimateDiffUNet(Skeleton):
    def __init__(self, config: AnimateDiffConfig) -> None:
        super().__init__(config, partial(AnimateDiffBlock, config), config.res_across_frames)
        name_modules(self)


class AnimateDiffBlock(Block):
    """Norms see one frame each, as the weights were trained; in v1's ResNet blocks all frames.

    In diffusers the norms of ResNet blocks see one frame, and those of motion modules all frames.
    """

    def __init__(self, c: AnimateDiffConfig, channels: int, out: int, attention: bool,
                 second_res: bool = False, **more: bool) -> None:
        res = partial(ResBlock, emb=4 * c.channels, groups=c.groups,
                      across_frames=c.res_across_frames)
        super().__init__(res, channels, out, second_res, **more)
        self.transformer = SpatialTransformer(c, out) if attention else None
        motion = c.version == "v2" or not second_res  # only v2 has one in the middle
        self.motion = MotionModule(c, out) if motion else None

    def attend(self, x: Tensor, b: int, context: ContextStates, stage: Stage | None) -> Tensor:
        if self.transformer is not None:
            x = self.transformer(x, b, context, stage)
        return x if self.motion is None else self.motion(x, b, context, stage)


class SpatialTransformer(Transformer):
    def __init__(self, c: AnimateDiffConfig, channels: int) -> None:
        super().__init__(channels, channels, c.groups)
        self.blocks.append(SpatialBlock(channels, c.context_dim, c.heads, channels // c.heads))


class MotionModule(Transformer):
    def __init__(self, c: AnimateDiffConfig, channels: int) -> None:
        super().__init__(channels, channels, c.motion_groups, across_frames=c.norms == "diffusers")
        self.blocks.append(MotionBlock(channels, c.motion_heads))


class MotionBlock(nn.Module):
    """h: b f l d. Twice self-attention along the frames, then feed-forward.

    Each attention adds the frames' positions to queries, keys and values. On the bus they are those
    of the key frames and of the places between them (Eq. 16), so there can be more frames than the
    motion modules were trained on.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attns = nn.ModuleList(TemporalAttention(dim, heads, dim // heads) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.ff = FeedForward(dim)
        self.norm_ff = nn.LayerNorm(dim)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        f, dim = h.shape[1], h.shape[-1]
        positions = embed_positions(frame_positions(f, stage), dim).to(h)[:, None]  # f 1 d
        for norm, attn in zip(self.norms, self.attns):
            h = h + attn(norm(h) + positions, stage)
        return h + self.ff(self.norm_ff(h))


def embed_positions(position: Tensor, dim: int) -> Tensor:
    """Sines at even channels, cosines at odd ones. position: f; returns f dim, float32."""
    cosines, sines = sinusoid(position, dim).chunk(2, dim=-1)
    return torch.stack([sines, cosines], dim=-1).flatten(-2)


# --- the names of the published weights

BLOCK, OURS = ldm.BLOCK, ldm.OURS
BY_AUTHORS = Table([
    *ldm.PROJECTIONS,
    *ldm.self_attention(f"{BLOCK}.attention_blocks.{{}}", f"{OURS}.attns.{{}}"),
    (f"{BLOCK}.norms.{{}}.*", f"{OURS}.norms.{{}}.*"),
    *ldm.feed_forward(f"{BLOCK}.ff", f"{OURS}.ff"), (f"{BLOCK}.ff_norm.*", f"{OURS}.norm_ff.*")])
MOTION = Table([  # in the authors' names, and in diffusers'
    *BY_AUTHORS.within("temporal_transformer.", ""), *ldm.PROJECTIONS,
    *ldm.self_attention(f"{BLOCK}.attn1", f"{OURS}.attns.0"),
    *ldm.self_attention(f"{BLOCK}.attn2", f"{OURS}.attns.1"),
    (f"{BLOCK}.norm1.*", f"{OURS}.norms.0.*"), (f"{BLOCK}.norm2.*", f"{OURS}.norms.1.*"),
    *ldm.feed_forward(f"{BLOCK}.ff", f"{OURS}.ff"), (f"{BLOCK}.norm3.*", f"{OURS}.norm_ff.*")])


MOTION_FIELDS: configs.Fields = {"motion_num_attention_heads": ("motion_heads", None),
                                 "motion_norm_num_groups": ("motion_groups", None)}
UNET_FIELDS: configs.Fields = {  # of heads, the older name means their number
    **configs.SAME, **MOTION_FIELDS, **dict.fromkeys(
        ("attention_head_dim", "num_attention_heads"), ("heads", None))}
IMAGE_BETAS = {"beta_start": 0.00085, "beta_end": 0.012,  # of images, in place of which motion
               "beta_schedule": "scaled_linear"}  # modules have betas of their own


def table(config: ModelConfig, names: Collection[str] = ()) -> Table:
    """All networks, of Stable Diffusion, a folder or a file (`sd.`); and of motion (`motion.`)."""
    motion = "motion_modules", "motion", MOTION
    lists = ("resnets", "res", diffusers.RES), ("attentions", "transformer", SPATIAL), motion
    sd = ldm.unet(("res", ldm.RES), ("transformer", SPATIAL))
    text = diffusers.TEXT.within("sd.cond_stage_model.transformer.", "encoder.")
    old = [(source.replace("text_model.", ""), target) for source, target in text]  # of 2022
    return Table(
        [*diffusers.unet(config.unet, lists).within("unet.", "unet."),
         *diffusers.unet(config.unet, [motion]).within("motion.", "unet."),
         *diffusers.vae(config.vae).within("vae.", "vae."),
         *diffusers.TEXT.within("text_encoder.", "encoder."),
         *sd.within("sd.model.diffusion_model.", "unet."),
         *sd.within("model.diffusion_model.", "unet."),  # in LoRAs
         *ldm.VAE.within("sd.first_stage_model.", "vae."), *text, *old],
        dropped={
            "*.pos_encoder.pe": "sines and cosines, computed",
            "*.pos_embed.pe": "sines and cosines, computed",
            "*.position_ids": "0, 1, 2, ..",
            **{f"sd.{name}": "of the noise schedule, computed" for name in BUFFERS}})


def version_of(shapes: Shapes) -> str:
    """The version of motion modules. ConversionError if there are none, or they do not show it."""
    motion = {name: shape for name, shape in shapes.items() if "motion_modules." in name}
    if not motion:
        raise ConversionError("there are no motion modules; add --motion with v3_sd15_mm.ckpt or "
                              "another file of them")
    if any("mid_block." in name for name in motion):
        return "v2"
    lengths = {shape[1] for name, shape in motion.items() if name.endswith(".pe")}
    if not lengths:
        raise ConversionError("the motion modules are v1 or v3, and lack the positions (.pe) whose "
                              "length shows which; take the file that their authors published")
    return "v1" if lengths == {24} else "v3"


class AnimateDiffConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--motion", type=Path, help="motion modules, v1 to v3: a file, or diffusers' folder")
        add("--norms", choices=NORMS, default=NORMS[0], help="whose norms (default: %(default)s)")
        lora.add_arguments(parser)

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        """Stable Diffusion, a folder or one file in latent diffusion's names; motion modules;
        LoRAs."""
        if path.is_dir():
            parts = open_folder(path, ("unet", "vae", "text_encoder"))
        else:
            parts = {"sd": open_source(path, weights=args.weights)}
        motion: Path | None = args.motion
        if motion is not None and motion.is_dir():
            parts["motion"] = open_folder(motion.parent, (motion.name,))[motion.name]
        elif motion is not None:
            parts["motion"] = open_source(motion)
        return lora.merge(join(path, parts), table(FAMILY.config), args)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        version, path = version_of(source.shapes), source.path
        unet = replace(config.unet, version=version, norms=args.norms)
        if args.motion is not None and args.motion.is_dir():
            unet = configs.said(args.motion / "config.json").over(unet, MOTION_FIELDS)
        if path.is_file():
            return replace(config, unet=unet)
        said = configs.said(path / "unet/config.json")
        said = said.without([key for key, value in said.values.items() if value is None])
        unet = said.over(unet, UNET_FIELDS, configs.UNET_NEEDS)
        said = configs.scheduler(path)
        if IMAGE_BETAS.items() <= said.values.items():
            said = said.without(IMAGE_BETAS.keys() | {"steps_offset", "set_alpha_to_one"})
        sampler = said.over(config.sampler, configs.DDIM, configs.DDIM_NEEDS)
        return replace(config, unet=unet, vae=configs.vae(path / "vae", config.vae),
                       encoder=configs.text(path, config.encoder), sampler=sampler)

    def check(self, source: Source, config: ModelConfig) -> None:
        """ConversionError if a file's noise schedule is not Stable Diffusion's: motion modules have
        another, but what the network predicts may then be another too."""
        name = "sd.alphas_cumprod"
        ours = DDIMConfig().alphas_cumprod()
        if name in source.shapes and not torch.allclose(
                source.read(name).double(), torch.from_numpy(ours), atol=1e-4):
            raise ConversionError(f"the source has another noise schedule ({name})")


# --- the family


class AnimateDiff(Family):
    name = "animatediff"
    config = ModelConfig(
        "animatediff", AnimateDiffConfig(), AutoencoderConfig(),
        TextConfig(width=768, heads=12, layers=12, pad_token=49407, activation="quick_gelu"),
        DDIMConfig(beta_schedule="linear", ends_clean=True),
        Defaults(height=512, width=512, steps=25, eta=0.0, guidance_scale=7.5,
                 negative_prompt="low quality, blurry, distorted, watermark"))
    conversion = AnimateDiffConversion(table)

    def unet(self, config: AnimateDiffConfig) -> nn.Module:
        return AnimateDiffUNet(config)


FAMILY = AnimateDiff()
