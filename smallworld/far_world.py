"""The far world as `python -m evaluation --scenes` measures it: see `world.SmallWorld`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.fields import UserError
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from . import gate
from .far import FPS, KINDS, SPEEDS, Scene, frame_times, parse, render
from .far_gate import scenes_of, sent_through
from .far_read import by_phase, measure
from .world import SmallWorld

WORST = 0.05  # share of inserted frames of which `worst` is the mean


def world_of_checkpoint(checkpoint: Checkpoint, true_keys: bool) -> SmallWorld | FarWorld:
    """The world of a checkpoint's own prompt. UserError for true key frames of another than the far
    world."""
    try:
        parse(checkpoint.config.defaults.prompt)
    except ValueError as error:
        if true_keys:
            raise UserError(f"--true_keys is for checkpoints of the far world, not for "
                            f"{checkpoint.path}; leave it out") from error
        return SmallWorld()
    return FarWorld(true_keys)


@dataclass(frozen=True)
class GivenKeys:
    """A sampler, and its config, by which the base video comes out as latents b k c h w, its
    predicted data in every step: what a method makes between them is then all that is judged."""

    of: Any
    keys: Tensor

    def sampler(self, *settings: Any) -> GivenKeys:
        return replace(self, of=self.of.sampler(*settings))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def __len__(self) -> int:
        return len(self.of)

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        x0 = self.of.x0(i, x, output)
        return self.keys.to(x0) if x0.shape == self.keys.shape else x0


@dataclass(frozen=True)
class FarWorld:
    """Pictures that a law predicts are compared after they went through the autoencoder that made
    the video. No detector knows this world: neither FVD nor IS is measured. true_keys: key frames
    are the truth's, not the checkpoint's."""

    true_keys: bool = False
    interpolators: ClassVar[tuple[Path, ...]] = ()
    detects: ClassVar[bool] = False
    paced = staticmethod(gate.paced)

    @torch.inference_mode()
    def make(self, pipeline: Pipeline, scenes: Sequence[Any], seeds: Sequence[int],
             settings: Settings, running: Running = Running(),
             speed: bool | None = None) -> list[Video]:
        if self.true_keys:
            times = frame_times(settings.key_frames, FPS).expand(len(scenes), -1)
            drawn = render(scenes, times, settings.height).flatten(0, 1) * 2 - 1
            vae = pipeline.networks.vae
            z = vae.encode(drawn.to(pipeline.device, vae.dtype)).unflatten(0, times.shape)
            config = replace(pipeline.config, sampler=GivenKeys(pipeline.config.sampler, z))
            pipeline = Pipeline(pipeline.family, config, pipeline.networks)
        return gate.make(pipeline, scenes, seeds, settings, running, speed)

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
