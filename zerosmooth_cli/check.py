"""What `--check` says: what a checkpoint is, and what a video with these settings would need."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from zerosmooth.checkpoint import Checkpoint, check_tensors
from zerosmooth.fields import printable
from zerosmooth.settings import Running, Settings

from .estimate import FLOP_SHARE, matrix_rate, needs
from .live import duration


def report(checkpoint: Checkpoint, settings: Settings, running: Running) -> Iterator[str]:
    """Line by line, as it is known. CheckpointError if a tensor is damaged."""
    family = checkpoint.family
    check_tensors(checkpoint)
    yield f"{checkpoint.path}: a whole {family.name} checkpoint, {checkpoint.bytes / 1e6:,.1f} MB"
    count = f"{checkpoint.parameters / 1e6:,.1f} M parameters as {checkpoint.dtype}"
    yield f"  {len(checkpoint.shapes)} tensors, {count}"
    made_from = f"{checkpoint.source or 'unknown'} {checkpoint.source_sha256[:16]}"
    yield f"  made from {printable(made_from)}".rstrip()
    frames = ", ".join(map(str, checkpoint.lengths(settings)))
    size = f"{settings.height}x{settings.width}"
    where = f"on {running.device} as {settings.dtype}"
    yield f"  {frames} frames of {size}, {settings.steps} steps, {where}:"
    if first := family.needs_first(checkpoint.config, settings):
        yield f"  before the networks: {first}"
    need = needs(family, checkpoint.config, settings, running)
    where = "and in CPU memory" if running.offload else "of which"
    yield (f"  memory: weights {need.weights / 1e9:.2f} GB; a step up to {need.step / 1e9:.2f} GB, "
           f"{where} up to {need.bus / 1e9:.2f} GB are hidden states that wait; decoding up to "
           f"{need.decoding / 1e9:.2f} GB (counted; a process takes up to twice as much)")
    rate = matrix_rate(torch.device(running.device), getattr(torch, settings.dtype))
    seconds = need.flops / rate / FLOP_SHARE
    total = duration(seconds * settings.steps)  # less where longer videos join late
    yield (f"  time: {need.flops / 1e12:,.3g} TFLOP a step, about {seconds:,.2g} s; "
           f"{settings.steps} steps up to {total}: at "
           f"{FLOP_SHARE:.0%} of this machine's {rate / 1e12:.3g} TFLOP/s (an estimate)")
