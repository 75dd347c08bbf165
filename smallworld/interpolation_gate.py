"""Measures an interpolator of the small world on scenes that nobody looked at, whose frames between are known.

    python -m smallworld.interpolation_gate        # of the one that ships; some minutes on two cores

It is given the key frames of true renderings, sent through its autoencoder. One line a measure: value, limit, and
beside it the values of a linear blend and of the true rendering through the autoencoder. Exit status 1 if a limit is
missed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.interpolators import Blend, Interpolator
from evaluation.interpolators.lavie import BETWEEN, FRAMES, LaVieInterpolator, to_uint8
from evaluation.metrics import psnr

from .draw import Scene, frame_times, random_scene, render
from .gate import LIMITS, measures
from .interpolation import RATE, SHIPPED
from .motion import smoothness
from .read import read

MORE = {"off path": 0.3, "PSNR": 30.0}  # limits: pixels at most; dB at least, of inserted frames against the true ones


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=SHIPPED, help="the checkpoint (default: the one that ships)")
    parser.add_argument("--n", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes and the noise (default: 1000)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    interpolator = LaVieInterpolator(args.ckpt, torch.device(args.device), torch.float32)
    rng = random.Random(f"gate/{args.seed}")
    scenes = [random_scene(rng) for _ in range(args.n)]
    drawn = [render([scene], frame_times(FRAMES, RATE * BETWEEN)[None])[0] * 2 - 1 for scene in scenes]
    vae = interpolator.networks.vae
    best = [to_uint8(vae.decode(vae.encode(x.to(args.device)), 16)).cpu() for x in drawn]
    made = [filled(interpolator, best, scenes, args.seed), filled(Blend(), best, scenes, args.seed), best]
    columns = [values(videos, [to_uint8(x) for x in drawn], scenes) for videos in made]
    missed = False
    for measure, value in columns[0].items():
        limit = (LIMITS | MORE).get(measure)
        less = measure in ("jumps a clip", "off path")
        bad = limit is not None and (value >= limit if less else value < limit)
        missed |= bad
        beside = f"blend {columns[1][measure]:.2f}, true rendering {columns[2][measure]:.2f}"
        print(f"{args.ckpt.stem}  {measure}  {value:.2f}  limit {limit or '-'}{'  MISSED' * bad}  ({beside})")
    return int(missed)


def filled(interpolator: Interpolator, videos: Sequence[Tensor], scenes: Sequence[Scene], seed: int) -> list[Tensor]:
    """The videos' key frames, with what the interpolator puts between."""
    told = tqdm(list(zip(videos, scenes)), desc=type(interpolator).__name__, leave=False)
    return [interpolator(x[::BETWEEN], BETWEEN, scene.prompt(), seed + i) for i, (x, scene) in enumerate(told)]


def values(made: Sequence[Tensor], truth: Sequence[Tensor], scenes: Sequence[Scene]) -> dict[str, float]:
    readings = [read(x) for x in made]
    smooth = [smoothness(reading, BETWEEN, x.shape[1]) for reading, x in zip(readings, made)]
    inserted = torch.arange(FRAMES) % BETWEEN > 0
    found = measures(readings, scenes, RATE * BETWEEN)
    found |= {name: sum(s[name] for s in smooth) / len(smooth) for name in smooth[0]}
    found["PSNR"] = sum(psnr(x[inserted], y[inserted]) for x, y in zip(made, truth)) / len(made)
    found["PSNR of key frames"] = sum(psnr(x[~inserted], y[~inserted]) for x, y in zip(made, truth)) / len(made)
    return found


if __name__ == "__main__":
    sys.exit(main())
