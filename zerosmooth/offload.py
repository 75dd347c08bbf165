"""Where hidden states wait: where they are made, or in another memory until they are taken back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Waiting:
    """A tensor that waits in the memory of a device; without one, where it is."""

    def __init__(self, x: Tensor, device: torch.device | None = None) -> None:
        self.home, self.nbytes = x.device, x.nbytes
        self.x = x if device is None else x.to(device)

    def fetch(self) -> None:
        """Begin to bring it back, where that takes time."""

    def settle(self) -> None:
        """Have its device wait for the copy that was begun last. What that needed there can then be given away."""

    def get(self) -> Tensor:
        """The tensor, on its own device."""
        return self.x.to(self.home)

    def free(self) -> None:
        """It will not be fetched again."""


class PinnedMemory:
    """Memory of the host from which a CUDA device copies beside its other work, in pages of one size.

    torch rounds what it pins up to powers of two, tensor by tensor; here a tensor takes as many pages as it needs, and
    a later one takes them again. Copies run on a stream of their own, one after the other. Memory of the device belongs
    to the network's stream: copies begin when that has come to where they are asked for, and it waits for them before
    it reads what they brought or gives away what they took.
    """

    PAGE = 2**22  # bytes
    PAGES = 32  # pinned at once

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.unused: list[Tensor] = []

    def pages(self, nbytes: int) -> list[Tensor]:
        """Pages for so many bytes."""
        count = -(-nbytes // self.PAGE)
        with torch.inference_mode(False), torch.device("cpu"):  # they may come to be used outside it
            while len(self.unused) < count:
                self.unused += pin(self.PAGES * self.PAGE).split(self.PAGE)
        return [self.unused.pop() for _ in range(count)]

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Any:
        """Begin to copy bytes piece by piece, of which the last may fill a part of its page. Returns the event of
        their end."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in zip(targets, sources):
                size = min(len(target), len(source))
                target[:size].copy_(source[:size], non_blocking=True)
        return self.stream.record_event()

    def wait(self, event: Any) -> None:
        """Have the network's stream wait for copies."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def wait_for_all(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


def pin(nbytes: int) -> Tensor:
    """Bytes of the host that stay where they are, so that a device can copy them by itself."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class Offloaded(Waiting):
    """A tensor of a CUDA device that waits in pages of the host; its way there has begun. Gradients do not pass."""

    def __init__(self, x: Tensor, memory: PinnedMemory) -> None:
        self.home, self.nbytes, self.dtype = x.device, x.nbytes, x.dtype
        self.order = sorted(range(x.ndim), key=x.stride, reverse=True)  # of axes as they lie in memory
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
    """Where tensors wait that modules of a network put and take back one after the other.

    device: None where they are made. In "cpu" those of CUDA wait pinned, and move while the device does other things: a
    module's leave until the next one puts or takes, and come while the one before it works.
    """

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.held_bytes = self.peak_bytes = 0  # of what waits, and the most that ever did
        self.leaving: list[Waiting] = []  # what was put last
        self.pinned: dict[torch.device, PinnedMemory] = {}  # by the device whose tensors wait

    def put(self, tensors: Mapping[str, Tensor]) -> dict[str, Waiting]:
        """Let tensors wait, by name."""
        self._settle()
        waiting = {name: self.hold(x) for name, x in tensors.items()}
        self.leaving += waiting.values()
        self.held_bytes += sum(x.nbytes for x in waiting.values())
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return waiting

    def take(self, waiting: Mapping[str, Waiting], ahead: Mapping[str, Waiting]) -> dict[str, Tensor]:
        """What waits, each on its own device, and no longer here. ahead: what will be taken next."""
        tensors = {name: x.get() for name, x in waiting.items()}
        self.free(*waiting.values())
        for x in ahead.values():
            x.fetch()
        return tensors

    def free(self, *waiting: Waiting) -> None:
        """Forget what waits."""
        self._settle()
        for x in waiting:
            x.free()
            self.held_bytes -= x.nbytes

    def clear(self) -> None:
        """Forget all, whatever is on its way."""
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
        """Give away on their devices what was put last."""
        for x in self.leaving:
            x.settle()
        self.leaving.clear()
