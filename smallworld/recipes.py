"""What is trained: sizes, data and schedule of each small checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.samplers import DDIMConfig


@dataclass(frozen=True)
class Recipe:
    config: ModelConfig
    size: int = 64  # pixels, both sides
    autoencoder_steps: int = 3000  # of 16 frames
    kl: float = 1e-4  # weight of the autoencoder's prior
    clips: int = 10_240  # drawn for training
    text_steps: int = 400  # of 128 prompts
    steps: int = 10_500  # of 128 frames
    image_steps: int = 2500  # the first of them show single frames, for colour and shape; the others whole clips
    rate: float = 1e-3


RECIPES = {
    "vc2-small": Recipe(
        ModelConfig(
            family="vc2",
            unet=UNetConfig(
                channels=40,
                channel_mult=(1, 2),
                res_blocks=1,
                attention_resolutions=(1, 2),
                head_dim=8,
                context_dim=64,
                groups=8,
            ),
            vae=AutoencoderConfig(channels=16, channel_mult=(1, 2, 3, 4), res_blocks=1, scale=1.0, groups=8),
            encoder=TextConfig(vocab_size=512 + 512 + 2, context_length=32, width=64, heads=4, layers=2),
            # v and betas that leave no signal at the last timestep: flat bright backgrounds need both
            sampler=DDIMConfig(beta_end=0.03, prediction="v", more_steps=True),
            defaults=Defaults(
                height=64, width=64, steps=25, guidance_scale=4.0, prompt="a red circle moving left quickly"
            ),
        )
    ),
}
