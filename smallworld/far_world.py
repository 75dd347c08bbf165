"""The far world as `python -m evaluation --scenes` measures it: see `world.SmallWorld`."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.pipeline import Pipeline

from . import gate
from .far import KINDS, SPEEDS, Scene, frame_times, parse, render
from .far_gate import scenes_of, sent_through
from .far_read import by_phase, measure
from .world import SmallWorld

WORST = 0.05  # share of inserted frames of which `worst` is the mean


def world_of_checkpoint(checkpoint: Checkpoint) -> SmallWorld | FarWorld:
    """The world of a checkpoint's own prompt."""
    try:
        parse(checkpoint.config.defaults.prompt)
    except ValueError:
        return SmallWorld()
    return FarWorld()


class FarWorld:
    """Pictures that a law predicts are compared after they went through the autoencoder that made
    the video. No detector knows this world: neither FVD nor IS is measured."""

    interpolators: tuple[Path, ...] = ()
    detects = False
    make, paced = staticmethod(gate.make), staticmethod(gate.paced)

    def scenes(self, checkpoint: Checkpoint, seed: int, n: int) -> list[Scene]:
        return scenes_of(seed, n)

    def truth(self, pipeline: Pipeline, scene: Scene, frames: int, fps: float,
              chunk: int) -> Tensor:
        size = pipeline.config.defaults.height
        return sent_through(pipeline, render([scene], frame_times(frames, fps)[None], size)[0])

    def measures(self, pipeline: Pipeline, frames: Tensor, scene: Scene, n: int, fps: float,
                 paced: bool) -> dict[str, float]:
        """Of inserted frames, by names of `tables.MEASURES`; what key frames show is the gate's
        concern."""
        if n == 1:
            return {}
        try:
            _, each = measure(frames, scene.kind, n, lambda x: sent_through(pipeline, x) / 255)
        except ValueError:  # nothing is seen
            return {"lost": 1.0}
        of_phase = by_phase(each, n)["psnr"][1:]
        inserted = {name: x[:-1].unflatten(0, (-1, n))[:, 1:].flatten() for name, x in each.items()}
        law = inserted.pop("psnr")
        nothing, mean = dict.fromkeys((*KINDS, *SPEEDS), math.nan), law.mean().item()
        worst = law.sort().values[: max(1, round(WORST * len(law)))].mean().item()
        return {**nothing, scene.kind: mean, scene.speed: mean, "law": mean, "worst": worst,
                "dip": max(of_phase) - min(of_phase), "lost": 0.0,
                **{name: x.nanmean().item() for name, x in inserted.items()}}
