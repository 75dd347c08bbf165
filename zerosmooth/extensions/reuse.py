"""Reuse of deep features between steps (DeepCache, Ma et al. 2023, arXiv 2312.00858).

All levels of a network but the outermost run in one step out of `every`; in the others their
last output is used again. The network must offer `around_deep`: see `models.unet.Skeleton`. Of a
network without levels, it is what the blocks in its middle add (as in Delta-DiT, Chen et al. 2024,
arXiv 2406.01125), if it says `deep_adds = True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..bus import Stage
from ..fields import UserError
from ..offload import Memory, Waiting


class DeepCache:
    """Keeps each stage's and guidance branch's last deep features in `memory`."""

    def __init__(self, every: int, memory: Memory, adds: bool = False) -> None:
        self.every, self.memory, self.adds = every, memory, adds
        self.kept: dict[tuple[int, int], Waiting] = {}

    def __call__(self, deep: Callable[[Tensor], Tensor], stage: Stage | None, h: Tensor) -> Tensor:
        """The deep features of h: as kept, or computed and kept. Without a stage, computed."""
        if stage is None:
            return deep(h)
        key = stage.index, stage.branch
        if stage.step % self.every and key in self.kept:
            features = self.kept[key].get()
        else:
            if key in self.kept:
                self.memory.free(self.kept.pop(key))
            features = deep(h) - h if self.adds else deep(h)
            self.kept[key] = self.memory.put({"h": features})["h"]
        return h + features if self.adds else features


@contextmanager
def reusing(network: Any, every: int, memory: Memory) -> Iterator[None]:
    """Within, a network's deep features are computed in one of `every` steps. UserError if it
    does not offer them."""
    if every == 1:
        yield
        return
    if not hasattr(network, "around_deep"):
        raise UserError("reuse: this network has no around_deep (docs/new_backbone.md)")
    adds = getattr(network, "deep_adds", False)
    before, network.around_deep = network.around_deep, DeepCache(every, memory, adds)
    try:
        yield
    finally:
        network.around_deep = before
