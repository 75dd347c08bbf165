"""Our networks against the authors' own and diffusers', and the operations of a cascade: a line for
each row with its name, ratio and limit.

    python -m benchmarks.unets --videocrafter VideoCrafter/ --lavie LaVie/
    python -m benchmarks.unets --rows cascade

Full size, float32 on the CPU, weights by the rule of `tests.parity`, latents of 16x24. Networks run
by turns; a ratio is of medians, against the faster of the peer's default and channels-last layout.
A peer that is missing is skipped: diffusers comes with `pip install ".[benchmarks]"`, the authors'
repositories by path. Row cascade counts operations, and gives rows join and reuse too. Exit status
1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.family import Family
from zerosmooth.settings import settings_for
from zerosmooth_cli.estimate import matrix_rate, needs

from . import peers
from .timing import apart, by_turns, ratio

ROWS = {  # name, limit
    "svd": ("SVD UNet, 14 frames: ours / diffusers", 0.85),
    "vc2": ("VideoCrafter2 UNet, 16 frames: ours / theirs", 0.75),
    "lavie": ("LaVie UNet, 16 frames: ours / theirs", 0.75),
    "cascade": ("four times the frames: operations of a guided step / of the first stage", 7.5),
    "join": ("the same, where longer videos join late (--join): a mean step", 3.6),
    "reuse": ("the same, deep features in every second step (--reuse 2): a mean step", 5.0),
}
FORMATS = {  # of weights of four and of five dimensions
    "default": (torch.contiguous_format, torch.contiguous_format),
    "channels-last": (torch.channels_last, torch.channels_last_3d),
}
SHAPES: dict[str, dict[str, Any]] = {  # settings of a run, by row
    "first stage": {"scale": 1}, "cascade": {"preset": "anchored"},
    "reuse": {"preset": "anchored", "reuse": 2},
}


def setup(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)


def unet(family: str, args: argparse.Namespace) -> float:
    """One evaluation of a family's UNet. AssertionError if the outputs differ."""
    setup(args)
    path = {"vc2": args.videocrafter, "lavie": args.lavie and args.lavie / "base"}.get(family)
    height, width = args.size
    pair = peers.pair(family, height, width, path)
    error = pair.error()
    assert error < 1e-3, f"the two networks differ by {error}"
    laid = {f"theirs, {name}": (partial(lay_out, pair.theirs, layout), pair.run_theirs)
            for name, layout in FORMATS.items()}
    seconds = by_turns({"ours": (lambda: None, pair.run_ours), **laid}, args.repeats)
    with FlopCounterMode(display=False) as counter:
        pair.run_ours()
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    share = counter.get_total_flops() / min(seconds["ours"]) / rate
    say(seconds, f"ours {share:.0%} of the matrix rate, {rate / 1e9:.0f} GFLOP/s")
    return ratio(*seconds.values())


def lay_out(network: nn.Module, layout: tuple[torch.memory_format, torch.memory_format]) -> None:
    """Put a network's convolutions into a memory layout; their outputs follow it."""
    for p in network.parameters():
        if p.ndim >= 4:
            p.data = p.data.contiguous(memory_format=layout[p.ndim - 4])


def cascade(args: argparse.Namespace) -> dict[str, float]:
    """The largest ratio of the families, by row."""
    worst: dict[str, float] = {}
    for name in ("vc2", "lavie", "svd"):
        counts = operations(FAMILIES[name], FAMILIES[name].config, *args.size)
        ratios = {row: n / counts["first stage"] for row, n in counts.items()}
        tera = ", ".join(f"{row} {n / 1e12:.2f} TFLOP" for row, n in counts.items())
        print(f"    {name}: {tera}", flush=True)
        worst = {row: max(x, worst.get(row, 0)) for row, x in ratios.items()}
    joined = args.join + (1 - args.join) * worst["cascade"]
    return {"cascade": worst["cascade"], "join": joined, "reuse": worst["reuse"]}


def operations(family: Family, config: ModelConfig, h: int, w: int) -> dict[str, float]:
    """Of a mean guided step, for each of SHAPES. h, w: of the latents."""
    size: dict[str, Any] = {"height": h * config.vae.factor, "width": w * config.vae.factor}
    return {row: needs(family, config, settings_for(family, config, **size, **asked)).flops
            for row, asked in SHAPES.items()}


def filled(make: Callable[[], nn.Module], device: torch.device | str,
           dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network on a device, made in no more memory than it needs; its weights are small noise."""
    with torch.device("meta"):
        network = make()
    network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for p in network.parameters():
        p.uniform_(-0.03, 0.03)
    return network


def say(seconds: dict[str, list[float]], more: str = "") -> None:
    texts = [f"{name} {' '.join(f'{t:.2f}' for t in times)} s" for name, times in seconds.items()]
    print("   ", "; ".join([*texts, more] if more else texts), flush=True)


def lacking(row: str, args: argparse.Namespace) -> str | None:
    """What a row needs and does not have."""
    if row == "vc2" and args.videocrafter is None:
        return "--videocrafter PATH"
    if row == "lavie" and args.lavie is None:
        return "--lavie PATH"
    if row in ("svd", "lavie") and importlib.util.find_spec("diffusers") is None:
        return 'diffusers: pip install ".[benchmarks]"'
    return None


MEASURES: dict[str, Callable[[argparse.Namespace], float | dict[str, float]]] = {
    **{family: partial(unet, family) for family in ("svd", "vc2", "lavie")},
    "cascade": cascade,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videocrafter", type=Path, metavar="PATH", help="the authors' repository (peer of vc2)")
    add("--lavie", type=Path, metavar="PATH", help="the authors' repository (peer of lavie)")
    add("--rows", nargs="+", choices=MEASURES, default=list(MEASURES), help="default: all")
    add("--size", type=int, nargs=2, default=(16, 24), help="h and w of latents (default: 16 24)")
    add("--join", type=float, default=0.6, help="as of sample.py, in row join (default: 0.6)")
    add("--repeats", type=int, default=5, help="runs of each, by turns (default: 5)")
    add("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    missed = False
    for row in args.rows:
        if lack := lacking(row, args):
            print(f"{ROWS[row][0]}  skipped: give {lack}", flush=True)
            continue
        measure = MEASURES[row]
        value = measure(args) if row == "cascade" else apart(measure, args)
        for key, got in value.items() if isinstance(value, dict) else [(row, value)]:
            name, limit = ROWS[key]
            missed |= got > limit
            print(f"{name}  {got:.2f}  at most {limit}{'  MISSED' if got > limit else ''}",
                  flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
