"""Stable Video Diffusion: an image, the frames a second, and an amount of motion to video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import Defaults, ModelConfig, Sampling
from ..family import Family, Networks
from ..guidance import Branch
from ..models.autoencoder import AutoencoderConfig
from ..models.clip import ImageConfig, ImageTower
from ..models.svd import SVDConfig, SVDUNet
from ..samplers import EulerConfig

if TYPE_CHECKING:
    from weights_convert.conversion import Conversion


class StableVideoDiffusion(Family):
    """The paper's text has guidance linear over the frames and its Table 4 has 7.5; here it is the text's, from 1 to 3
    as the published networks have it."""

    name = "svd"
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

    @property
    def conversion(self) -> Conversion:
        from weights_convert.svd import CONVERSION

        return CONVERSION

    def unet(self, config: SVDConfig) -> nn.Module:
        return SVDUNet(config)

    def encoder(self, config: ImageConfig) -> nn.Module:
        return ImageTower(config)

    def branches(
        self,
        networks: Networks,
        prompts: Sequence[str],
        pixels: Tensor | None,
        noise: Tensor | None,
        settings: Sampling,
    ) -> list[Branch]:
        """The image as one token, and its latents (of the noisy image, not scaled); zeros for both in the other."""
        assert pixels is not None and noise is not None
        context = networks.encoder.encode(pixels)
        noisy = pixels + settings.noise_aug_strength * noise
        latents = networks.vae.moments(noisy.to(networks.vae.dtype))[0].to(context.dtype)
        return [Branch(context, latents), Branch(torch.zeros_like(context), torch.zeros_like(latents))]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        return 0

    def told_rate(self, config: ModelConfig) -> bool:
        return True

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        return torch.tensor([fps - 1, settings.motion_bucket_id, settings.noise_aug_strength])


SVD = StableVideoDiffusion()
