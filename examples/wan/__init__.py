"""Wan 2.1 text to video, 1.3B: a transformer over all frames and a causal autoencoder.

    python -m weights_convert --family examples.wan Wan2.1-T2V-1.3B/ -o wan.safetensors
    python sample.py --family examples.wan --ckpt wan.safetensors --check
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family, Networks
from zerosmooth.fields import UserError
from zerosmooth.guidance import Branch, Inputs
from zerosmooth.settings import Settings

from .autoencoder import Autoencoder, WanAutoencoderConfig
from .conversion import WanConversion, table
from .samplers import FlowConfig
from .text import UMT5_SIZE, PromptEncoder, UMT5Config, folder_of
from .transformer import Transformer, WanConfig


class WanFamily(Family):
    name, dense = "wan", False
    config = ModelConfig(
        "wan", WanConfig(), WanAutoencoderConfig(), UMT5Config(), FlowConfig(),
        Defaults(height=480, width=832, eta=0.0, guidance_scale=5.0, fps=16,
                 prompt="A cat walks on the grass, realistic style."))
    conversion = WanConversion(table)

    def unet(self, config: WanConfig) -> nn.Module:
        return Transformer(config)

    def autoencoder(self, config: WanAutoencoderConfig) -> nn.Module:
        return Autoencoder(config)

    def small(self, config: WanConfig) -> WanConfig:
        return replace(config, heads=2, head_dim=24, layers=4, feed_forward=96)

    def encoder(self, config: UMT5Config) -> PromptEncoder:
        return PromptEncoder(config)

    def encode_first(self, config: ModelConfig, prompts: Collection[str], settings: Settings,
                     device: torch.device) -> None:
        dtype = getattr(torch, settings.dtype)
        self.encoder(config.encoder).encode([*prompts, settings.negative_prompt], device, dtype)

    def frames(self, config: ModelConfig, latents: int) -> int:
        return 1 + (latents - 1) * config.vae.frames

    def needs_first(self, config: ModelConfig, settings: Settings) -> str:
        try:
            where = f"the UMT5 in {folder_of(config.encoder)}"
        except UserError as error:
            return str(error)
        return f"{where}, {UMT5_SIZE * getattr(torch, settings.dtype).itemsize / 1e9:.2f} GB"

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        at = networks.unet.proj_out.weight
        texts = inputs.prompts, [settings.negative_prompt] * len(inputs.prompts)
        return [Branch(networks.encoder.encode(prompts, at.device, at.dtype)) for prompts in texts]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return networks.encoder.lost(prompt)


FAMILY = WanFamily()
