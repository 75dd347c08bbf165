"""Wan's networks, as `examples/wan/` has them, in the small world: CLIP's small text tower reads
the prompts, instead of UMT5.

    python sample.py --family smallworld/wan.py --ckpt smallworld/wan-small.safetensors
"""

from __future__ import annotations

from typing import Any

from examples.wan import WanFamily
from examples.wan.autoencoder import WanAutoencoderConfig
from examples.wan.samplers import FlowConfig
from examples.wan.transformer import WanConfig
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family
from zerosmooth.models.clip import TextConfig, TextTower

Z = 16  # channels of a latent


class SmallWan(WanFamily):
    """Latents of 4 frames of 4x4 pixels, four to a token; 17 frames, or 5 latents, in training."""

    name = "wan-small"
    config = ModelConfig(
        name,
        WanConfig(heads=6, head_dim=32, layers=6, feed_forward=768, context_dim=64, frames=5,
                  overlap=3),
        WanAutoencoderConfig(channels=16, channel_mult=(1, 2, 4), res_blocks=1, latent_channels=Z,
                             time=(True, True), mean=(0.0,) * Z, std=(1.0,) * Z),
        TextConfig(width=64), FlowConfig(), Defaults())

    needs_first, encode_first = Family.needs_first, Family.encode_first
    branches, lost_tokens = Family.branches, Family.lost_tokens

    def encoder(self, config: Any) -> Any:
        return TextTower(config)


FAMILY = SmallWan()
