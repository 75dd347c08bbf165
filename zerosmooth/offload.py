"""Where hidden states wait: on the device that made them, or in the memory of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Waiting:
    """A tensor that waits in the memory of a device, or where it was made if that is None."""

    def __init__(self, x: Tensor, device: torch.device | None = None) -> None:
        self.home, self.nbytes = x.device, x.nbytes
        self.x = x if device is None else x.to(device)

    def fetch(self) -> None:
        """Start to copy it back, where a copy takes time."""

    def settle(self) -> None:
        """Make its device wait for the copy that was started last, and drop that copy's source."""

    def get(self) -> Tensor:
        """The tensor, on its own device."""
        return self.x.to(self.home)

    def free(self) -> None:
        """Give up its place: it will not be needed again."""


class PinnedMemory:
    """Memory of the host that a CUDA device copies to and from beside its other work.

    It is cut into pages of one size, which later tensors use again: torch alone would round each
    tensor up to a power of two. Copies run on a stream of their own, one after the other. A
    device's memory belongs to the network's stream, so a copy starts when that stream has come to
    where it was asked for, and that stream waits before it reads what a copy brought or frees its
    source.
    """

    PAGE = 2**22  # bytes
    PAGES = 32  # pinned at once

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.unused: list[Tensor] = []

    def pages(self, nbytes: int) -> list[Tensor]:
        """Pages for so many bytes."""
        count = -(-nbytes // self.PAGE)
        with torch.inference_mode(False), torch.device("cpu"):  # they may be used outside it later
            while len(self.unused) < count:
                self.unused += pin(self.PAGES * self.PAGE).split(self.PAGE)
        return [self.unused.pop() for _ in range(count)]

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Any:
        """Start to copy bytes page by page; the last one may be larger than what it holds. Returns
        the event that ends it."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in zip(targets, sources):
                size = min(len(target), len(source))
                target[:size].copy_(source[:size], non_blocking=True)
        return self.stream.record_event()

    def wait(self, event: Any) -> None:
        """Make the network's stream wait for a copy."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def wait_for_all(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


def pin(nbytes: int) -> Tensor:
    """Bytes of the host that keep their place, so that a device can copy them by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class Offloaded(Waiting):
    """A tensor of a CUDA device that waits in pages of the host. The copy there is started at once.
    Gradients do not pass."""

    def __init__(self, x: Tensor, memory: PinnedMemory) -> None:
        self.home, self.nbytes, self.dtype = x.device, x.nbytes, x.dtype
        self.order = sorted(range(x.ndim), key=x.stride, reverse=True)  # axes as they lie in memory
        x = x.permute(self.order)
        self.shape = x.shape
        self.memory, self.pages = memory, memory.pages(x.nbytes)
        self.source: Tensor | None = x.contiguous().flatten().view(torch.uint8)
        self.target: Tensor | None = None
        self.event = memory.copy(self.pages, self.source.split(memory.PAGE))

    def fetch(self) -> None:
        if self.target is None:
            self.target = torch.empty(self.nbytes, dtype=torch.uint8, device=self.home)
            self.event = self.memory.copy(self.target.split(self.memory.PAGE), self.pages)

    def settle(self) -> None:
        self.memory.wait(self.event)
        self.source = None

    def get(self) -> Tensor:
        self.fetch()
        self.settle()
        assert self.target is not None
        x = self.target.view(self.dtype).view(self.shape)
        self.target = None
        return x.permute([self.order.index(axis) for axis in range(x.ndim)])

    def free(self) -> None:
        self.memory.unused += self.pages


class Memory:
    """Where the modules of a network put tensors, and take them back in the same order.

    device: None where they are made. In "cpu", tensors of a CUDA device are pinned and move beside
    its work: they leave until the next module puts or takes, and return during the module before.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.held_bytes = self.peak_bytes = 0  # of what waits, now and at most
        self.leaving: list[Waiting] = []  # what was put last
        self.pinned: dict[torch.device, PinnedMemory] = {}  # by the device of the tensors

    def put(self, tensors: Mapping[str, Tensor]) -> dict[str, Waiting]:
        """Let tensors wait, by name."""
        self._settle()
        waiting = {name: self.hold(x) for name, x in tensors.items()}
        self.leaving += waiting.values()
        self.held_bytes += sum(x.nbytes for x in waiting.values())
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return waiting

    def take(self, waiting: Mapping[str, Waiting],
             ahead: Mapping[str, Waiting]) -> dict[str, Tensor]:
        """Take tensors back to their own device. ahead: those that will be taken next."""
        tensors = {name: x.get() for name, x in waiting.items()}
        self.free(*waiting.values())
        for x in ahead.values():
            x.fetch()
        return tensors

    def free(self, *waiting: Waiting) -> None:
        """Forget tensors that wait."""
        self._settle()
        for x in waiting:
            x.free()
            self.held_bytes -= x.nbytes

    def clear(self) -> None:
        """Forget all tensors, those that are being copied too."""
        for memory in self.pinned.values():
            memory.wait_for_all()
        self.pinned, self.leaving, self.held_bytes = {}, [], 0

    def hold(self, x: Tensor) -> Waiting:
        """Let one tensor wait."""
        if not (x.is_cuda and self.device is not None and self.device.type == "cpu"):
            return Waiting(x, self.device)
        if x.device not in self.pinned:
            self.pinned[x.device] = PinnedMemory(x.device)
        return Offloaded(x, self.pinned[x.device])

    def _settle(self) -> None:
        """Free on its device what was put last."""
        for x in self.leaving:
            x.settle()
        self.leaving.clear()
