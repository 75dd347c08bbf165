"""Where the tensors of LaVie's `lavie_base.pt` and of a Stable Diffusion 1.4 folder go."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import diffusers
from .conversion import Conversion
from .engine import ConversionError, Table
from .ldm import PROJECTIONS, cross_attention, feed_forward, norms, self_attention
from .source import Source, join, open_folder, open_source

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig

BLOCK = "transformer_blocks.{}", "blocks.{}"
TRANSFORMER = Table([*PROJECTIONS, *norms(*BLOCK, "norm1", "norm2", "norm3"),
                     ("transformer_blocks.{}.norm_temp.*", "blocks.{}.norm_temporal.*"),
                     *self_attention("transformer_blocks.{}.attn1", "blocks.{}.self_attn"),
                     *cross_attention("transformer_blocks.{}.attn2", "blocks.{}.cross_attn"),
                     *self_attention("transformer_blocks.{}.attn_temp", "blocks.{}.temporal_attn"),
                     (
            "transformer_blocks.{}.attn_temp.time_rel_pos_bias.relative_attention_bias.weight",
            "blocks.{}.temporal_attn.position.bias"),
                     *feed_forward("transformer_blocks.{}.ff", "blocks.{}.ff")])


def table(config: ModelConfig, names: Collection[str]) -> Table:
    """All three networks, with the names of their folders before their tensors'."""
    lists = ("resnets", "res", diffusers.RES), ("attentions", "transformer", TRANSFORMER)
    return Table([*diffusers.unet(config.unet, lists).within("unet.", "unet."),
                  *diffusers.vae(config.vae).within("vae.", "vae."),
                  *diffusers.TEXT.within("text_encoder.", "encoder.")],
                 dropped={"*.rotary_emb.freqs": "constants, computed",
                          "text_encoder.text_model.embeddings.position_ids": "0, 1, 2, .."})


class LaVieConversion(Conversion):
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sd", type=Path, required=True,
                            help="the Stable Diffusion 1.4 folder with vae/ and text_encoder/")

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        return join(path,
                    {"unet": open_source(path), **open_folder(args.sd, ("vae", "text_encoder"))})

    def check(self, source: Source, config: ModelConfig) -> None:
        """The rotary embedding's frequencies are dropped; but they must be the constants that they
        are taken for."""
        for name in source.shapes:
            if name.endswith("rotary_emb.freqs"):
                theirs = source.read(name).double().numpy()
                if not np.allclose(theirs, 10_000.0 ** (-np.arange(len(theirs)) / len(theirs)),
                                   atol=1e-3):
                    raise ConversionError(f"the source has other rotary frequencies ({name})")


CONVERSION = LaVieConversion(table)
