"""What a video will need, counted without running it: the networks run once on `meta` tensors, which have no data."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .bus import Stage
from .cascade import cascade_step
from .config import ModelConfig
from .extensions.reuse import reusing
from .family import Family, Networks
from .models.layers import frame_chunks
from .offload import Memory, Offloaded, PinnedMemory, Waiting
from .settings import Running, Settings

FLOP_SHARE = 0.5  # of the machine's own matrix rate that a step is taken to reach


@dataclass(frozen=True)
class Needs:
    """weights, step, bus, decoding: bytes, all but the first at their highest. step: activations, and the hidden states
    that wait beside them, unless those wait elsewhere; bus: the hidden states that wait, at another moment perhaps.
    flops: of a step of all stages, guided; the mean step, where some reuse what others made."""

    weights: int
    step: int
    bus: int
    decoding: int
    flops: int


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that come alive, and their peak.

    there: tensors that are there before, whose views are therefore nothing new.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class _Nowhere(PinnedMemory):
    """Takes up no bytes, and copies none."""

    def __init__(self) -> None:
        self.unused = []

    def pages(self, nbytes: int) -> list[Tensor]:
        return []

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None: ...

    def wait(self, event: None) -> None: ...


class _Elsewhere(Memory):
    """Another memory; on the device tensors are on their way there and back."""

    def hold(self, x: Tensor) -> Waiting:
        return Offloaded(x, _Nowhere())


class _FusedAttention(TorchFunctionMode):
    """Stands in for scaled_dot_product_attention, which on `meta` would form the l x l matrix; counts what it skips."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, _ = args
        self.flops += 4 * prod(q.shape) * k.shape[-2]
        return torch.empty_like(q)


def needs(family: Family, config: ModelConfig, settings: Settings, running: Running = Running()) -> Needs:
    """Of one video."""
    cascade, dtype = settings.cascade, getattr(torch, settings.dtype)
    with torch.device("meta"):
        networks = Networks(family, config).cast(dtype).requires_grad_(False)
        branches = 2 if family.guided(config, settings) else 1
        runs = branches if running.sequential_guidance else 1  # of the network, for a step of a stage
        b, factor = branches // runs, config.vae.factor
        shape = (settings.height // factor, settings.width // factor)
        xs = [
            torch.empty(b, cascade.frames_of(s), config.unet.in_channels, *shape, dtype=dtype)
            for s in range(cascade.stages)
        ]
        context = networks.unet.project_context(torch.empty(b, *config.encoder.context_shape, dtype=dtype))
        told = family.condition(config, float(settings.fps), settings)
        told = None if told is None else told.to("meta").expand(b, *told.shape)
        frames = min(settings.decode_chunk_size, cascade.frames_of(cascade.stages - 1))
        z = torch.empty(frames, config.vae.latent_channels, *shape, dtype=networks.vae.dtype)

    def network(index: int, x: Tensor, stage: Stage | None) -> Tensor:
        return networks.unet(x, torch.empty(b, device="meta"), context, told, stage)

    def peak(work: Callable[[], object]) -> int:
        with _LiveBytes(networks.parameters()) as memory:
            work()
        return memory.peak

    weight, every = cascade.strength_at(1.0), settings.reuse
    bus = settings.bus()
    if bus is not None and running.offload:
        bus.memory = _Elsewhere(None)
    memory = Memory(None) if bus is None else bus.memory
    with (torch.no_grad(), _FusedAttention() as attention, reusing(networks.unet, every, memory),
          frame_chunks(networks.unet, running.frame_chunk)):
        done: list[int] = []  # operations after a whole step, one with reuse, and a whole one
        with FlopCounterMode(display=False) as counter:

            def work() -> None:
                for i in (0,) if every == 1 else (0, 1, every):
                    cascade_step(network, xs, bus, i, weight)
                    done.append(counter.get_total_flops() + attention.flops)

            step = peak(work)
        whole = 1 / min(every, settings.steps)  # share of the steps, about
        reused = done[0] if every == 1 else done[1] - done[0]
        flops = round(whole * done[0] + (1 - whole) * reused)
        held = memory.peak_bytes
        step += 0 if running.offload else (runs - 1) * held  # those of the branch that does not run
        held *= runs
        decoding = peak(lambda: networks.vae.decode_raw(z))
    weights = sum(p.numel() * p.dtype.itemsize for p in networks.parameters())
    return Needs(weights, step, held, decoding, runs * flops)


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Multiply-and-add operations a second of this machine on large square matrices, measured."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.randn(n, n, device=device, dtype=dtype)
    count, since = 0, 0.0
    for warm in (True, False):
        since, count = time.perf_counter(), 0
        while time.perf_counter() - since < (0.1 if warm else seconds):
            for _ in range(4):
                a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            count += 4
    return 2 * n**3 * count / (time.perf_counter() - since)
