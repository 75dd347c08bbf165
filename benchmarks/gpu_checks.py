"""Whether results on a device are those of the CPU. Each check yields what it compared, the error
and its bound."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.parity import check
from zerosmooth import Pipeline, load, read_image
from zerosmooth.extensions import METHODS
from zerosmooth.settings import Running

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ("vc2-small", "lavie-small", "svd-small")
EXACT = 1e-3  # of whole runs in float32

Lines = Iterator[tuple[str, float, float]]


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference over the standard deviation of b; infinite where something is not
    finite."""
    a, b = a.float().cpu(), b.float().cpu()
    value = ((a - b).abs().max() / b.std()).item()
    return value if value == value else float("inf")


@contextmanager
def exact() -> Iterator[None]:
    """Float32 products in float32."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def golden(device: torch.device) -> Lines:
    """The figures of the authors' own code, in float32 and in both half precisions."""
    for dtype in (torch.float32, *halves(device)):
        for path in sorted(GOLDEN.glob("*.safetensors")):
            value, bound = check(path, device, dtype)
            if dtype != torch.float32:
                bound = max(bound, rounding(dtype))
            yield f"{path.stem} {str(dtype)[6:]}", value, bound


def halves(device: torch.device) -> tuple[torch.dtype, ...]:
    """Half precisions; a CPU takes minutes for float16."""
    return (torch.bfloat16,) if device.type == "cpu" else (torch.float16, torch.bfloat16)


def rounding(dtype: torch.dtype) -> float:
    """The most that half precision may be off: 60 times its spacing at 1, of which a CPU needs
    25."""
    return 60 * torch.finfo(dtype).eps


def sampled(pipeline: Pipeline, running: Running = Running(), **settings: Any) -> Tensor:
    """The last stage's latents of one video of a shipped checkpoint, in few steps."""
    subject: str | Tensor = "a blue square moving up slowly"
    if "image" in pipeline.family.takes:
        subject = read_image(min((ROOT / "examples" / "first_frames").glob("*.png")))
    settings = {"preset": "paper", "steps": 2, **settings}
    (video,) = pipeline.sample(subject, seeds=7, running=running, **settings)
    if running.offload and not video.bus_peak_bytes:
        raise ValueError(f"nothing is offloaded with {settings}, so nothing is checked")
    return video.latents[-1]


def shipped(device: torch.device) -> Lines:
    """Whole runs of the shipped checkpoints: seeds and methods mean the same as on the CPU, and
    settings that save memory change nothing."""
    saving = Running(offload=True, sequential_guidance=True, frame_chunk=3)
    others: dict[str, dict[str, Any]] = {
        **{method: {"method": method} for method in METHODS if method != "zerosmooth"},
        "anchored": {"preset": "anchored"}, "prediction": {"prediction": "lines"},
        "S and colours": {"kv_operator": "S", "color_correction": True}}
    for name in SHIPPED:
        there, here = load(name, device, torch.float32), load(name, "cpu")
        plain = sampled(there, steps=4)
        yield f"{name}, the CPU's seed", difference(plain, sampled(here, steps=4)), EXACT
        again, offloaded = sampled(there, steps=4), sampled(there, Running(offload=True), steps=4)
        yield f"{name}, the same again", difference(again, plain), 0.0
        yield f"{name}, offload", difference(offloaded, plain), 0.0
        yield f"{name}, {saving}", difference(sampled(there, saving, steps=4), plain), EXACT
        for method, asked in others.items():
            error = difference(sampled(there, **asked), sampled(here, **asked))
            yield f"{name}, {method}", error, EXACT
        for dtype in halves(device):
            half = sampled(load(name, device, dtype), steps=4)
            yield f"{name}, {str(dtype)[6:]}", difference(half, plain), rounding(dtype)


def race(device: torch.device) -> Lines:
    """Offloading with late copies: what does not wait for them would read what is not there yet."""
    waiting: dict[str, dict[str, Any]] = {
        "hidden states": {}, "deep features": {"preset": "anchored", "reuse": 2, "steps": 4}}
    for name in SHIPPED:
        pipeline = load(name, device, torch.float32)
        for what, asked in waiting.items():
            plain = sampled(pipeline, **asked)
            for late in ("copies", "network", "both"):
                with delayed(pipeline, device, late):
                    offloaded = sampled(pipeline, Running(offload=True), **asked)
                yield f"{name}, {what}, delayed {late}", difference(offloaded, plain), 0.0


@contextmanager
def delayed(pipeline: Pipeline, device: torch.device, late: str) -> Iterator[None]:
    """Keep the card idle for a millisecond now and then: before what side streams do ("copies"),
    before modules on the network's own ("network"), or both."""
    if device.type != "cuda":
        yield
        return
    rng = random.Random(0)

    def idle(*_: object) -> None:
        if rng.random() < 0.2:
            torch.cuda._sleep(2_000_000)

    class Late(torch.cuda.StreamContext):
        def __enter__(self) -> None:
            super().__enter__()
            torch.cuda._sleep(2_000_000)

    hooks = [m.register_forward_pre_hook(idle) for m in pipeline.networks.unet.modules()
             if hasattr(m, "heads") and late != "copies"]
    stream = torch.cuda.stream if late == "network" else Late
    try:
        with patch.object(torch.cuda, "stream", stream):
            yield
    finally:
        for hook in hooks:
            hook.remove()


CHECKS: dict[str, Callable[[torch.device], Lines]] = {
    "golden": golden, "shipped": shipped, "race": race}
