"""Where the tensors of VideoCrafter's `model.ckpt` go."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.samplers import DDIMConfig

from . import lora
from .conversion import Conversion
from .engine import ConversionError, Table
from .ldm import PROJECTIONS, RES, TEXT, VAE, cross_attention, feed_forward, norms, self_attention
from .source import LISTED, Source, open_source, with_unet

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

TEMPORAL_CONV = Table([("conv1.0.*", "norms.0.*"), ("conv1.2.*", "convs.0.*"),
                       *((f"conv{i + 1}.0.*", f"norms.{i}.*") for i in (1, 2, 3)),
                       *((f"conv{i + 1}.3.*", f"convs.{i}.*") for i in (1, 2, 3))])
VC_RES = Table([*RES.rows, *TEMPORAL_CONV.within("temopral_conv.", "temporal_conv.")])  # spelt so in the checkpoint
BLOCK = "transformer_blocks.{}", "blocks.{}"
FRAME = [*PROJECTIONS, *norms(*BLOCK, "norm1", "norm2", "norm3"),
         *feed_forward("transformer_blocks.{}.ff", "blocks.{}.ff")]
SPATIAL = Table(FRAME + self_attention("transformer_blocks.{}.attn1", "blocks.{}.self_attn")
                + cross_attention("transformer_blocks.{}.attn2", "blocks.{}.cross_attn"))
TEMPORAL = Table(FRAME
                 + [row for name in ("attn1", "attn2")
                    for row in (*self_attention(f"transformer_blocks.{{}}.{name}",
                                                f"blocks.{{}}.{name}"),
                                *((
                    f"transformer_blocks.{{}}.{name}.relative_position_{x}.embeddings_table",
                    f"blocks.{{}}.{name}.position.{ours}")
                                  for x, ours in (("k", "keys"), ("v", "values"))))])

UNET = Table([("time_embed.*", "time_embedding.*"), ("fps_embedding.*", "fps_embedding.*"),
              ("time_cond_proj.*", "guidance_embedding.*"), ("input_blocks.0.0.*", "conv_in.*"),
              *TEMPORAL.within("init_attn.0.", "init_attn."),
              ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
              *VC_RES.within("input_blocks.{}.0.", "encoder.{-1}.res."),
              *SPATIAL.within("input_blocks.{}.1.", "encoder.{-1}.spatial."),
              *TEMPORAL.within("input_blocks.{}.2.", "encoder.{-1}.temporal."),
              *VC_RES.within("middle_block.0.", "middle.res."),
              *SPATIAL.within("middle_block.1.", "middle.spatial."),
              *TEMPORAL.within("middle_block.2.", "middle.temporal."),
              *VC_RES.within("middle_block.3.", "middle.res2."),
              *((f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*") for i in (1, 3)),
              *VC_RES.within("output_blocks.{}.0.", "decoder.{}.res."),
              *SPATIAL.within("output_blocks.{}.1.", "decoder.{}.spatial."),
              *TEMPORAL.within("output_blocks.{}.2.", "decoder.{}.temporal."),
              ("out.0.*", "norm_out.*"), ("out.2.*", "conv_out.*")])

NETWORK = "model.diffusion_model."  # before the names of the UNet's tensors
GUIDANCE = f"{NETWORK}time_cond_proj.weight"  # which networks have that were distilled with guidance
WORDS = (  # of modules' names, in the order of their authors' network, which a LoRA without names follows
    "time_embed fps_embedding time_cond_proj input_blocks init_attn middle_block output_blocks out "
    "in_layers emb_layers out_layers skip_connection temopral_conv conv1 conv2 conv3 conv4 op conv "
    "proj_in transformer_blocks proj_out attn1 ff attn2 to_q to_k to_v to_out net proj weight"
).split()
ORDER = {word: i for i, word in enumerate(WORDS)}

BUFFERS = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
           "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
           "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
           "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
           "scale_arr")


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """The whole checkpoint. The block of the text tower behind those that run is dropped."""
    text = "cond_stage_model.model."
    return Table(
        [
            *UNET.within(NETWORK, "unet."),
            *VAE.within("first_stage_model.", "vae."),
            *TEXT.within(text, "encoder."),
        ],
        dropped={
            f"{text}transformer.resblocks.{config.encoder.layers}.*": "the condition is what the block before gives",
            f"{text}text_projection": "of the pooled text, which is not used",
            f"{text}logit_scale": "of CLIP's own training",
            f"{text}attn_mask": "causal, computed",
            f"{NETWORK}motion_cond_proj.weight": "of T2V-Turbo-v2's motion guidance, which it does without as well",
            f"{NETWORK}combine_proj.weight": "of T2V-Turbo-v2's motion guidance",
            **{name: "of the noise schedule, computed" for name in BUFFERS},
        },
    )


def named(source: Source, update: Source) -> tuple[Source, Source]:
    """A checkpoint and a LoRA with the names of the layers that it changes. One without names, as
    T2V-Turbo's, holds up and down by turns of every linear layer and every 2d and 3d convolution of
    the UNet. VideoCrafter2 has no projection of the guidance scale, of which that LoRA is the
    whole. ConversionError if it has another number of tensors."""
    if not any(re.fullmatch(LISTED, name) for name in update.shapes):
        return source, update
    layers = [name for name, shape in source.shapes.items() if name.startswith(NETWORK)
              and len(shape) in (2, 4, 5)]
    layers = [name for name in layers if name.endswith(".weight") and name != GUIDANCE]
    pairs = len(update.shapes) / 2
    if pairs == len(layers) + 1:
        layers.append(GUIDANCE)
    if pairs != len(layers):
        raise ConversionError(
            f"{update.name} has {pairs:g} pairs of tensors for {len(layers)} layers of the UNet")
    layers.sort(key=place)
    sides = [f"{layer.removesuffix('.weight')}.lora_{side}.weight" for layer in layers
             for side in ("up", "down")]
    index = {name: str(i) for i, name in enumerate(sides)}

    def read(name: str) -> Tensor:
        return update.read(index[name])

    if GUIDANCE in layers and GUIDANCE not in source.shapes:
        up, down = (update.shapes[str(2 * layers.index(GUIDANCE) + i)] for i in (0, 1))
        source = with_zeros(source, GUIDANCE, (up[0], down[-1]))
    return source, replace(update, shapes={name: update.shapes[i] for name, i in index.items()},
                           read=read)


def place(layer: str) -> list[int]:
    """Of a layer among the others of its network, to sort by."""
    parts = layer.removeprefix(NETWORK).split(".")
    return [int(part) if part.isdigit() else ORDER.get(part, len(ORDER)) for part in parts]


def with_zeros(source: Source, name: str, shape: tuple[int, ...]) -> Source:
    """A source with one tensor more."""

    def read(other: str) -> Tensor:
        return torch.zeros(shape) if other == name else source.read(other)

    return replace(source, shapes={**source.shapes, name: shape}, read=read)


class VideoCrafterConversion(Conversion):
    def check(self, source: Source, config: ModelConfig) -> None:
        """The schedule's buffers are dropped; but if they are there, they must be the family's."""
        assert isinstance(config.sampler, DDIMConfig)
        ours = {"alphas_cumprod": config.sampler.alphas_cumprod()}
        if config.sampler.data_scale != 1:
            ours["scale_arr"] = config.sampler.data_scales()
        elif "scale_arr" in source.shapes and not config.sampler.consistency:
            raise ConversionError(
                "the source scales its data (it has scale_arr), this family does not")
        for name, values in ours.items():
            if name in source.shapes:
                theirs = source.read(name).double().numpy()
                if len(theirs) < len(values) or not np.allclose(theirs[: len(values)], values,
                                                                atol=1e-4):
                    raise ConversionError(f"the source has another noise schedule ({name})")


class DistillableConversion(VideoCrafterConversion):
    """Of the text-to-video networks, which T2V-Turbo was distilled from."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        lora.add_arguments(parser)
        parser.add_argument("--unet", type=Path,
                            help="another UNet's weights, in a file of their own (T2V-Turbo-v2)")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        source = open_source(path)
        if args.unet is not None:
            source = with_unet(source, args.unet, {"input_blocks.": NETWORK})
        return lora.merge(source, Table(UNET.within(NETWORK, "unet.")), args, named)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        """A network with a guidance scale was distilled to a consistency model by T2V-Turbo, whose
        data is not scaled: the first version, a LoRA, at 50 timesteps, the second, a UNet, at
        200."""
        if GUIDANCE not in source.shapes:
            return config
        assert isinstance(config.sampler, DDIMConfig) and isinstance(config.unet, UNetConfig)
        known, steps = (50, 8) if args.unet is None else (200, 16)
        print(f"taken for T2V-Turbo: a consistency model of {known} timesteps, which is told the guidance scale")
        return replace(config, unet=replace(config.unet, guidance_dim=source.shapes[GUIDANCE][1]),
                       sampler=replace(config.sampler, consistency=known, data_scale=1.0),
                       defaults=replace(config.defaults, steps=steps, eta=1.0, guidance_scale=7.5))


CONVERSION = DistillableConversion(table)
