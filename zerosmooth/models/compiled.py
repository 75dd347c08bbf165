"""Layers compiled with `torch.compile`: those that have nothing to do with the bus.

Attention modules hand over states at every step, with operators that are drawn anew, so compiled
ones would be compiled again and again. They stay as they are; what lies between them has no graph
breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..bus import OnBus
from .layers import ResBlock
from .unet import Block

GRAPHS = 1024  # at most, of one class of layers: there is one for each size
CONTAINERS = (Block, nn.ModuleList, nn.Sequential)


def compilable(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The layers to compile, each with the name of its method: the largest ones without a module
    on the bus, or the part of a ResNet block that has none."""
    for child in module.children():
        if isinstance(child, CONTAINERS) or any(isinstance(m, OnBus) for m in child.modules()):
            if isinstance(child, ResBlock):
                yield child, "convolve"
            yield from compilable(child)
        elif any(True for _ in child.children()):
            yield child, "forward"


@contextmanager
def compiled(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within, a network's layers run as `torch.compile` makes them at their first call in each
    size: the same result up to rounding."""
    if not wanted:
        yield
        return
    import torch._dynamo  # late, as it takes a second

    layers = list(compilable(network))
    for layer, method in layers:
        setattr(layer, method, torch.compile(getattr(layer, method), fullgraph=True))
    try:
        with torch._dynamo.config.patch(cache_size_limit=GRAPHS,
                                        accumulated_cache_size_limit=GRAPHS):
            yield
    finally:
        for layer, method in layers:
            delattr(layer, method)
