"""Layers compiled with `torch.compile`: those that know nothing of the bus.

Attention modules hand states over at every step, with operators drawn anew: what is decided there would be compiled
again and again. They stay as they are, and what lies between them is compiled without graph breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..bus import OnBus
from .layers import ResBlock
from .unet import Block

GRAPHS = 1024  # of one layer's class, at most: one for each size that it is made in
CONTAINERS = (Block, nn.ModuleList, nn.Sequential)


def compilable(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The largest layers within a network that are made of others and hold nothing on a bus, or what does the work of
    one that does; and the name of their method that is compiled."""
    for child in module.children():
        if isinstance(child, CONTAINERS) or any(isinstance(inner, OnBus) for inner in child.modules()):
            if isinstance(child, ResBlock):
                yield child, "convolve"
            yield from compilable(child)
        elif any(True for _ in child.children()):
            yield child, "forward"


@contextmanager
def compiled(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within, a network's layers run as `torch.compile` makes them, at their first call for each size: the same result
    up to rounding."""
    if not wanted:
        yield
        return
    import torch._dynamo  # which takes a second

    layers = list(compilable(network))
    for layer, method in layers:
        setattr(layer, method, torch.compile(getattr(layer, method), fullgraph=True))
    try:
        with torch._dynamo.config.patch(cache_size_limit=GRAPHS, accumulated_cache_size_limit=GRAPHS):
            yield
    finally:
        for layer, method in layers:
            delattr(layer, method)
