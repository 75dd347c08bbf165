"""VideoCrafter2 and VideoCrafter1: from a prompt, and in VideoCrafter2 a frame rate, to video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import Defaults, ModelConfig, Sampling
from ..family import Family, Networks
from ..guidance import Branch, Inputs
from ..models import videocrafter as models
from ..models.autoencoder import AutoencoderConfig
from ..models.clip import TextConfig
from ..samplers import DDIMConfig

if TYPE_CHECKING:
    from ..settings import Settings


class VideoCrafter(Family):
    converter = "weights_convert.videocrafter"

    def __init__(self, name: str, unet: models.UNetConfig, sampler: DDIMConfig) -> None:
        self.name = name
        self.config = ModelConfig(name, unet, AutoencoderConfig(), TextConfig(), sampler,
                                  Defaults())

    def unet(self, config: models.UNetConfig) -> nn.Module:
        return models.UNet(config)

    def told_rate(self, config: ModelConfig) -> bool:
        assert isinstance(config.unet, models.UNetConfig)
        return config.unet.fps_condition

    def told_guidance(self, config: ModelConfig) -> bool:
        assert isinstance(config.unet, models.UNetConfig)
        return config.unet.guidance_dim > 0

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        if networks.unet.config.guidance_dim:
            return [Branch(networks.encoder.encode(inputs.prompts))]
        return super().branches(networks, inputs, settings)

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        if self.told_guidance(config):
            return torch.tensor([fps, settings.guidance_scale])
        return torch.tensor(fps) if self.told_rate(config) else None


VC2 = VideoCrafter("vc2", models.VC2, DDIMConfig(data_scale=0.7, more_steps=True))
VC1 = VideoCrafter("vc1", models.VC1, DDIMConfig(more_steps=True))
