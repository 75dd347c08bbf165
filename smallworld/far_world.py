"""The far world as `python -m evaluation --scenes` measures it: see `world.SmallWorld`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from .far import KINDS, SPEEDS, Scene, frame_times, parse, random_scene, render
from .far_read import measure
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
    the video."""

    interpolators: tuple[Path, ...] = ()
    vae: Autoencoder

    def scenes(self, checkpoint: Checkpoint, seed: int, n: int) -> list[Scene]:
        """Of all kinds by turns."""
        rng = random.Random(f"far rows/{seed}")
        return [random_scene(rng, list(KINDS)[i % len(KINDS)]) for i in range(n)]

    def paced(self, pipeline: Pipeline, settings: Settings) -> bool:
        return True  # every prompt tells the speed

    def make(self, pipeline: Pipeline, scenes: Sequence[Scene], seeds: Sequence[int],
             settings: Settings, running: Running = Running(), speed: bool = True) -> list[Video]:
        self.vae = pipeline.networks.vae
        prompts = [scene.prompt(speed) for scene in scenes]
        return pipeline.sample(prompts, settings, seeds=seeds, running=running)

    def truth(self, pipeline: Pipeline, scene: Scene, frames: int, fps: float,
              chunk: int) -> Tensor:
        self.vae = pipeline.networks.vae
        size = pipeline.config.defaults.height
        video = render([scene], frame_times(frames, fps)[None], size)[0]
        return (self.through(video) * 255).round().byte()

    def through(self, video: Tensor) -> Tensor:
        """Frames, f 3 h w from 0 to 1, as the autoencoder gives them back: f h w 3."""
        weight = self.vae.quant_conv.weight
        with torch.inference_mode():
            x = self.vae.decode(self.vae.encode((video * 2 - 1).to(weight)))
        return (x.float().cpu().clamp(-1, 1) / 2 + 0.5).movedim(1, -1)

    def measures(self, frames: Tensor, scene: Scene, n: int, fps: float,
                 paced: bool) -> dict[str, float]:
        """Of inserted frames, by names of `tables.MEASURES`; what key frames show is the gate's
        concern."""
        if n == 1:
            return {}
        try:
            _, each = measure(frames, scene.kind, n, self.through)
        except ValueError:  # nothing is seen
            return {"lost": 1.0}
        phases = torch.arange(len(each["psnr"])) % n
        inserted = {name: x[phases > 0] for name, x in each.items()}
        law = inserted.pop("psnr")
        count = max(1, round(WORST * len(law)))
        of_phase = torch.stack([each["psnr"][phases == i].mean() for i in range(1, n)])
        nothing = dict.fromkeys((*KINDS, *SPEEDS), math.nan)
        got = {**nothing, scene.kind: law.mean().item(), scene.speed: law.mean().item(),
               "law": law.mean().item(), "worst": law.sort().values[:count].mean().item(),
               "dip": (of_phase.max() - of_phase.min()).item(), "lost": 0.0}
        return got | {name: x.nanmean().item() for name, x in inserted.items()}

    def detector(self, device: torch.device, probabilities: bool) -> None:
        """None knows this world: neither FVD nor IS is measured."""
