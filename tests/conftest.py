"""A small network of the real classes with random weights, and what the tests do with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zerosmooth.config import FAMILIES, Defaults, ModelConfig
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import TextConfig
from zerosmooth.models.videocrafter import UNet, UNetConfig
from zerosmooth.pipeline import Networks, Pipeline

FRAMES = 8
TINY = UNetConfig(
    channels=16,
    channel_mult=(1, 2),
    res_blocks=1,
    attention_resolutions=(1, 2),
    head_dim=8,
    context_dim=12,
    frames=FRAMES,
    groups=4,
)
TINY_CONFIG = ModelConfig(
    family="vc2",
    unet=TINY,
    vae=AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1, groups=4),
    encoder=TextConfig(vocab_size=514 + 40, context_length=16, width=12, heads=2, layers=1),
    sampler=FAMILIES["vc2"].sampler,
    defaults=Defaults(height=16, width=24, steps=4, guidance_scale=3.0, prompt="a test"),
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=["no positions", "relative positions"], scope="session")
def unet(request) -> UNet:
    """VideoCrafter2's network and VideoCrafter1's, tiny."""
    relative = request.param == "relative positions"
    torch.manual_seed(0)
    config = replace(TINY, relative_position=relative, temporal_conv=not relative, fps_condition=not relative)
    return UNet(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(TINY_CONFIG, Networks(TINY_CONFIG))


@pytest.fixture
def ask(unet):
    """Run the network: ask(x, bus=None) with fixed text, step and fps."""
    context = torch.randn(1, 5, TINY.context_dim, generator=torch.Generator().manual_seed(1))

    def run(x, bus=None, fps=8):
        b = x.shape[0]
        return unet(x, torch.full((b,), 300), context.expand(b, -1, -1), torch.full((b,), fps), bus)

    return run


def latents(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
