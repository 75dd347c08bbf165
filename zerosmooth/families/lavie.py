"""LaVie: from a prompt to video."""

from __future__ import annotations

from torch import nn

from ..config import Defaults, ModelConfig
from ..family import Family
from ..models.autoencoder import AutoencoderConfig
from ..models.clip import TextConfig
from ..models.lavie import LaVieConfig, LaVieUNet
from ..samplers import DDIMConfig


class LaVie(Family):
    name = "lavie"
    converter = "weights_convert.lavie"
    config = ModelConfig(
        "lavie", LaVieConfig(), AutoencoderConfig(),
        TextConfig(width=768, heads=12, layers=12, pad_token=49407, activation="quick_gelu"),
        DDIMConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        Defaults(guidance_scale=7.5,
                 prompt="a Corgi walking in the park at sunrise, oil painting style"))

    def unet(self, config: LaVieConfig) -> nn.Module:
        return LaVieUNet(config)


LAVIE = LaVie()
