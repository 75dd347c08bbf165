"""ModelScope text-to-video (Wang et al. 2023, arXiv 2308.06571), and Zeroscope: VideoCrafter2's
network without fps.

    python -m weights_convert --family examples/modelscope.py text-to-video-ms-1.7b/ \\
        -o ms.safetensors
    python sample.py --family examples/modelscope.py --ckpt ms.safetensors --prompt "..."

What is new is the names in diffusers' folder, and the settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import nn

from weights_convert import configs, diffusers
from weights_convert.conversion import Conversion
from weights_convert.engine import Table
from weights_convert.source import Source, join, open_folder
from weights_convert.videocrafter import SPATIAL, TEMPORAL, TEMPORAL_CONV
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.models.videocrafter import UNet, UNetConfig
from zerosmooth.samplers import DDIMConfig


def table(config: ModelConfig, names: Collection[str] = ()) -> Table:
    """All networks of a folder, with the names of its folders before their tensors'."""
    lists = (("resnets", "res", diffusers.RES), ("temp_convs", "res.temporal_conv", TEMPORAL_CONV),
             ("attentions", "spatial", SPATIAL), ("temp_attentions", "temporal", TEMPORAL))
    return Table([*diffusers.unet(config.unet, lists).within("unet.", "unet."),
                  *TEMPORAL.within("unet.transformer_in.", "unet.init_attn."),
                  *diffusers.vae(config.vae).within("vae.", "vae."),
                  *diffusers.TEXT.within("text_encoder.", "encoder.")],
                 dropped={"text_encoder.text_model.embeddings.position_ids": "0, 1, 2, .."})


class ModelScopeConversion(Conversion):
    def open(self, path: Path, args: argparse.Namespace) -> Source:
        return join(path, open_folder(path, ("unet", "vae", "text_encoder")))

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        path, unet = source.path, configs.said(source.path / "unet/config.json")
        heads: configs.Fields = {"attention_head_dim": ("head_dim", None), **configs.SAME}
        return replace(config, unet=unet.over(config.unet, heads, configs.UNET_NEEDS),
                       vae=configs.vae(path / "vae", config.vae),
                       encoder=configs.text(path, config.encoder),
                       sampler=configs.ddim(path, config.sampler))


class ModelScope(Family):
    name = "modelscope"
    config = ModelConfig("modelscope", UNetConfig(fps_condition=False), AutoencoderConfig(),
                         TextConfig(), DDIMConfig(),
                         Defaults(height=256, width=256, eta=0.0, guidance_scale=9.0))
    conversion = ModelScopeConversion(table)

    def unet(self, config: UNetConfig) -> nn.Module:
        return UNet(config)


FAMILY = ModelScope()
