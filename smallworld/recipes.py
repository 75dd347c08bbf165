"""What is trained: sizes, data and schedule of each small checkpoint."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.families import FAMILIES as BUILT_IN
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import ImageConfig, TextConfig
from zerosmooth.models.lavie import LaVieConfig
from zerosmooth.models.svd import SVDConfig
from zerosmooth.models.videocrafter import UNetConfig
from zerosmooth.samplers import DDIMConfig, EulerConfig

from . import draw, far
from .latte import FAMILY as SMALL_LATTE
from .wan import FAMILY as SMALL_WAN

FAMILIES = {**BUILT_IN, SMALL_LATTE.name: SMALL_LATTE, SMALL_WAN.name: SMALL_WAN}


@dataclass(frozen=True)
class Recipe:
    config: ModelConfig
    # has SECONDS, WORDS, random_scene, frame_times, render, parse; for `law` and `told` law, others
    world: ModuleType = draw
    size: int = 64  # pixels, both sides
    tail: bool = False  # the shapes have tails that tell where they go
    # checkpoint whose autoencoder is taken; a temporal decoder learns on
    autoencoder_from: str | None = None
    autoencoder_steps: int = 3000
    autoencoder_batch: int = 16  # frames
    decoder_steps: int = 0  # of the decoder alone, beside the network's training or after it
    kl: float = 1e-4  # weight of the autoencoder's prior
    clips: int = 10_240  # drawn for training
    dense: float = 0.15  # share of clips of a part of a scene, at two or four times the base rate
    # share of steps in which clips seem to go on at both ends, see `train.with_repeated_ends`
    goes_on: float = 0.0
    encoder_steps: int = 400  # of 128 prompts or first frames
    steps: int = 13_000  # of as many frames as `batch` says
    batch: int = 128
    # the first of them show single frames, for colour and shape; the others whole clips
    image_steps: int = 2500
    # the next of them are at the noisiest levels, and mostly of whole scenes: there a prompt's
    # places are learnt
    places_steps: int = 0
    # the last of them are at less noise, where outlines are decided and not where a shape goes
    outline_steps: int = 0
    # mean and deviation of the logarithm of sigma over alpha that is trained on, where it is
    # decided where things are; None: all timesteps alike, or more of the noisy ones
    log_sigma: tuple[float, float] | None = None
    # weight of how well the law's numbers can be read off the network's middle, which learns where
    # things are long before pixels teach it
    law: float = 0.0
    # weight of how wrong frames are in what tells their scene from the world's `others` of it, of
    # which pixels' loss has little
    told: float = 0.0
    rate: float = 1e-3
    bfloat16: bool = False  # this and the next: see `trainer.Schedule`
    muon: bool = False

    def random_scene(self, rng: random.Random) -> Any:
        """Any scene of its world that the checkpoint can be asked for."""
        return self.world.random_scene(rng, **({"tail": True} if self.tail else {}))

    def words(self) -> list[str]:
        """Of its world's prompts."""
        rng = random.Random("words")
        scenes = [self.random_scene(rng) for _ in range(5000)]
        return sorted({word for scene in scenes for word in scene.prompt().split()})


SMALL_VAE = AutoencoderConfig(channels=16,
                              channel_mult=(1, 2, 3, 4),
                              res_blocks=1,
                              scale=1.0,
                              groups=8)
SMALL_TEXT = TextConfig(vocab_size=512 + 512 + 2, context_length=32, width=64, heads=4, layers=2)
# v and betas that leave no signal at the last timestep: flat bright backgrounds need both
SMALL_DDIM = DDIMConfig(beta_end=0.03, prediction="v")
# no guidance: it exaggerates how far shapes go in denser clips, whose windows then disagree
SMALL_DEFAULTS = Defaults(
    height=64,
    width=64,
    steps=25,
    guidance_scale=1.0,
    prompt="a red circle moving left quickly on a gray background",
    preset="anchored",  # measured on all three: docs/evaluation.md
)
SIZE: dict[str, Any] = dict(channels=40, channel_mult=(1, 2), res_blocks=1,
                            attention_resolutions=(1, 2), context_dim=64, groups=8)
FAR_PROMPT = "a red square bouncing right and down quickly on a gray background"
RECIPES = {
    "vc2-small":
    Recipe(
        ModelConfig(
            family="vc2", unet=UNetConfig(**SIZE, head_dim=8), vae=SMALL_VAE, encoder=SMALL_TEXT,
            sampler=replace(SMALL_DDIM, more_steps=True), defaults=SMALL_DEFAULTS,
        ),
        # what it is told of the rate is all that tells windows of a longer video how far a shape
        # goes
        dense=0.7,
    ),
    "lavie-small":
    Recipe(
        ModelConfig(
            family="lavie",
            unet=LaVieConfig(**{**SIZE, "channels": 48}, heads=4),
            vae=SMALL_VAE,
            encoder=replace(SMALL_TEXT, pad_token=SMALL_TEXT.vocab_size - 1,
                            activation="quick_gelu"),
            sampler=SMALL_DDIM,
            defaults=SMALL_DEFAULTS,
        ),
        autoencoder_from="vc2-small",
        dense=0.25,
        steps=16_000,
        image_steps=2000,
    ),
    "svd-small":
    Recipe(
        ModelConfig(
            family="svd",
            unet=SVDConfig(**{**SIZE, "channels": 32}, head_dim=8, condition_dim=32),
            vae=replace(SMALL_VAE, temporal=True, float32=True),
            encoder=ImageConfig(image_size=56, patch_size=7, width=64, heads=4, layers=2, out=64),
            sampler=EulerConfig(),
            defaults=replace(
                BUILT_IN["svd"].config.defaults,
                height=64,
                width=64,
                guidance_scale=2.0,
                first_guidance_scale=1.0,
                preset="anchored",
            ),
        ),
        tail=True,
        autoencoder_from="vc2-small",
        autoencoder_steps=2500,
        # positions tell how far apart frames are, and the motion bucket how far a shape goes from
        # position to position
        dense=0.5,
        goes_on=0.5,
        encoder_steps=4000,
        image_steps=0,
        steps=30_000,
        outline_steps=12_000,
    ),
    "latte-small":
    Recipe(
        ModelConfig(
            family=SMALL_LATTE.name, unet=SMALL_LATTE.config.unet, vae=SMALL_VAE,
            encoder=SMALL_TEXT, sampler=SMALL_DDIM, defaults=SMALL_DEFAULTS,
        ),
        autoencoder_from="vc2-small",
        clips=4096,
        dense=0.25,
        image_steps=700,
        steps=16_000,
        log_sigma=(1.0, 1.4),
        law=20.0,
        bfloat16=True,
    ),
    "wan-small":
    Recipe(
        replace(SMALL_WAN.config,
                encoder=SMALL_TEXT,
                defaults=replace(SMALL_DEFAULTS, height=32, width=32, eta=0.0, preset="paper")),
        size=32,
        autoencoder_steps=6000,
        autoencoder_batch=68,
        clips=6144,
        dense=0.0,  # it knows its own rate alone
        image_steps=200,
        steps=4400,
        batch=24 * 5,
        log_sigma=(1.0, 1.4),
        law=20.0,
        bfloat16=True,
    ),
    "far-small":
    Recipe(
        ModelConfig(
            family="vc2",
            # at the lowest level, of 2x2 places, a frame's whole state meets the other frames'
            unet=UNetConfig(**{**SIZE, "channel_mult": (2, 2, 3),
                               "attention_resolutions": (1, 2, 4)},
                            frames=8, in_channels=12, out_channels=12, head_dim=8,
                            relative_position=True),  # or attention could not tell their order
            # 4 pixels a latent, whose channels keep outlines and colours
            vae=replace(SMALL_VAE, channels=24, channel_mult=(1, 2, 2), latent_channels=12),
            encoder=replace(SMALL_TEXT, context_length=40),
            sampler=replace(SMALL_DDIM, more_steps=True),
            defaults=replace(SMALL_DEFAULTS, height=32, width=32, prompt=FAR_PROMPT),
        ),
        world=far,
        size=32,
        autoencoder_steps=1800,
        autoencoder_batch=32,
        decoder_steps=1200,
        clips=10_240,
        dense=0.5,
        encoder_steps=500,
        image_steps=900,
        places_steps=4000,
        steps=20_000,
        batch=128,
        log_sigma=(0.3, 1.2),
        law=20.0,
        told=5.0,
        muon=True,
    ),
}
