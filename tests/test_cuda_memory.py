"""What a run takes of a card's memory, seen without one: see `tests.fake_cuda`."""

from dataclasses import replace

import pytest
import torch

from zerosmooth.cascade import cascade_step
from zerosmooth.config import ModelConfig, Sampling
from zerosmooth.families import FAMILIES
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.layers import frame_chunks
from zerosmooth.settings import Running, settings_for
from zerosmooth_cli.estimate import needs

from .conftest import TINY_FAMILIES
from .fake_cuda import fake_cuda
from .test_cuda_fake import needs_no_card, networks_of, on_the_card

pytestmark = needs_no_card
SAVING = {
    "plain": Running(),
    "offload": Running(offload=True),
    "sequential": Running(sequential_guidance=True),
    "chunks": Running(frame_chunk=4),
    "all": Running(offload=True, sequential_guidance=True, frame_chunk=4),
}


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("saving", SAVING)
def test_memory_is_what_was_counted(family, saving):
    """Of a step at the published size of video and of layers, with fewer layers."""
    published, tiny = FAMILIES[family].config, TINY_FAMILIES[family]
    less = {"channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (1, 2),
            "context_dim": 12}
    config = replace(tiny, unet=replace(published.unet, **less))
    size = {"height": published.defaults.height // 4,
            "width": published.defaults.width // 4}  # at half of the factor
    settings = settings_for(FAMILIES[family], config, **size, scale=2, dtype="float16",
                            guidance_scale=3.0)
    guess = needs(FAMILIES[family], config, settings, SAVING[saving])
    networks = networks_of(family, config)
    with fake_cuda() as (card, _):
        unet, cascade = on_the_card(*networks, torch.float16).unet, settings.cascade
        assert card.live["cuda"] == guess.weights
        branches = [branch(config, size) for _ in range(2)]
        guided = Guidance(unet, branches, Sampling(guidance_scale=3.0),
                          SAVING[saving].sequential_guidance)
        told = FAMILIES[family].condition(config, 8.0, settings)
        told = None if told is None else told.to("cuda")
        xs = [latents(config, size, cascade.frames_of(stage)) for stage in range(cascade.stages)]
        bus, before = cascade.bus("cpu" if SAVING[saving].offload else None), card.live["cuda"]
        card.peak.clear()
        with frame_chunks(unet, SAVING[saving].frame_chunk):
            cascade_step(lambda index, x, stage: guided(x, 500.0, told, stage), xs, bus, 0, 0.8)
    assert (card.peak["cuda"] - before) / guess.step == pytest.approx(1, abs=0.03)


def latents(config: ModelConfig, size: dict[str, int], frames: int) -> torch.Tensor:
    height, width = (side // config.vae.factor for side in size.values())
    return torch.empty(1, frames, config.unet.out_channels, height, width, device="cuda")


def branch(config: ModelConfig, size: dict[str, int]) -> Branch:
    context = torch.empty(1, *config.encoder.context_shape, dtype=torch.float16, device="cuda")
    shown = latents(config, size,
                    1)[:, 0].half() if config.unet.in_channels > config.unet.out_channels else None
    return Branch(context, shown)
