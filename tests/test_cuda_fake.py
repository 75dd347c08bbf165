"""What a run does on CUDA, seen without a card: see `tests.fake_cuda`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from zerosmooth import attention
from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks
from zerosmooth.models.unet import Skeleton
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Running

from .conftest import TINY_FAMILIES
from .fake_cuda import Attention, Card, fake_cuda, guards

pytestmark = needs_no_card = pytest.mark.skipif(
    torch.cuda.is_available() or guards() is None,
    reason="needs a torch without CUDA, whose table of devices is found"
)
RUNS = {
    "direct": ({"method": "direct"}, Running()),
    "ddnm": ({"method": "ddnm"}, Running()),
    "freenoise": ({"method": "freenoise"}, Running()),
    "windowed": ({"method": "windowed"}, Running()),
    "zerosmooth": ({"prediction": "lines"}, Running()),
    "in less time": ({"preset": "anchored", "reuse": 2, "steps": 2}, Running(offload=True)),
    "other settings": ({"kv_operator": "S", "color_correction": True,
                        "strength_schedule": "constant"}, Running()),
    "all that saves memory": ({}, Running(offload=True, sequential_guidance=True, frame_chunk=3)),
}


@cache
def networks_of(family: str, config: ModelConfig) -> tuple[Networks, dict[str, torch.Size]]:
    """Without data, and the shapes of their tensors."""
    with torch.device("meta"):
        networks = Networks(FAMILIES[family], config).eval().requires_grad_(False)
    return networks, {name: x.shape for name, x in networks.state_dict().items()}


def on_the_card(networks: Networks, shapes: dict[str, torch.Size], dtype: torch.dtype) -> Networks:
    """As a checkpoint is loaded there."""
    vae = torch.float32 if networks.vae.config.float32 else dtype
    kinds = {name: vae if name.startswith("vae.") else dtype for name in shapes}
    tensors = {name: torch.empty(shape, dtype=kinds[name], device="cuda") for name,
               shape in shapes.items()}
    networks.load_state_dict(tensors, assign=True)
    return networks


@contextmanager
def card_with(family: str,
              dtype: torch.dtype = torch.float16) -> Iterator[tuple[Pipeline, Card, Attention]]:
    """Within, there is a fake card with a tiny pipeline on it."""
    config = TINY_FAMILIES[family]
    networks = networks_of(family, config)
    with fake_cuda() as (card, attention):
        yield Pipeline(FAMILIES[family], config, on_the_card(*networks, dtype)), card, attention


def sample(pipeline: Pipeline, running: Running = Running(), **asked):
    subject = torch.zeros(16, 24, 3,
                          dtype=torch.uint8) if "image" in pipeline.family.takes else "a test"
    (video,) = pipeline.sample(subject, running=running,
                               **{"steps": 1, "scale": 2, "guidance_scale": 3.0, **asked})
    return video


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("run", RUNS)
def test_every_family_goes_from_its_subject_to_frames(family, run):
    asked, running = RUNS[run]
    dtype = torch.bfloat16 if run == "other settings" else torch.float16
    seen: list[torch.Tensor] = []
    with card_with(family, dtype) as (pipeline, card, attention):
        video = sample(pipeline, running, preview=lambda look: seen.extend(look()), **asked)
    assert [x.device.type for x in [*video.frames, *video.latents]] == ["cpu"] * 4
    assert [tuple(x.shape) for x in video.frames] == [(8, 16, 24, 3), (16, 16, 24, 3)]
    assert {(x.device.type, tuple(x.shape)) for x in seen} == {("cpu", (8, 8, 12, 3))}
    assert not card.doubles  # which a device of another kind may lack
    assert "math" not in attention.taken and ("flash" in attention.taken) == bool(attention.taken)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_step_waits_for_next_to_nothing(family):
    """A second step, without fresh noise, copies nothing to the device, and waits once a stage, to
    hear whether all is finite: what is small and always the same was copied in the first."""
    counts = []
    with card_with(family) as (pipeline, card, _):
        for steps in (1, 2, 1):
            before = card.copies.copy(), card.waits
            sample(pipeline, steps=steps, eta=0.0)
            counts.append((card.copies - before[0], card.waits - before[1]))
    (first, _), (two, waits), (one, fewer) = counts
    assert first["cpu to cuda"] > one["cpu to cuda"]  # of which the smallest were kept
    assert two == one and waits - fewer == 2


def on_the_cpu(make, *key, device, dtype):
    return make(*key).to(dtype)


def test_a_tensor_left_on_the_cpu_is_caught(monkeypatch):
    monkeypatch.setattr(attention, "once", on_the_cpu)
    with card_with("vc2") as (pipeline, *_), pytest.raises(RuntimeError, match="device"):
        sample(pipeline)


def test_an_embedding_of_another_precision_is_caught(monkeypatch):
    own = Skeleton.embed
    monkeypatch.setattr(Skeleton, "embed", lambda *args: own(*args).float())
    with card_with("lavie") as (pipeline, *_), pytest.raises(RuntimeError,
                                                             match="float16 and torch.float32"):
        sample(pipeline)


def test_a_bias_that_forms_the_matrix_is_caught(monkeypatch):
    own = F.scaled_dot_product_attention

    def twisted(q, k, v, attn_mask=None, **more):
        return own(q, k, v, attn_mask=None if attn_mask is None else attn_mask.mT.contiguous().mT,
                   **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", twisted)
    with card_with("lavie") as (pipeline, _, seen):
        sample(pipeline)
    assert "math" in seen.taken
