"""A small network of the real classes with random weights, and what the tests do with it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

from zerosmooth.checkpoint import save
from zerosmooth.config import Defaults, ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.clip import ImageConfig, TextConfig
from zerosmooth.models.lavie import LaVieConfig, LaVieUNet
from zerosmooth.models.svd import SVDConfig, SVDUNet
from zerosmooth.models.unet import Skeleton
from zerosmooth.models.videocrafter import UNet, UNetConfig
from zerosmooth.pipeline import Pipeline

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and waiting threads would spin
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as shells set it for background commands
        signal.signal(number, usual)

FRAMES = 8
SIZE = dict(channels=16, channel_mult=(1, 2), res_blocks=1, attention_resolutions=(1, 2),
            context_dim=12, groups=4)
TINY = UNetConfig(**SIZE, head_dim=8, frames=FRAMES)
TINY_VC1 = replace(TINY, relative_position=True, temporal_conv=False, fps_condition=False)
TINY_LAVIE = LaVieConfig(**SIZE, heads=2, frames=FRAMES)
TINY_SVD = SVDConfig(**SIZE, head_dim=8, condition_dim=8, frames=FRAMES)
NETWORKS = {
    "no positions": (UNet, TINY),
    "relative positions": (UNet, TINY_VC1),
    "rotary positions and bias": (LaVieUNet, TINY_LAVIE),
    "absolute positions": (SVDUNet, TINY_SVD),
}
TINY_CONFIG = ModelConfig(
    family="vc2",
    unet=TINY,
    vae=AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1, groups=4),
    encoder=TextConfig(vocab_size=514 + 40, context_length=16, width=12, heads=2, layers=1),
    sampler=FAMILIES["vc2"].config.sampler,
    defaults=Defaults(height=16, width=24, steps=4, guidance_scale=3.0, prompt="a test"),
)
TINY_FAMILIES = {
    "vc2": TINY_CONFIG,
    "vc1": replace(TINY_CONFIG, family="vc1", unet=TINY_VC1,
                   sampler=FAMILIES["vc1"].config.sampler),
    "lavie": replace(
        TINY_CONFIG, family="lavie", unet=TINY_LAVIE, sampler=FAMILIES["lavie"].config.sampler,
        encoder=replace(TINY_CONFIG.encoder, pad_token=553, activation="quick_gelu")),
    "svd": ModelConfig(
        family="svd",
        unet=TINY_SVD,
        vae=replace(TINY_CONFIG.vae, temporal=True, float32=True),
        encoder=ImageConfig(image_size=28, patch_size=14, width=16, heads=2, layers=1, out=12),
        sampler=FAMILIES["svd"].config.sampler,
        defaults=replace(FAMILIES["svd"].config.defaults, height=16, width=24, steps=4),
    ),
}


# Here things are counted without computing: two families are enough to wait for.
COUNTED = ("test_estimate.py", "test_cuda_fake.py", "test_cuda_memory.py", "test_offload.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.id.split("-")
        if item.path.name in COUNTED and family and {"vc1", "lavie"} & set(family):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=NETWORKS, scope="session")
def unet(request) -> Skeleton:
    """Each family's network, tiny, with random weights."""
    torch.manual_seed(0)
    kind, config = NETWORKS[request.param]
    return randomise(kind(config)).eval().requires_grad_(False)


def randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights where a fresh network has zeros, whose effect would not be tested."""
    for name, p in network.named_parameters():
        if name.endswith(("position.bias", "mix.factor")):
            torch.nn.init.normal_(p)
    return network


@pytest.fixture(params=TINY_FAMILIES, scope="session")
def any_pipeline(request) -> Pipeline:
    """Each family's pipeline, tiny, with random weights."""
    torch.manual_seed(0)
    pipeline = tiny_pipeline(request.param)
    randomise(pipeline.networks)
    return pipeline


def tiny_pipeline(name: str) -> Pipeline:
    """With random weights, zeros where a fresh network has zeros."""
    family, config = FAMILIES[name], TINY_FAMILIES[name]
    return Pipeline(family, config, Networks(family, config))


def subject(pipeline: Pipeline, count: int = 1) -> dict:
    """What a pipeline makes `count` videos from: the argument of its `sample`."""
    if "image" not in pipeline.family.takes:
        return {"subjects": ["a test", "another"][:count]}
    generator = torch.Generator().manual_seed(3)
    return {"subjects": [torch.randint(256, (20, 40, 3), generator=generator).byte()
                         for _ in range(count)]}


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    return tiny_pipeline("vc2")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny checkpoints with random weights, by family."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, config in TINY_FAMILIES.items():
        torch.manual_seed(0)
        tensors = tiny_pipeline(name).networks.state_dict().items()
        path = folder / f"{name}.safetensors"
        save(path, FAMILIES[name], config, tensors, torch.float32, "a test", "0" * 64)
    return folder


def told(unet, b: int, fps: int = 8) -> dict:
    """The arguments of a network besides x and bus: step, context and condition."""
    svd = isinstance(unet, SVDUNet)
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, 1 if svd else 5, SIZE["context_dim"], generator=generator)
    condition = torch.full((b,), fps)
    if svd:
        condition = torch.tensor([[fps - 1.0, 180.0, 0.02]]).expand(b, -1)
    return {"timestep": torch.full((b,), 1.2 if svd else 300),
            "context": context.expand(b, -1, -1), "condition": condition}


@pytest.fixture
def ask(unet):
    """Run the network: ask(x, stage=None) with fixed context, step and fps."""

    def run(x, stage=None, fps=8):
        if unet.config.in_channels == 8:  # the reference image's latents follow the noisy ones
            x = torch.cat([x, torch.full_like(x, 0.5)], dim=2)
        return unet(x, **told(unet, len(x), fps), stage=stage)

    return run


def latents(frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))
