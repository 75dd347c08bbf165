"""Reuse of deep features between steps (DeepCache, Ma et al. 2023, arXiv 2312.00858).

All levels of a network but the outermost run in one step out of `every`; in the others their
last output is used again. The network must offer `around_deep`: see `models.unet.Skeleton`.
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

    def __init__(self, every: int, memory: Memory) -> None:
        self.every, self.memory = every, memory
        self.kept: dict[tuple[int, int], Waiting] = {}

    def __call__(self, deep: Callable[[Tensor], Tensor], stage: Stage | None, h: Tensor) -> Tensor:
        """The deep features of h: as kept, or computed and kept. Without a stage, computed."""
        if stage is None:
            return deep(h)
        key = stage.index, stage.branch
        if stage.step % self.every and key in self.kept:
            return self.kept[key].get()
        if key in self.kept:
            self.memory.free(self.kept.pop(key))
        h = deep(h)
        self.kept[key] = self.memory.put({"h": h})["h"]
        return h


@contextmanager
def reusing(network: Any, every: int, memory: Memory) -> Iterator[None]:
    """Within, a network's deep features are computed in one of `every` steps. UserError if it
    does not offer them."""
    if every == 1:
        yield
        return
    if not hasattr(network, "around_deep"):
        raise UserError("reuse: this network has no around_deep (docs/new_backbone.md)")
    before, network.around_deep = network.around_deep, DeepCache(every, memory)
    try:
        yield
    finally:
        network.around_deep = before
