"""Latte's network, as `examples/latte.py` has it, in the small world: CLIP's small text tower
reads the prompts, instead of T5.

    python sample.py --family smallworld/latte.py --ckpt smallworld/latte-small.safetensors
"""

from __future__ import annotations

from typing import Any

from torch import nn

from examples.latte import Latte, LatteConfig
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.family import Family
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.samplers import DDIMConfig


class SmallLatte(Family):
    name = "latte-small"
    config = ModelConfig(name, LatteConfig(heads=4, head_dim=32, layers=6, grid=4, context_dim=64),
                         AutoencoderConfig(), TextConfig(width=64), DDIMConfig(), Defaults())

    def unet(self, config: Any) -> nn.Module:
        return Latte(config)


FAMILY = SmallLatte()
