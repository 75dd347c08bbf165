"""Measures an interpolator on scenes of the small world that it never saw, whose frames between are
known.

    python -m smallworld.interpolation_gate     # the one that ships: some minutes on two cores

It gets the key frames of true renderings, sent through its autoencoder. One line a measure: value,
limit, and the values of a linear blend and of the true rendering through the autoencoder. Exit
status 1 if a limit is missed.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.interpolators import Blend, Interpolator
from evaluation.interpolators.lavie import BETWEEN, FRAMES, LaVieInterpolator, to_uint8
from evaluation.metrics import psnr

from .draw import Scene, frame_times, random_scene, render
from .gate import LIMITS, arguments, means, measures, verdict
from .interpolation import RATE, SHIPPED
from .motion import smoothness
from .read import read

FPS = RATE * BETWEEN
MORE = {"off path": 0.3, "PSNR": 30.0}  # limits: pixels; dB, of inserted frames against true ones


@torch.inference_mode()
def main() -> int:
    args = arguments(
        __doc__, type=Path, default=SHIPPED, help="default: the one that ships").parse_args()
    interpolator = LaVieInterpolator(args.ckpt, torch.device(args.device), torch.float32)
    rng = random.Random(f"gate/{args.seed}")
    scenes = [random_scene(rng) for _ in range(args.n)]
    times, vae = frame_times(FRAMES, FPS)[None], interpolator.networks.vae
    drawn = [render([scene], times)[0] * 2 - 1 for scene in scenes]
    best = [to_uint8(vae.decode(vae.encode(x.to(args.device)), 16)).cpu() for x in drawn]

    def filled(by: Interpolator) -> list[Tensor]:
        """The videos' key frames, with what an interpolator puts between."""
        told = tqdm(list(zip(best, scenes)), desc=type(by).__name__, leave=False)
        return [by(x[::BETWEEN], BETWEEN, scene.prompt(), args.seed + i)
                for i, (x, scene) in enumerate(told)]

    made = {"ours": filled(interpolator), "blend": filled(Blend()), "true rendering": best}
    found = {name: means([values(x, to_uint8(y), scene) for x, y, scene in zip(xs, drawn, scenes)])
             for name, xs in made.items()}
    return int(not verdict(args.ckpt.stem, found.pop("ours"), LIMITS | MORE, found))


def values(frames: Tensor, truth: Tensor, scene: Scene) -> dict[str, float]:
    """Measures of one video. frames, truth: uint8 f h w 3."""
    reading, inserted = read(frames), torch.arange(FRAMES) % BETWEEN > 0
    return {**measures(reading, scene, FPS), **smoothness(reading, BETWEEN, frames.shape[1]),
            "PSNR": psnr(frames[inserted], truth[inserted]),
            "PSNR of key frames": psnr(frames[~inserted], truth[~inserted])}


if __name__ == "__main__":
    sys.exit(main())
