"""Networks under `torch.compile`: whole without a bus, between their attention modules with one; no
graph breaks."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from zerosmooth import settings
from zerosmooth.bus import HiddenStateBus
from zerosmooth.cascade import cascade_step
from zerosmooth.models.compiled import compilable, compiled
from zerosmooth.models.layers import FeedForward, ResBlock
from zerosmooth.models.unet import Skeleton
from zerosmooth.settings import Running, has_compiler

from .conftest import FRAMES, NETWORKS, latents, randomise, told


@pytest.fixture(params=NETWORKS, scope="module")
def unet(request) -> Skeleton:
    """Each family's network, of one level: tracing takes seconds."""
    torch.manual_seed(0)
    kind, config = NETWORKS[request.param]
    network = randomise(kind(replace(config, channel_mult=(1,), attention_resolutions=(1,))))
    return network.eval().requires_grad_(False)


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Stands in for torch's code generator, which takes minutes: runs graphs as they are, and lists
    them."""
    found: list = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return found


@pytest.mark.long
@pytest.mark.parametrize("unet", list(NETWORKS)[1:], indirect=True)
def test_a_plain_network_is_one_graph(unet, graphs):
    x = latents(FRAMES)
    x = torch.cat([x, x], dim=2) if unet.config.in_channels == 8 else x
    arguments = told(unet, 1)
    arguments["context"] = unet.project_context(arguments["context"])
    assert_close(torch.compile(unet, fullgraph=True)(x, **arguments), unet(x, **arguments))
    assert len(graphs) == 1


def test_on_a_bus_layers_are_compiled_once_for_all_steps(unet, ask, graphs):
    """fullgraph makes a graph break an error; steps differ in what is drawn and in strength."""
    xs = [latents(FRAMES), latents(2 * FRAMES)]

    def steps() -> list:
        bus = HiddenStateBus(FRAMES, (2,))
        return [cascade_step(lambda s, x, view: ask(x, view), xs, bus, i, 0.8 - 0.2 * i)
                for i in range(3)]

    plain, counts = steps(), []
    for _ in range(2):
        with compiled(unet):
            assert_close(steps(), plain)
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 0 and counts[0] <= 2 * len(list(compilable(unet)))
    assert not any(method in vars(layer) for layer in unet.modules() for _,
                   method in compilable(unet))


def test_what_is_compiled_is_most_of_a_network_and_nothing_on_the_bus(unet):
    layers = list(compilable(unet))
    within = [inner for layer, _ in layers for inner in layer.modules()]
    wanted = [module for module in unet.modules() if isinstance(module, (ResBlock, FeedForward))]
    assert wanted and all(any(module is inner for inner in within) for module in wanted)
    assert not any(hasattr(inner, "attend") for inner in within)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_a_pipeline_compiles_if_asked(pipeline, graphs):
    def latents_of(**more) -> torch.Tensor:
        return pipeline.sample("x", key_frames=2, scale=1, steps=1, **more)[0].latents[0]

    plain = latents_of()
    assert not graphs
    assert_close(latents_of(running=Running(compile=True)), plain)
    assert graphs


@pytest.mark.long
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_torchs_own_code_gives_the_same_up_to_rounding():
    network, h = nn.Sequential(nn.ModuleList([FeedForward(16)])), torch.randn(1, 2, 6, 16)
    layer = network[0][0]
    plain = layer(h)
    with compiled(network):
        assert_close(layer(h), plain)


def test_no_compiler_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(settings.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="compile needs a C.. compiler"):
        Running(compile=True)
