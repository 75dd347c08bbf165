"""What a video will need, counted by running its networks once on tensors without data ("meta")."""

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

from zerosmooth.bus import Stage
from zerosmooth.cascade import cascade_step
from zerosmooth.config import ModelConfig
from zerosmooth.extensions import METHODS
from zerosmooth.extensions.reuse import reusing
from zerosmooth.family import Family, Networks
from zerosmooth.models.layers import frame_chunks
from zerosmooth.offload import Memory, Offloaded, PinnedMemory, Waiting
from zerosmooth.settings import Running, Settings

FLOP_SHARE = 0.5  # of the machine's matrix rate that a step is assumed to reach


@dataclass(frozen=True)
class Needs:
    """In bytes, and at their peaks, weights aside. flops: of a guided step of all stages; the mean
    step where deep features are reused."""

    weights: int
    step: int  # activations, and what waits beside them on the same device
    bus: int  # hidden states and deep features that wait
    decoding: int
    flops: int


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that come alive beside those of `there`, and their peak."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known = {x.untyped_storage()._cdata for x in there}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.known:
                storage = x.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class _Nowhere(PinnedMemory):
    """Takes no memory of the host, and copies nothing."""

    def __init__(self) -> None:
        self.unused = []

    def pages(self, nbytes: int) -> list[Tensor]:
        return []

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None: ...

    def wait(self, event: None) -> None: ...


class _Elsewhere(Memory):
    """Of what waits, the device has only what is on its way."""

    def hold(self, x: Tensor) -> Waiting:
        return Offloaded(x, _Nowhere())


class _FusedAttention(TorchFunctionMode):
    """Replaces scaled_dot_product_attention, which forms the l x l matrix on `meta`, and counts its
    operations."""

    flops = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, _ = args
        self.flops += 4 * prod(q.shape) * k.shape[-2]
        return torch.empty_like(q)


def needs(family: Family, config: ModelConfig, settings: Settings,
          running: Running = Running()) -> Needs:
    """What one video needs."""
    cascade, dtype = settings.cascade, getattr(torch, settings.dtype)
    slides = METHODS[settings.method].slides
    lengths = [cascade.frames_of(s) for s in range(cascade.stages)]
    branches = 2 if family.guided(config, settings) else 1
    runs = branches if running.sequential_guidance else 1  # of the network, for a step of a stage
    b, side = branches // runs, config.vae.factor
    shape = settings.height // side, settings.width // side
    with torch.device("meta"):
        networks = Networks(family, config).cast(dtype).requires_grad_(False)
        unet, vae = networks.unet, networks.vae
        xs = [torch.empty(b, f, config.unet.in_channels, *shape, dtype=dtype)
              for f in (lengths if slides is None else lengths[:1])]  # or one window
        timestep = torch.empty(b)
        encoded = torch.empty(b, *config.encoder.context_shape, dtype=dtype)
        context = unet.project_context(encoded)
        z = torch.empty(lengths[-1], config.vae.latent_channels, *shape, dtype=vae.dtype)
    condition = family.condition(config, float(settings.fps), settings)
    if condition is not None:
        condition = condition.to("meta").expand(b, *condition.shape)

    def network(index: int, x: Tensor, stage: Stage | None) -> Tensor:
        return unet(x, timestep, context, condition, stage)

    def peak(work: Callable[[], object]) -> int:
        with _LiveBytes(networks.parameters()) as memory:
            work()
        return memory.peak

    bus, every = settings.bus(), settings.reuse
    if bus is not None and running.offload:
        bus.memory = _Elsewhere(None)
    memory = Memory(None) if bus is None else bus.memory
    totals: list[int] = []  # operations up to the end of each step

    def steps() -> None:  # one; with reuse a whole one, one that reuses, and a whole one
        for i in (0,) if every == 1 else (0, 1, every):
            cascade_step(network, xs, bus, i, cascade.strength_at(1.0))
            totals.append(counter.get_total_flops() + attention.flops)

    with (torch.no_grad(), _FusedAttention() as attention, frame_chunks(unet, running.frame_chunk)):
        with reusing(unet, every, memory), FlopCounterMode(display=False) as counter:
            step = peak(steps)
        decoding = peak(lambda: vae.decode(z, settings.decode_chunk_size))
    share = 1 / min(every, settings.steps)  # of steps that are whole, about
    reused = totals[0] if every == 1 else totals[1] - totals[0]
    flops = round(share * totals[0] + (1 - share) * reused)
    if slides is not None:
        sampler = config.sampler.sampler(settings.steps, settings.eta)
        flops = flops * slides(sampler, cascade) // len(sampler)
    if not running.offload:
        step += (runs - 1) * memory.peak_bytes  # what waits of the branch that does not run
    weights = sum(p.numel() * p.dtype.itemsize for p in networks.parameters())
    return Needs(weights, step, runs * memory.peak_bytes, decoding, runs * flops)


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations a second (a multiplication and an addition are two) of this machine on large
    square matrices, measured."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.randn(n, n, device=device, dtype=dtype)
    for limit in (0.1, seconds):  # the first is to warm up
        since, count = time.perf_counter(), 0
        while time.perf_counter() - since < limit:
            for _ in range(4):
                a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            count += 4
    return 2 * n**3 * count / (time.perf_counter() - since)
