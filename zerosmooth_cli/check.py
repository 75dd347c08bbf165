"""What `--check` says: what a checkpoint is, and what a video with these settings would need."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from zerosmooth.checkpoint import Checkpoint, check_tensors, load_described
from zerosmooth.estimate import FLOP_SHARE, matrix_rate, needs
from zerosmooth.fields import UserError
from zerosmooth.files import remove_left
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Output, Running, Settings, device_of
from zerosmooth.video import check_writer

from .arguments import Shown
from .page import Page
from .results import Result, check_names


def report(checkpoint: Checkpoint, settings: Settings, running: Running) -> Iterator[str]:
    """Line by line, as it is known. CheckpointError if a tensor is damaged."""
    family, cascade = checkpoint.family, settings.cascade
    check_tensors(checkpoint)
    yield f"{checkpoint.path}: a whole {family.name} checkpoint, {checkpoint.bytes / 1e6:,.1f} MB"
    count = f"{checkpoint.parameters / 1e6:,.1f} M parameters as {checkpoint.dtype}"
    yield f"  {len(checkpoint.shapes)} tensors, {count}"
    yield f"  made from {checkpoint.source or 'unknown'} {checkpoint.source_sha256[:16]}".rstrip()
    frames = ", ".join(str(cascade.frames_of(s)) for s in range(cascade.stages))
    size = f"{settings.height}x{settings.width}"
    where = f"on {running.device} as {settings.dtype}"
    yield f"  {frames} frames of {size}, {settings.steps} steps, {where}:"
    need = needs(family, checkpoint.config, settings, running)
    where = "and in CPU memory" if running.offload else "of which"
    yield (f"  memory: weights {need.weights / 1e9:.2f} GB; a step up to {need.step / 1e9:.2f} GB, "
           f"{where} up to {need.bus / 1e9:.2f} GB are hidden states that wait; decoding up to "
           f"{need.decoding / 1e9:.2f} GB (counted; a process takes up to twice as much)")
    rate = matrix_rate(torch.device(running.device), getattr(torch, settings.dtype))
    yield (f"  time: {need.flops / 1e12:,.3g} TFLOP a step, about "
           f"{need.flops / rate / FLOP_SHARE:,.2g} s at {FLOP_SHARE:.0%} of this machine's "
           f"{rate / 1e12:.3g} TFLOP/s (an estimate)")


def check_outputs(folder: Path, settings: Settings, output: Output,
                  results: Iterable[Result]) -> None:
    """Make the folder of results ready. UserError if results cannot be written there."""
    check_folder(folder, settings)
    if output.page:
        Page(folder)  # which refuses one that is not ours
    remove_left(folder.absolute())
    check_writer(folder, ".gif" if output.gif else ".mp4")
    check_names(results)


def check_folder(folder: Path, settings: Settings) -> None:
    """Make a folder of results. UserError if it is a file, or if its disk could not hold one result
    uncompressed."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--outdir {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    cascade = settings.cascade
    frames = sum(cascade.frames_of(stage) for stage in range(cascade.stages))
    worst = frames * settings.height * settings.width * 3 + 50_000_000
    if (free := shutil.disk_usage(folder).free) < worst:
        raise UserError(f"{folder} has {free / 1e6:.0f} MB free; one result may need "
                        f"{worst / 1e6:.0f} MB")


def loaded(checkpoint: Checkpoint, shown: Iterable[Shown], settings: Settings, running: Running,
           silent: bool = False) -> Pipeline:
    """The pipeline, and before it what is encoded first. Says which prompts are too long."""
    prompts = list(dict.fromkeys(one.prompt or "" for one in shown))
    device = device_of(running.device)
    checkpoint.family.encode_first(checkpoint.config, prompts, settings, device)
    pipeline = load_described(checkpoint, device, getattr(torch, settings.dtype))
    say_lost_tokens(pipeline, [] if silent else [settings.negative_prompt, *prompts[:1000]])
    return pipeline


def say_lost_tokens(pipeline: Pipeline, texts: Sequence[str]) -> None:
    """Print which prompts are too long for the text encoder, and how much of them it ignores."""
    for text in dict.fromkeys(texts):
        if lost := pipeline.family.lost_tokens(pipeline.networks, text):
            print(f"note: the last {lost} tokens of {text[:40]!r}.. do not fit into the text "
                  "encoder and are left out")
