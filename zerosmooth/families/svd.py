"""Stable Video Diffusion: an image, the frames a second, and an amount of motion to video."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Defaults, ModelConfig, Sampling
from ..family import Family, Networks
from ..guidance import Branch, Inputs
from ..models.autoencoder import AutoencoderConfig
from ..models.clip import ImageConfig, ImageTower
from ..models.svd import SVDConfig, SVDUNet
from ..samplers import EulerConfig


class StableVideoDiffusion(Family):
    """The paper's text has guidance linear over the frames and its Table 4 has 7.5; here it is the text's, from 1 to 3
    as the published networks have it."""

    name = "svd"
    converter = "weights_convert.svd"
    config = ModelConfig(
        "svd",
        SVDConfig(),
        AutoencoderConfig(temporal=True, float32=True),
        ImageConfig(),
        EulerConfig(),
        Defaults(
            height=576,
            width=1024,
            steps=25,
            eta=0.0,
            guidance_scale=3.0,
            first_guidance_scale=1.0,
            fps=7,
            prompt="",
            motion_bucket_id=180,
        ),
    )
    takes = ("image",)
    idle = ("negative_prompt",)

    def unet(self, config: SVDConfig) -> nn.Module:
        return SVDUNet(config)

    def encoder(self, config: ImageConfig) -> nn.Module:
        return ImageTower(config)

    def branches(self, networks: Networks, inputs: Inputs, settings: Sampling) -> list[Branch]:
        """The image as one token, and its latents (of the noisy image, not scaled); zeros for both in the other."""
        context = networks.encoder.encode(inputs.pixels)
        noisy = inputs.pixels + settings.noise_aug_strength * inputs.noise
        latents = networks.vae.moments(noisy.to(networks.vae.dtype))[0].to(context.dtype)
        return [Branch(context, latents), Branch(torch.zeros_like(context), torch.zeros_like(latents))]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return 0

    def told_rate(self, config: ModelConfig) -> bool:
        return True

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        return torch.tensor([fps - 1, settings.motion_bucket_id, settings.noise_aug_strength])


SVD = StableVideoDiffusion()
