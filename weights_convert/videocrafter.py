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

from . import ldm, lora
from .conversion import Conversion
from .engine import ConversionError, Table, same
from .ldm import BLOCK, OURS, PROJECTIONS, cross_attention, feed_forward, norms, self_attention
from .source import LISTED, Source, open_source, with_unet

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

TEMPORAL_CONV = Table([
    ("conv1.0.*", "norms.0.*"), ("conv1.2.*", "convs.0.*"),
    *((f"conv{i + 1}.0.*", f"norms.{i}.*") for i in (1, 2, 3)),
    *((f"conv{i + 1}.3.*", f"convs.{i}.*") for i in (1, 2, 3))])
RES = Table([*ldm.RES.rows,  # "temopral": spelt so in the checkpoint
             *TEMPORAL_CONV.within("temopral_conv.", "temporal_conv.")])
FRAME = [*PROJECTIONS, *norms(BLOCK, OURS, "norm1", "norm2", "norm3"),
         *feed_forward(f"{BLOCK}.ff", f"{OURS}.ff")]
SPATIAL = Table([*FRAME, *self_attention(f"{BLOCK}.attn1", f"{OURS}.self_attn"),
                 *cross_attention(f"{BLOCK}.attn2", f"{OURS}.cross_attn")])
TEMPORAL = Table([
    *FRAME, *self_attention(f"{BLOCK}.attn1", f"{OURS}.attn1"),
    *self_attention(f"{BLOCK}.attn2", f"{OURS}.attn2"),
    *((f"{BLOCK}.{name}.relative_position_{x}.embeddings_table", f"{OURS}.{name}.position.{ours}")
      for name in ("attn1", "attn2") for x, ours in (("k", "keys"), ("v", "values")))])
UNET = Table([
    *same("fps_embedding"), ("time_cond_proj.*", "guidance_embedding.*"),
    *TEMPORAL.within("init_attn.0.", "init_attn."),
    *ldm.unet(("res", RES), ("spatial", SPATIAL), ("temporal", TEMPORAL)).rows])

NETWORK = "model.diffusion_model."  # before the names of the UNet's tensors
GUIDANCE = f"{NETWORK}time_cond_proj.weight"  # of guidance-distilled networks
WORDS = (  # of modules' names, in the order of the network, which a LoRA without names follows
    "time_embed fps_embedding time_cond_proj input_blocks init_attn middle_block output_blocks out "
    "in_layers emb_layers out_layers skip_connection temopral_conv conv1 conv2 conv3 conv4 op conv "
    "proj_in transformer_blocks proj_out attn1 ff attn2 to_q to_k to_v to_out net proj weight"
).split()
ORDER = {word: i for i, word in enumerate(WORDS)}
BUFFERS = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod "
    "posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 "
    "scale_arr").split()


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """The whole checkpoint, without the last block of the text tower."""
    text = "cond_stage_model.model."
    return Table(
        [*UNET.within(NETWORK, "unet."), *ldm.VAE.within("first_stage_model.", "vae."),
         *ldm.TEXT.within(text, "encoder.")],
        dropped={
            f"{text}transformer.resblocks.{config.encoder.layers}.*": "its input is the condition",
            f"{text}text_projection": "of the pooled text, which is not used",
            f"{text}logit_scale": "of CLIP's own training",
            f"{text}attn_mask": "causal, computed",
            f"{NETWORK}motion_cond_proj.weight": "of T2V-Turbo-v2's optional motion guidance",
            f"{NETWORK}combine_proj.weight": "of T2V-Turbo-v2's optional motion guidance",
            **{name: "of the noise schedule, computed" for name in BUFFERS}})


def named(source: Source, update: Source) -> tuple[Source, Source]:
    """A checkpoint, and a LoRA with the names of the layers that it updates.

    One without names, such as T2V-Turbo's, holds an up and a down for every linear layer and every
    2d and 3d convolution of the UNet. It is also the whole of the projection of the guidance scale,
    which VideoCrafter2 lacks. ConversionError if it has another number of tensors.
    """
    if not any(re.fullmatch(LISTED, name) for name in update.shapes):
        return source, update
    layers = [name for name, shape in source.shapes.items()
              if name.startswith(NETWORK) and name.endswith(".weight") and name != GUIDANCE
              and len(shape) in (2, 4, 5)]
    pairs = len(update.shapes) / 2
    if pairs == len(layers) + 1:
        layers.append(GUIDANCE)
    if pairs != len(layers):
        raise ConversionError(
            f"{update.name} has {pairs:g} pairs of tensors for {len(layers)} layers of the UNet")
    layers.sort(key=place)
    sides = [f"{layer.removesuffix('.weight')}.lora_{side}.weight"
             for layer in layers for side in ("up", "down")]
    index = {name: str(i) for i, name in enumerate(sides)}
    if GUIDANCE in layers and GUIDANCE not in source.shapes:
        up, down = (update.shapes[str(2 * layers.index(GUIDANCE) + i)] for i in (0, 1))
        source = with_zeros(source, GUIDANCE, (up[0], down[-1]))
    return source, replace(update, shapes={name: update.shapes[i] for name, i in index.items()},
                           read=lambda name: update.read(index[name]))


def place(layer: str) -> list[int]:
    """A layer's place among the others of its network: a key to sort by."""
    parts = layer.removeprefix(NETWORK).split(".")
    return [int(part) if part.isdigit() else ORDER.get(part, len(ORDER)) for part in parts]


def with_zeros(source: Source, name: str, shape: tuple[int, ...]) -> Source:
    """A source with one more tensor, of zeros."""

    def read(other: str) -> Tensor:
        return torch.zeros(shape) if other == name else source.read(other)

    return replace(source, shapes={**source.shapes, name: shape}, read=read)


class VideoCrafterConversion(Conversion):
    def check(self, source: Source, config: ModelConfig) -> None:
        """ConversionError unless the buffers of the noise schedule, which are dropped, are the
        family's own."""
        ours = {"alphas_cumprod": config.sampler.alphas_cumprod()}
        if config.sampler.data_scale != 1:
            ours["scale_arr"] = config.sampler.data_scales()
        elif "scale_arr" in source.shapes and not config.sampler.consistency:
            raise ConversionError(
                "the source scales its data (it has scale_arr), this family does not")
        for name in ours.keys() & source.shapes.keys():
            values, theirs = ours[name], source.read(name).double().numpy()
            if len(theirs) < len(values) or not np.allclose(theirs[: len(values)], values,
                                                            atol=1e-4):
                raise ConversionError(f"the source has another noise schedule ({name})")


class DistillableConversion(VideoCrafterConversion):
    """Of the text-to-video networks, from which T2V-Turbo was distilled."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        lora.add_arguments(parser)
        parser.add_argument("--unet", type=Path,
                            help="another UNet's weights, in a file of their own (T2V-Turbo-v2)")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        source = open_source(path, weights=args.weights)
        if args.unet is not None:
            source = with_unet(source, args.unet, {"input_blocks.": NETWORK})
        return lora.merge(source, Table(UNET.within(NETWORK, "unet.")), args, named)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        """A guidance-distilled network is taken for T2V-Turbo, a consistency model whose data is
        not scaled: the first version, a LoRA, of 50 timesteps, the second, a UNet, of 200."""
        if GUIDANCE not in source.shapes:
            return config
        known, steps = (50, 8) if args.unet is None else (200, 16)
        print(f"taken for T2V-Turbo: a guidance-distilled consistency model of {known} timesteps")
        return replace(config, unet=replace(config.unet, guidance_dim=source.shapes[GUIDANCE][1]),
                       sampler=replace(config.sampler, consistency=known, data_scale=1.0),
                       defaults=replace(config.defaults, steps=steps, eta=1.0, guidance_scale=7.5))


CONVERSION = DistillableConversion(table)
