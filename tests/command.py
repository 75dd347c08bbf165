"""`sample.py` in this process: with tiny checkpoints, few steps, or sampling that takes no time."""

import contextlib
import io
import json
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from zerosmooth.checkpoint import Checkpoint, describe, find
from zerosmooth.family import Family
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth_cli import main as sample

ROOT = Path(__file__).parent.parent
QUICK = ["--steps", "2", "--scale", "2", "--device", "cpu", "--set", "key_frames=4"]


@cache
def described(path: Path, family: Family | None, changed: int) -> Checkpoint:
    return describe(path, family)


def described_once(name: str | Path, family: Family | None = None) -> Checkpoint:
    """As `describe`, which tries the networks out, but once for a file as it is."""
    path = find(name)
    return described(path if path.exists() else name, family,
                     path.stat().st_mtime_ns if path.exists() else 0)


def run(*arguments, status=0) -> str:
    """What it said, output and errors."""
    said = io.StringIO()
    with (contextlib.redirect_stdout(said), contextlib.redirect_stderr(said),
          patch.object(sample.arguments, "describe", described_once)):
        try:
            found = sample.main([*map(str, arguments)])
        except SystemExit as end:  # of argparse
            found = end.code
    assert found == status, said.getvalue()
    return said.getvalue()


def make(tiny: Path, *arguments, family="vc2", status=0) -> str:
    """As `run`, a tiny checkpoint with few steps."""
    return run("--ckpt", tiny / f"{family}.safetensors", *QUICK, *arguments, status=status)


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files that no two runs may write differently."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.suffix not in (".json", ".html")}


def grey(pipeline, subjects, settings, *, seeds, running, progress, preview) -> list[Video]:
    """Instead of `Pipeline.sample`: all pixels of a frame are the seed and its number, added."""
    cascade = settings.cascade
    frames = [cascade.frames_of(stage) for stage in range(cascade.stages)]
    pixels = [(torch.arange(n) + seeds % 256).byte()[:, None, None, None].expand(
        -1, settings.height, settings.width, 3) for n in frames]
    return [Video("", seeds, pixels, [8.0] * len(frames), [], settings, 0)]


def quick(monkeypatch) -> list[int]:
    """Let sampling take no time. Returns a list, of the seeds that will be sampled."""
    sampled: list[int] = []

    def made(*arguments, seeds, **options):
        sampled.append(seeds)
        return grey(*arguments, seeds=seeds, **options)

    monkeypatch.setattr(Pipeline, "sample", made)
    return sampled
