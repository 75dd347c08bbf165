"""Where the tensors of Stable Video Diffusion go, from its authors' single file or from a diffusers
folder."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerosmooth.samplers import EulerConfig

from . import diffusers, ldm
from .conversion import Conversion
from .engine import ConversionError, Table
from .ldm import PROJECTIONS, feed_forward, norms, self_attention
from .source import Source, join, open_folder, open_source, with_unet

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

UNETS = {
    "down_blocks.": "unet.",
    "input_blocks.": "model.diffusion_model.",
}  # of what a UNet's file has, its prefix here
ONE_TOKEN = "softmax over the one token of the image is 1 whatever the query"


def transformer(temporal: str, position: list[tuple[str, str]]) -> Table:
    """temporal: name of the temporal blocks; position: rows of the positions' embedding."""
    rows = [*PROJECTIONS, *position, ("time_mixer.mix_factor", "mix.factor")]
    for source, target, attention in (("transformer_blocks.{}", "blocks.{}", "self_attn"),
                                      (f"{temporal}.{{}}", "temporal_blocks.{}", "attn")):
        rows += norms(source, target, "norm1", "norm3", "norm_in")
        rows += self_attention(f"{source}.attn1", f"{target}.{attention}")
        rows += [(f"{source}.attn2.to_v.weight", f"{target}.cross_attn.to_v.weight")]
        rows += [(f"{source}.attn2.to_out.0.*", f"{target}.cross_attn.to_out.*")]
        rows += feed_forward(f"{source}.ff", f"{target}.ff") + feed_forward(f"{source}.ff_in",
                                                                            f"{target}.ff_in")
    return Table(rows)


def unused(temporal: str) -> dict[str, str]:
    blocks = ("*transformer_blocks.{}", f"*{temporal}.{{}}")
    return {f"{b}.{name}": ONE_TOKEN for b in blocks
            for name in ("attn2.to_q.weight", "attn2.to_k.weight", "norm2.*")}


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """All three networks; in a folder, with the folders' names before their tensors'. The UNet may
    come from elsewhere than the others."""
    single = ("model.", "first_stage_model.", "conditioner.")
    others = _single_file(names) if any(name.startswith(single)
                                        for name in names) else _folder(config)
    theirs = any(name.startswith("model.diffusion_model.") for name in names)
    unet, temporal = (SGM_UNET_ROWS, "time_stack") if theirs else (_hf_unet(config),
                                                                   "temporal_transformer_blocks")
    return replace(others, rows=unet + others.rows, dropped={**unused(temporal), **others.dropped})


SGM_RES = Table([*ldm.RES.within("", "spatial."), *ldm.RES.within("time_stack.", "temporal."),
                 ("time_mixer.mix_factor", "mix.factor")])
SGM_TRANSFORMER = transformer("time_stack", [("time_pos_embed.*", "position_embedding.*")])
SGM_UNET = Table([*ldm.unet(SGM_RES, SGM_TRANSFORMER).rows,
                  ("label_emb.0.*", "condition_embedding.*")])
SGM_UNET_ROWS = SGM_UNET.within("model.diffusion_model.", "unet.")
SGM_DECODER_RES = Table([*ldm.VAE_RES.within("", "spatial."),
                         *ldm.RES.within("time_stack.", "temporal."), ("mix_factor", "mix.factor")])
SGM_IMAGE = Table([("class_embedding", "class_embedding"),
                   ("positional_embedding", "positional_embedding"),
                   ("conv1.weight", "patch_embedding.weight"), ("ln_pre.*", "norm_in.*"),
                   *ldm.TOWER.rows, ("ln_post.*", "norm_out.*"), ("proj", "proj_out.weight^T")])


def _single_file(names: Collection[str]) -> Table:
    clip, own = "conditioner.embedders.0.open_clip.model.", "conditioner.embedders.3.encoder."
    has_own = any(name.startswith(f"{own}encoder.") for name in names)  # an encoder for the reference image alone
    encoder = f"{own}encoder." if has_own else "first_stage_model.encoder."
    return Table([*ldm.VAE_ENCODER.within(encoder, "vae.encoder."),
                  (f"{own}quant_conv.*", "vae.quant_conv.*"),
                  ("first_stage_model.decoder.conv_out.time_mix_conv.*",
                   "vae.decoder.temporal_conv.*"),
                  *ldm.vae_decoder(SGM_DECODER_RES).within("first_stage_model.decoder.",
                                                           "vae.decoder."),
                  *SGM_IMAGE.within(f"{clip}visual.", "encoder.")],
                 dropped={**({
                    "first_stage_model.encoder.*": "the reference image has its own encoder"}
                             if has_own else {}),
                          f"{own}decoder.*": "the decoder is the temporal one",
                          f"{own}post_quant_conv.*": "the decoder is the temporal one",
                          f"{clip}positional_embedding": "of the text tower, which is not used",
                          f"{clip}text_projection": "of the text tower, which is not used",
                          f"{clip}token_embedding.weight": "of the text tower, which is not used",
                          f"{clip}ln_final.*": "of the text tower, which is not used",
                          f"{clip}transformer.*": "of the text tower, which is not used",
                          f"{clip}attn_mask": "of the text tower, which is not used",
                          f"{clip}logit_scale": "of CLIP's own training"}, filled={} if has_own
                 else {"vae.quant_conv.weight": _identity, "vae.quant_conv.bias": torch.zeros})


HF_RES = Table([*diffusers.RES.within("spatial_res_block.", "spatial."),
                *diffusers.RES.within("temporal_res_block.", "temporal."),
                ("time_mixer.mix_factor", "mix.factor")])
HF_TRANSFORMER = transformer("temporal_transformer_blocks",
                             diffusers.mlp("time_pos_embed", "position_embedding"))


def _hf_unet(config: ModelConfig) -> list[tuple[str, str]]:
    lists = ("resnets", "res", HF_RES), ("attentions", "transformer", HF_TRANSFORMER)
    told = diffusers.mlp("add_embedding", "condition_embedding")
    return Table(diffusers.unet(config.unet, lists).rows + told).within("unet.", "unet.")


def _folder(config: ModelConfig) -> Table:
    return Table([*diffusers.vae(config.vae, HF_RES).within("vae.", "vae."),
                  ("vae.decoder.time_conv_out.*", "vae.decoder.temporal_conv.*"),
                  *diffusers.IMAGE.within("image_encoder.", "encoder.")],
                 dropped={"image_encoder.vision_model.embeddings.position_ids": "0, 1, 2, .."})


def _identity(*shape: int) -> Tensor:
    return torch.eye(shape[0]).reshape(shape)


NAMES = {  # of files and folders, without their suffixes and in lower case: what they are called, and its frames
    r"(.*[^a-z])?(svd|img2vid)?xt([^a-z].*)?": 25,
    r"((stable[-_. ]?video[-_. ]?diffusion|svd|img2vid|image[-_ ]decoder|fp16|fp32|\(\d+\))[-_. ]?)+": 14,
}


def frames_of(path: Path, asked: int | None) -> tuple[int, str]:
    """Frames that a Stable Video Diffusion was trained on, and why: as asked, as its folder's
    config says, or by its name. ConversionError if none of them tells."""
    if asked is not None:
        return asked, "as --num_frames says"
    config = path / "unet" / "config.json"
    if config.exists():
        try:
            frames = json.loads(config.read_text(encoding="utf-8"))["num_frames"]
            if type(frames) is not int or not 2 <= frames <= 1024:
                raise ValueError(f"num_frames is {frames!r:.40}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConversionError(f"{config} does not tell num_frames ({error}); add --num_frames 14 or 25") from error
        return frames, f"as {config} says"
    name = re.sub(r"(\.(safetensors|ckpt|pth?|bin))*$", "", path.absolute().name.lower())
    for pattern, frames in NAMES.items():
        if re.fullmatch(pattern, name):
            return frames, f"by the name {path.name}; if that is wrong, say --num_frames {39 - frames}"
    raise ConversionError(
        f"{path} does not say by its name which variant it is, and nothing in it does; add --num_frames 14, or 25 for "
        "an xt one (svd_xt, img2vid-xt, 1.1)"
    )


class SVDConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--num_frames",
            type=int,
            choices=(14, 25),
            help="frames the model was trained on (default: as a folder's unet/config.json says; of a file, 25 if xt "
            "is in its name, 14 if that is svd or img2vid and nothing unknown)",
        )
        add = parser.add_argument
        add("--unet", type=Path,
            help="another UNet's weights, in a file of their own (AnimateLCM-SVD-xt.safetensors)")
        add("--consistency", action="store_true",
            help="the UNet is a consistency model (AnimateLCM): 4 to 8 steps")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        source = self.open_others(path)
        return source if args.unet is None else with_unet(source, args.unet, UNETS)

    def open_others(self, path: Path) -> Source:
        if path.is_dir():
            return join(path, open_folder(path, ("unet", "vae", "image_encoder")))
        source = open_source(path)
        decoder = [name for name in source.shapes if name.startswith("first_stage_model.decoder.")]
        if decoder and not any("time_" in name for name in decoder):
            raise ConversionError(
                f"{path} has Stable Video Diffusion's frame-wise decoder (image_decoder); take the file with the "
                "temporal one: svd.safetensors or svd_xt.safetensors"
            )
        return source

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        frames, why = frames_of(source.path, args.num_frames)
        print(f"taken for a model of {frames} frames, {why}")
        config = replace(config, unet=replace(config.unet, frames=frames))
        if not args.consistency:
            return config
        assert isinstance(config.sampler, EulerConfig)
        return replace(  # as AnimateLCM's authors sample
            config,
            sampler=replace(config.sampler, consistency=40),
            defaults=replace(config.defaults, steps=4, eta=1.0, guidance_scale=1.2),
        )


CONVERSION = SVDConversion(table)
