"""Where the tensors of Stable Video Diffusion go, from its authors' single file or from a diffusers
folder."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import configs, diffusers, ldm
from .conversion import Conversion
from .engine import ConversionError, Rows, Table
from .ldm import BLOCK, OURS, PROJECTIONS, feed_forward, norms, self_attention
from .source import Source, join, open_folder, open_source, with_unet

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

NETWORK, VIDEO = "model.diffusion_model.", "first_stage_model."  # in the authors' file
CLIP, OWN = "conditioner.embedders.0.open_clip.model.", "conditioner.embedders.3.encoder."
UNETS = {"down_blocks.": "unet.", "input_blocks.": NETWORK}  # a name in a UNet's file -> our prefix
MIX = ("time_mixer.mix_factor", "mix.factor")
UNET_NEEDS = {"num_attention_heads": ([5, 10, 20, 20],)}
TOWER_NEEDS = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)}
IMAGE_NEEDS = {"image_mean": ([0.48145466, 0.4578275, 0.40821073],),
               "image_std": ([0.26862954, 0.26130258, 0.27577711],)}
TEXT_TOWER = ("positional_embedding", "text_projection", "token_embedding.weight", "ln_final.*",
              "transformer.*", "attn_mask", "logit_scale")


def transformer(temporal: str, position: Rows) -> Table:
    """temporal: name of the temporal blocks; position: rows of the positions' embedding."""
    rows = [*PROJECTIONS, *position, MIX]
    for source, target, attention in ((BLOCK, OURS, "self_attn"),
                                      (f"{temporal}.{{}}", "temporal_blocks.{}", "attn")):
        rows += norms(source, target, "norm1", "norm3", "norm_in")
        rows += self_attention(f"{source}.attn1", f"{target}.{attention}")
        rows += [(f"{source}.attn2.to_v.weight", f"{target}.cross_attn.to_v.weight"),
                 (f"{source}.attn2.to_out.0.*", f"{target}.cross_attn.to_out.*")]
        for name in ("ff", "ff_in"):
            rows += feed_forward(f"{source}.{name}", f"{target}.{name}")
    return Table(rows)


def unused(temporal: str) -> dict[str, str]:
    """Queries and keys of attention to one token."""
    return {f"*{block}.{name}": "softmax over the image's one token is 1 whatever the query"
            for block in (BLOCK, f"{temporal}.{{}}")
            for name in ("attn2.to_q.weight", "attn2.to_k.weight", "norm2.*")}


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """All three networks; in a folder, with the folders' names before their tensors' names. The
    UNet may come from the other layout."""
    single = any(name.startswith((VIDEO, "conditioner.")) for name in names)
    others = _single_file(names) if single else _folder(config)
    if any(name.startswith(NETWORK) for name in names):
        unet, temporal = SGM_UNET.within(NETWORK, "unet."), "time_stack"
    else:
        unet, temporal = _hf_unet(config).within("unet.", "unet."), "temporal_transformer_blocks"
    return replace(others, rows=unet + others.rows, dropped={**unused(temporal), **others.dropped})


SGM_RES = Table([*ldm.RES.within("", "spatial."), *ldm.RES.within("time_stack.", "temporal."), MIX])
SGM_TRANSFORMER = transformer("time_stack", [("time_pos_embed.*", "position_embedding.*")])
SGM_UNET = Table([*ldm.unet(("res", SGM_RES), ("transformer", SGM_TRANSFORMER)).rows,
                  ("label_emb.0.*", "condition_embedding.*")])
SGM_DECODER = ldm.vae_decoder(Table([
    *ldm.VAE_RES.within("", "spatial."), *ldm.RES.within("time_stack.", "temporal."),
    ("mix_factor", "mix.factor")]))
SGM_IMAGE = Table([
    ("class_embedding", "class_embedding"), ("positional_embedding", "positional_embedding"),
    ("conv1.weight", "patch_embedding.weight"), ("ln_pre.*", "norm_in.*"), *ldm.TOWER,
    ("ln_post.*", "norm_out.*"), ("proj", "proj_out.weight^T")])


def _single_file(names: Collection[str]) -> Table:
    # the reference image has an encoder of its own, or that of the video
    has_own = any(name.startswith(f"{OWN}encoder.") for name in names)
    return Table(
        [*ldm.VAE_ENCODER.within(f"{OWN if has_own else VIDEO}encoder.", "vae.encoder."),
         (f"{OWN}quant_conv.*", "vae.quant_conv.*"),
         (f"{VIDEO}decoder.conv_out.time_mix_conv.*", "vae.decoder.temporal_conv.*"),
         *SGM_DECODER.within(f"{VIDEO}decoder.", "vae.decoder."),
         *SGM_IMAGE.within(f"{CLIP}visual.", "encoder.")],
        dropped={
            **({f"{VIDEO}encoder.*": "the reference image has its own encoder"} if has_own else {}),
            f"{OWN}decoder.*": "the decoder is the temporal one",
            f"{OWN}post_quant_conv.*": "the decoder is the temporal one",
            **{CLIP + name: "of the text tower, which is not used" for name in TEXT_TOWER}},
        filled={} if has_own else {"vae.quant_conv.weight": _identity,
                                   "vae.quant_conv.bias": torch.zeros})


HF_RES = Table([*diffusers.RES.within("spatial_res_block.", "spatial."),
                *diffusers.RES.within("temporal_res_block.", "temporal."), MIX])
HF_TRANSFORMER = transformer("temporal_transformer_blocks",
                             diffusers.mlp("time_pos_embed", "position_embedding"))


def _hf_unet(config: ModelConfig) -> Table:
    lists = ("resnets", "res", HF_RES), ("attentions", "transformer", HF_TRANSFORMER)
    return Table([*diffusers.unet(config.unet, lists).rows,
                  *diffusers.mlp("add_embedding", "condition_embedding")])


def _folder(config: ModelConfig) -> Table:
    return Table([*diffusers.vae(config.vae, HF_RES).within("vae.", "vae."),
                  ("vae.decoder.time_conv_out.*", "vae.decoder.temporal_conv.*"),
                  *diffusers.IMAGE.within("image_encoder.", "encoder.")],
                 dropped={f"image_encoder.vision_model.{diffusers.POSITION_IDS}": "0, 1, 2, .."})


def _identity(*shape: int) -> Tensor:
    return torch.eye(shape[0]).reshape(shape)


NAMES = {  # of files and folders, in lower case and without suffixes -> frames
    r"(.*[^a-z])?(svd|img2vid)?xt([^a-z].*)?": 25,
    r"((stable[-_. ]?video[-_. ]?diffusion|svd|img2vid|image[-_ ]decoder|fp16|fp32|\(\d+\))"
    r"[-_. ]?)+": 14,
}


def frames_of(path: Path, asked: int | None) -> tuple[int, str]:
    """The frames that a Stable Video Diffusion was trained on, and what says so: the command line,
    its folder's config, or its name. ConversionError if nothing does."""
    if asked is not None:
        return asked, "as --num_frames says"
    config = configs.said(path / "unet" / "config.json")
    if config.values:
        frames = config.values.get("num_frames")
        if type(frames) is not int or not 2 <= frames <= 1024:
            raise ConversionError(f"{config.file} has no usable num_frames (num_frames is "
                                  f"{frames!r:.40}); add --num_frames 14 or 25")
        return frames, f"as {config.file} says"
    name = re.sub(r"(\.(safetensors|ckpt|pth?|bin))*$", "", path.absolute().name.lower())
    for pattern, frames in NAMES.items():
        if re.fullmatch(pattern, name):
            return frames, f"by the name {path.name}; if it has {39 - frames}, say --num_frames"
    raise ConversionError(f"the name {path} does not say which variant it is; add --num_frames 14, "
                          "or 25 for an xt one (svd_xt, img2vid-xt, 1.1)")


class SVDConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--num_frames", type=int, choices=(14, 25),
            help="frames the model was trained on (default: as a folder's unet/config.json or the "
                 "name says: 25 with xt in it, 14 for svd and img2vid)")
        add("--unet", type=Path,
            help="another UNet's weights, in a file of their own (AnimateLCM-SVD-xt.safetensors)")
        add("--consistency", action="store_true",
            help="the UNet is a consistency model (AnimateLCM): 4 to 8 steps")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        if path.is_dir():
            source = join(path, open_folder(path, ("unet", "vae", "image_encoder")))
        else:
            source = open_source(path, weights=args.weights)
            decoder = [name for name in source.shapes if name.startswith(f"{VIDEO}decoder.")]
            if decoder and not any("time_" in name for name in decoder):
                raise ConversionError(
                    f"{path} has Stable Video Diffusion's frame-wise decoder (image_decoder); take "
                    "the file with the temporal one: svd.safetensors or svd_xt.safetensors")
        return source if args.unet is None else with_unet(source, args.unet, UNETS)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        frames, why = frames_of(source.path, args.num_frames)
        print(f"taken for a model of {frames} frames, {why}")
        config = replace(config, unet=replace(config.unet, frames=frames))
        if (path := source.path).is_dir():
            configs.said(path / "unet/config.json").over(config.unet, {}, UNET_NEEDS)
            configs.said(path / "feature_extractor/preprocessor_config.json").over(
                config.encoder, {}, IMAGE_NEEDS)
            tower = configs.said(path / "image_encoder/config.json")
            config = replace(
                config, vae=configs.vae(path / "vae", config.vae),
                encoder=tower.over(config.encoder, {"num_attention_heads": ("heads", None)},
                                   TOWER_NEEDS),
                sampler=configs.euler(path, config.sampler))
        if not args.consistency:
            return config
        return replace(config, sampler=replace(config.sampler, consistency=40),  # as its authors do
                       defaults=replace(config.defaults, steps=4, eta=1.0, guidance_scale=1.2))


CONVERSION = SVDConversion(table)
