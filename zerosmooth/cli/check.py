"""What `--check` says: what a checkpoint is, and what a video with these settings would need."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, check_tensors
from ..estimate import FLOP_SHARE, matrix_rate, needs
from ..pipeline import Pipeline
from ..settings import Running, Settings


def report(checkpoint: Checkpoint, settings: Settings, running: Running) -> Iterator[str]:
    """Line by line, as it is known. CheckpointError if a tensor is damaged."""
    family, cascade = checkpoint.family, settings.cascade
    check_tensors(checkpoint)
    yield f"{checkpoint.path}: a whole {family.name} checkpoint, {checkpoint.bytes / 1e6:,.1f} MB"
    yield f"  {len(checkpoint.shapes)} tensors, {checkpoint.parameters / 1e6:,.1f} M parameters as {checkpoint.dtype}"
    yield f"  made from {checkpoint.source or 'unknown'} {checkpoint.source_sha256[:16]}"
    frames = ", ".join(str(cascade.frames_of(s)) for s in range(cascade.stages))
    size = f"{settings.height}x{settings.width}"
    yield f"  {frames} frames of {size}, {settings.steps} steps, on {running.device} as {settings.dtype}:"
    need = needs(family, checkpoint.config, settings, running)
    where = "and in CPU memory" if running.offload else "of which"
    yield (
        f"  memory: weights {need.weights / 1e9:.2f} GB; a step up to {need.step / 1e9:.2f} GB, {where} up to "
        f"{need.bus / 1e9:.2f} GB of hidden states that wait; then, to decode, up to {need.decoding / 1e9:.2f} GB "
        "(counted; a process takes up to twice as much)"
    )
    rate = matrix_rate(torch.device(running.device), getattr(torch, settings.dtype))
    yield (
        f"  time: {need.flops / 1e12:,.2f} TFLOP a step, about {need.flops / rate / FLOP_SHARE:,.2g} s at "
        f"{FLOP_SHARE:.0%} of this machine's {rate / 1e12:.2f} TFLOP/s (an estimate)"
    )


def check_folder(folder: Path, settings: Settings) -> None:
    """Make the folder of results. ValueError if it is none, or its disk could not hold one result even if nothing
    compressed."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--outdir {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    frames = sum(settings.cascade.frames_of(stage) for stage in range(settings.cascade.stages))
    worst, free = frames * settings.height * settings.width * 3 + 50_000_000, shutil.disk_usage(folder).free
    if free < worst:
        raise ValueError(f"{folder} has {free / 1e6:.0f} MB free; one result may need {worst / 1e6:.0f} MB")


def say_lost_tokens(pipeline: Pipeline, texts: Iterable[str]) -> None:
    """Print how much of which prompts the text encoder does not see."""
    for text in dict.fromkeys(texts):
        if lost := pipeline.family.lost_tokens(pipeline.networks, text):
            print(f"note: the last {lost} tokens of {text[:40]!r}.. do not fit into the text encoder and are left out")
