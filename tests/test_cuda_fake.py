"""What a run does on CUDA, seen without a card: see `tests.fake_cuda`."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from zerosmooth import attention, pipeline
from zerosmooth.estimate import needs
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks
from zerosmooth.models.unet import Skeleton
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Running, settings_for

from .conftest import TINY_FAMILIES
from .fake_cuda import fake_cuda, guards

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or guards() is None, reason="needs a torch without CUDA, whose table of devices is found"
)
RUNS = {
    "zerosmooth": ({}, Running()),
    "zerosmooth, S": ({"kv_operator": "S", "color_correction": True}, Running()),
    "direct": ({"method": "direct"}, Running()),
    "ddnm": ({"method": "ddnm"}, Running()),
    "freenoise": ({"method": "freenoise"}, Running()),
    "prediction": ({"prediction": True}, Running()),
    "offload": ({}, Running(offload=True)),
    "all that saves memory": ({}, Running(offload=True, sequential_guidance=True, frame_chunk=3)),
}


def pipeline_of(family: str, dtype: torch.dtype = torch.float16) -> Pipeline:
    """A tiny pipeline on the fake device."""
    config = TINY_FAMILIES[family]
    with torch.device("cuda"):
        networks = Networks(FAMILIES[family], config).cast(dtype)
    return Pipeline(FAMILIES[family], config, networks)


def sample(pipeline: Pipeline, running: Running = Running(), **asked):
    subject = torch.zeros(16, 24, 3, dtype=torch.uint8) if "image" in pipeline.family.takes else "a test"
    (video,) = pipeline.sample(subject, running=running, **{"steps": 1, "scales": (2,), "guidance_scale": 3.0, **asked})
    return video


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("run", RUNS)
def test_every_family_goes_from_its_subject_to_frames(family, run):
    asked, running = RUNS[run]
    with fake_cuda() as (_, attention):
        video = sample(pipeline_of(family), running, **asked)
    assert [x.device.type for x in [*video.frames, *video.latents]] == ["cpu"] * 4
    assert [tuple(x.shape) for x in video.frames] == [(8, 16, 24, 3), (16, 16, 24, 3)]
    assert "math" not in attention.taken and ("flash" in attention.taken) == bool(attention.taken)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_bfloat16_goes_the_same_way(family):
    with fake_cuda() as (_, attention):
        sample(pipeline_of(family, torch.bfloat16))
    assert "math" not in attention.taken


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_step_waits_for_next_to_nothing(family):
    """Of two runs that differ by two steps: the noise goes to the device, and one answer a stage comes back, whether it
    is finite. What is small and always the same was copied before."""
    counts = []
    with fake_cuda() as (card, _):
        made = pipeline_of(family)
        sample(made)
        for steps in (2, 4):
            before = card.copies.copy(), card.waits
            sample(made, steps=steps, eta=0.0)
            counts.append((card.copies - before[0], card.waits - before[1]))
    (copies, waits), (more_copies, more_waits) = counts
    assert (more_copies - copies).total() == 0  # what a run copies, it copies once
    assert more_waits - waits == 2 * 2  # stages, steps


def on_the_cpu(make, *key, device, dtype):
    return make(*key).to(dtype)


def transposed(make, *key, device, dtype):
    return make(*key).to(device, dtype).mT.contiguous().mT


def test_a_tensor_left_on_the_cpu_is_caught(monkeypatch):
    monkeypatch.setattr(attention, "once", on_the_cpu)
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        sample(pipeline_of("vc2"))


def test_an_embedding_of_another_precision_is_caught(monkeypatch):
    own = Skeleton.embed
    monkeypatch.setattr(Skeleton, "embed", lambda self, timestep, dtype: own(self, timestep, dtype).float())
    with fake_cuda(), pytest.raises(RuntimeError, match="float16 and torch.float32"):
        sample(pipeline_of("lavie"))


def test_a_bias_that_forms_the_matrix_is_caught(monkeypatch):
    own = attention.attend_frames
    twisted = partial(lambda q, k, v, bias=None: own(q, k, v, None if bias is None else bias.mT.contiguous().mT))
    monkeypatch.setattr(attention, "attend_frames", twisted)
    with fake_cuda() as (_, seen):
        sample(pipeline_of("lavie"))
    assert "math" in seen.taken


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize(
    "running",
    [
        Running(),
        Running(offload=True),
        Running(sequential_guidance=True),
        Running(frame_chunk=2),
        Running(offload=True, sequential_guidance=True, frame_chunk=2),
    ],
    ids=["plain", "offload", "sequential", "chunks", "all"],
)
def test_memory_is_what_was_counted(family, running):
    """Of a step at the published video's size, of networks with the published width but fewer layers."""
    published = FAMILIES[family].config
    small = replace(published.unet, channel_mult=(1, 2), res_blocks=1, attention_resolutions=(1, 2))
    config = replace(published, unet=small, vae=TINY_FAMILIES[family].vae)
    config = replace(config, encoder=replace(TINY_FAMILIES[family].encoder, **width(published)))
    settings = settings_for(FAMILIES[family], config, scales=(2,), dtype="float16", strength_schedule="constant")
    guess = needs(FAMILIES[family], config, settings, running)
    with fake_cuda() as (card, _):
        with torch.device("cuda"):
            networks = Networks(FAMILIES[family], config).cast(torch.float16)
        card.there(networks.parameters())
        assert card.live["cuda"] == guess.weights
        # TODO
