"""Stable Video Diffusion: from an image, a frame rate and an amount of motion to video."""

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
    """Guidance is linear over the frames as in the paper's text, from 1 to 3 as in the published
    pipeline; the paper's Table 4 has 7.5."""

    name = "svd"
    converter = "weights_convert.svd"
    config = ModelConfig(
        "svd", SVDConfig(), AutoencoderConfig(temporal=True, float32=True), ImageConfig(),
        EulerConfig(),
        Defaults(height=576, width=1024, steps=25, eta=0.0, guidance_scale=3.0,
                 first_guidance_scale=1.0, fps=7, prompt="", motion_bucket_id=180))
    takes = ("image",)
    idle = ("negative_prompt",)

    def unet(self, config: SVDConfig) -> nn.Module:
        return SVDUNet(config)

    def encoder(self, config: ImageConfig) -> nn.Module:
        return ImageTower(config)

    def branches(self, networks: Networks, inputs: Inputs, settings: Sampling) -> list[Branch]:
        """The image as one token, and the latents of the noisy image, not scaled; in the
        unconditional branch zeros for both."""
        context = networks.encoder.encode(inputs.pixels)
        noisy = inputs.pixels + settings.noise_aug_strength * inputs.noise
        latents = networks.vae.moments(noisy.to(networks.vae.dtype))[0].to(context.dtype)
        given = Branch(context, latents)
        return [given, Branch(torch.zeros_like(context), torch.zeros_like(latents))]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return 0

    def told_rate(self, config: ModelConfig) -> bool:
        return True

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        return torch.tensor([fps - 1, settings.motion_bucket_id, settings.noise_aug_strength])


SVD = StableVideoDiffusion()
