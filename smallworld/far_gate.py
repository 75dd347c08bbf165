"""Measures a checkpoint of the far world on scenes that nobody looked at, by rules on pixels.

    python -m smallworld.far_gate --n 100          # of `far-small`: some minutes

One line a measure: value, limit, and beside it the value of the true rendering sent through the
same autoencoder. Then one line a kind. Exit status 1 if a limit is missed. Scenes are asked for by
their whole prompt; key frames alone are made, and what they show is found without knowing the
prompt.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import zerosmooth
from zerosmooth.pipeline import Pipeline

from .far import FPS, KINDS, Scene, frame_times, random_scene, render
from .far_read import fit, pace, recognised

SHIPPED = Path(__file__).with_name("far-small.safetensors")
LIMITS = {"kind": 0.98, "color": 0.98, "shape": 0.90, "direction": 0.90, "speed": 0.80, "law": 0.80}
LAW = 2 / 64, 10.0  # sides, or degrees of what spins, that key frames may be from one law


def scenes_of(seed: int, n: int) -> list[Scene]:
    """Scenes of all kinds by turns."""
    rng = random.Random(f"far gate/{seed}")
    return [random_scene(rng, list(KINDS)[i % len(KINDS)]) for i in range(n)]


def right(frames: Tensor, scene: Scene) -> dict[str, float]:
    """What of a video is as its scene asks: 1 or 0 each. A speed is right within a factor of the
    root of 2; a pan has no shape, and is left out there (NaN). frames: uint8 k h w 3."""
    keys = frames.float() / 255
    try:
        kind, color = recognised(keys)
    except ValueError:
        return dict.fromkeys(LIMITS, 0.0)
    found = fit(keys, kind, color)
    got, (rate, rates), alike = found.scene, pace(found.scene), kind == scene.kind
    return {
        "kind": float(alike),
        "color": float(color == scene.color),
        "shape": float(alike and got.shape == scene.shape) if scene.shape else math.nan,
        "direction": float(alike and got.direction == scene.direction),
        "speed": float(alike and abs(math.log2(max(rate, 1e-6) / rates[scene.speed])) < 0.5),
        "law": float(alike and found.law < (LAW[1] if kind == "spin" else LAW[0] * keys.shape[1])),
    }


def sent_through(pipeline: Pipeline, video: Tensor) -> Tensor:
    """Frames, f 3 h w from 0 to 1, as the checkpoint's autoencoder gives them back: uint8 f h w
    3."""
    vae = pipeline.networks.vae
    return pipeline.decode(vae.encode((video * 2 - 1).to(pipeline.device, vae.dtype)))


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: torch.tensor([row[name] for row in rows]).nanmean().item() for name in rows[0]}


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default=SHIPPED, help="file (default: the shipped one)")
    parser.add_argument("--n",
                        type=int,
                        default=100,
                        help="scenes, of all kinds by turns (default: 100)")
    parser.add_argument("--seed",
                        type=int,
                        default=1000,
                        help="of the scenes and the noise (default: 1000)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    pipeline = zerosmooth.load(args.ckpt, args.device)
    scenes = scenes_of(args.seed, args.n)
    settings = pipeline.settings(scale=1)
    times, ours, truth = frame_times(settings.key_frames, FPS)[None], [], []
    for i in tqdm(range(0, args.n, 8), leave=False):
        some = scenes[i : i + 8]
        seeds = [args.seed + i + j for j in range(len(some))]
        videos = pipeline.sample([s.prompt() for s in some], settings, seeds=seeds)
        ours += [right(video.frames[0], s) for video, s in zip(videos, some)]
        drawn = [render([s], times, settings.height)[0] for s in some]
        truth += [right(sent_through(pipeline, x), s) for x, s in zip(drawn, some)]
    got, best, missed = mean(ours), mean(truth), False
    for name, limit in LIMITS.items():
        bad = got[name] < limit
        missed |= bad
        verdict = "  MISSED" if bad else ""
        print(
            f"{name} right  {got[name]:.2f}  limit {limit}{verdict}  "
            f"(true rendering {best[name]:.2f})"
        )
    for kind in KINDS:
        rows = [row for row, s in zip(ours, scenes) if s.kind == kind]
        if rows:
            print(f"{kind}  " + "  ".join(f"{name} {value:.2f}"
                                          for name, value in mean(rows).items()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
