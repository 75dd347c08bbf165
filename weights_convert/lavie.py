"""Where the tensors of LaVie's `lavie_base.pt` and of a Stable Diffusion 1.4 folder go."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import configs, diffusers
from .conversion import Conversion
from .engine import ConversionError, Table
from .ldm import BLOCK, OURS, PROJECTIONS, cross_attention, feed_forward, norms, self_attention
from .source import Source, join, open_folder, open_source

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

BIAS = "time_rel_pos_bias.relative_attention_bias.weight"
TRANSFORMER = Table([
    *PROJECTIONS, *norms(BLOCK, OURS, "norm1", "norm2", "norm3"),
    (f"{BLOCK}.norm_temp.*", f"{OURS}.norm_temporal.*"),
    *self_attention(f"{BLOCK}.attn1", f"{OURS}.self_attn"),
    *cross_attention(f"{BLOCK}.attn2", f"{OURS}.cross_attn"),
    *self_attention(f"{BLOCK}.attn_temp", f"{OURS}.temporal_attn"),
    (f"{BLOCK}.attn_temp.{BIAS}", f"{OURS}.temporal_attn.position.bias"),
    *feed_forward(f"{BLOCK}.ff", f"{OURS}.ff")])


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """All three networks. The names of their folders come before their tensors' names."""
    lists = ("resnets", "res", diffusers.RES), ("attentions", "transformer", TRANSFORMER)
    return Table([*diffusers.unet(config.unet, lists).within("unet.", "unet."),
                  *diffusers.vae(config.vae).within("vae.", "vae."),
                  *diffusers.TEXT.within("text_encoder.", "encoder.")],
                 dropped={"*.rotary_emb.freqs": "constants, computed",
                          f"text_encoder.text_model.{diffusers.POSITION_IDS}": "0, 1, 2, .."})


class LaVieConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sd", type=Path, required=True,
                            help="the Stable Diffusion 1.4 folder with vae/ and text_encoder/")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        sd = open_folder(args.sd, ("vae", "text_encoder"))
        return join(path, {"unet": open_source(path, weights=args.weights), **sd})

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        return replace(config, vae=configs.vae(args.sd / "vae", config.vae),
                       encoder=configs.text(args.sd, config.encoder))

    def check(self, source: Source, config: ModelConfig) -> None:
        """ConversionError unless the frequencies of the rotary embedding, which are dropped, are
        the usual constants."""
        for name in source.shapes:
            if name.endswith("rotary_emb.freqs"):
                theirs = source.read(name).double().numpy()
                ours = 10_000.0 ** (-np.arange(len(theirs)) / len(theirs))
                if not np.allclose(theirs, ours, atol=1e-3):
                    raise ConversionError(f"the source has other rotary frequencies ({name})")


CONVERSION = LaVieConversion(table)
