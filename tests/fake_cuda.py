"""A CUDA device that computes nothing: what a run does there can be seen without one.

Tensors are torch's fake ones, with shapes, strides, precisions and devices but no data, so whole
pipelines run at any size. A fake device forgives what a real one does not; the modes here do not.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zerosmooth.models import kernels

CUDA, META = 1, 14  # places in torch's list of kinds of devices
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
PRODUCTS = ("linear", "mm", "bmm", "addmm", "baddbmm", "convolution")
OF_ONE_DTYPE = (*PRODUCTS, "native_group_norm", "native_layer_norm", "lerp")
ATTENTION, aten = F.scaled_dot_product_attention, torch.ops.aten


def guards() -> ctypes.Array | None:
    """torch's table of what makes a device the current one, by kind of device; None where it is not
    found."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        return (ctypes.c_void_p * 32).in_dll(ctypes.CDLL(str(library)), GUARDS)
    except (OSError, ValueError):
        return None


class Card(TorchDispatchMode):
    """Sees every operation. Refuses mixed precisions, which fake products and convolutions accept;
    answers what is read from the device; counts copies between devices, waits for the device,
    operations on the CPU, and bytes that live on each device beside those of `there`."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()  # "cpu to cuda", "cuda to cpu"
        self.waits = self.on_cpu = 0
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.known: set[int] = set()
        self.pinned = 0  # bytes of the host, as torch rounds them up
        # Operations that make float64 on the device, which others (MPS) have not.
        self.doubles: set[str] = set()
        self.streams = Streams()

    def there(self, tensors: Iterable[Tensor]) -> None:
        """What lives already, and is not counted."""
        self.known |= {x.untyped_storage()._cdata for x in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if name in OF_ONE_DTYPE and len(kinds := {x.dtype for x in given
                                                  if x.is_floating_point()}) > 1:
            raise RuntimeError(f"{name} of {' and '.join(sorted(map(str, kinds)))}")
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default):
            self.waits += given[0].device.type == "cuda"
            return True if given[0].dtype == torch.bool else 1
        if kwargs.get("pin_memory"):
            self.pinned += 1 << (prod(args[0]) * kwargs["dtype"].itemsize - 1).bit_length()
        if name == "index" and args[0].device.type == "cuda":
            self.copies["cpu to cuda"] += sum(x.device.type == "cpu" for x in given[1:])
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for x in made:
            if x.is_cuda and x.dtype == torch.float64:
                self.doubles.add(name)
            if isinstance(x, FakeTensor):
                # Else what follows would be computed, with copies to a device that is not there.
                x.constant = None
            self.count(x)
        if name in ("_to_copy", "copy_") and given:
            source, target = given[-1].device.type, made[0].device.type
            if source != target:
                self.copies[f"{source} to {target}"] += 1
        self.on_cpu += any(x.device.type == "cpu" for x in made) and name not in ("_to_copy",
                                                                                  "copy_")
        return out

    def count(self, x: Tensor) -> None:
        storage, kind = x.untyped_storage(), x.device.type
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.live[kind] += storage.nbytes()
        self.peak[kind] = max(self.peak[kind], self.live[kind])
        weakref.finalize(storage, self.forget, storage._cdata, kind, storage.nbytes())

    def forget(self, key: int, kind: str, size: int) -> None:
        self.known.discard(key)
        self.live[kind] -= size


class Stream:
    """A queue of the card. clock: how far it knows every queue to have come."""

    def __init__(self, of: Streams) -> None:
        self.of, self.clock = of, Counter[Stream]()

    def record_event(self) -> Event:
        return Event(self.clock.copy(), self.of.products)

    def wait_event(self, event: Event) -> None:
        self.clock |= event.clock
        if event.products is not None:
            self.of.meanwhile.append(self.of.products - event.products)
        event.products = None  # later waits are for nothing

    def wait_stream(self, other: Stream) -> None:
        self.clock |= other.clock


@dataclass
class Event:
    clock: Counter[Stream]
    products: int | None


class Streams(TorchDispatchMode):
    """The card's queues, of which none waits for another unless it is told to. Sees, where it is
    entered, what could meet in memory: an access that need not come after another one of the same
    bytes, of which one writes; and memory given back to the queue that it was taken for while
    another one may still use it. To take memory is to write it.

    meanwhile: for each event, products and convolutions between its recording and the first wait
    for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = self.current = Stream(self)
        self.products, self.meanwhile = 0, list[int]()
        self.races: list[str] = []
        self.log: dict[int, dict[tuple[int, int, Stream, bool],
                                 int]] = {}  # first and last byte, .. -> when

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def patched(self) -> AbstractContextManager:
        """Within, torch.cuda has these queues."""
        return patch.multiple(
            torch.cuda, Stream=lambda _: Stream(self), current_stream=lambda _: self.current,
            stream=self.stream
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.products += name in PRODUCTS
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if func.is_view or func.namespace == "prim":  # which asks for a device
            return out
        changed = {x.untyped_storage()._cdata for x in made}
        later = name == "copy_" and (
            kwargs.get("non_blocking") or args[2:] == (True,)
        )  # other copies wait for the host
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.access([x for x in [*given, *made] if x.is_cuda or later], changed, name)
        return out

    def access(self, tensors: Iterable[Tensor], changed: Collection[int], name: str) -> None:
        """changed: storages that are written."""
        stream = self.current
        stream.clock[stream] += 1
        for x in tensors:
            key, size = x.untyped_storage()._cdata, x.element_size()
            if key not in self.log:
                self.log[key] = {}
                weakref.finalize(x.untyped_storage(), self.given_back, key, stream
                                 if x.is_cuda else None)
            first, writes = x.storage_offset() * size, key in changed
            last = first + (1 + sum((n - 1) * stride for n,
                                    stride in zip(x.shape, x.stride()))) * size - 1
            for (begin, end, other, wrote), when in self.log[key].items():
                if (writes
                    or wrote) and begin <= last and first <= end and stream.clock[other] < when:
                    does = "writes" if writes else "reads"
                    self.races.append(f"{name} {does} what another stream may be using")
            self.log[key][first, last, stream, writes] = stream.clock[stream]

    def given_back(self, key: int, home: Stream | None) -> None:
        """home: the queue of a device's memory."""
        for (_, _, other, _), when in self.log.pop(key).items():
            if home is not None and home.clock[other] < when:
                self.races.append("memory is given back that another stream may be using")


class Attention(TorchFunctionMode):
    """Says which kernel CUDA would take for each attention, by the rules in torch's documentation.

    taken: kernel -> the largest number of logits of one sequence. ValueError for more sequences
    than a kernel takes.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams, self.taken = streams, dict[str, int]()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not ATTENTION or args[0].device.type != "cuda":
            return func(*args, **kwargs)
        q, k, v = args
        if not q.dtype == k.dtype == v.dtype:
            raise RuntimeError(f"attention of {q.dtype}, {k.dtype} and {v.dtype}")
        if q.shape[0] > 65_535:
            raise ValueError(f"attention of {q.shape[0]} sequences; kernels take 65535")
        kernel = self.kernel(q, k, v, kwargs.get("attn_mask"))
        self.taken[kernel] = max(self.taken.get(kernel, 0), q.shape[-2] * k.shape[-2])
        if kernel == "math":
            return func(*args, **kwargs)  # which forms the logits
        self.streams.products += 1
        self.streams.access((q, k, v), (), "attention")
        return torch.empty_like(q)

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> str:
        """flash: half precision, at most 256 channels (which torch pads to steps of 8), no bias.
        efficient: channels in steps of 16 bytes, a contiguous bias. Both want each token's channels
        side by side."""
        side_by_side = all(x.stride(-1) == 1 for x in (q, k, v))
        steps = q.shape[-1] * q.element_size() % 16 == 0
        if side_by_side and q.dtype != torch.float32 and q.shape[-1] <= 256 and bias is None:
            return "flash"
        fits = bias is None or (bias.dtype == q.dtype and bias.is_contiguous())
        return "efficient" if side_by_side and steps and fits else "math"


@contextmanager
def fake_cuda() -> Iterator[tuple[Card, Attention]]:
    """Within, "cuda" is such a device, and so are all tensors fake."""
    table = guards()
    assert table is not None
    before, table[CUDA] = table[CUDA], table[META]
    kernels.forget()
    try:
        with FakeTensorMode(), Card() as card, card.streams.patched():
            with Attention(card.streams) as attention:
                yield card, attention
    finally:
        table[CUDA] = before
        kernels.forget()
