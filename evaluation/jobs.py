"""One job: a video of one row, subject and seed, sampled and measured, and the files that keep what was measured."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smallworld.draw import Scene
from smallworld.gate import make, true_frames
from smallworld.motion import redrawn_psnr, smoothness
from smallworld.read import read
from zerosmooth.cascade import Cascade
from zerosmooth.images import read_image
from zerosmooth.metrics import blend_psnr, psnr, ssim
from zerosmooth.pipeline import Pipeline
from zerosmooth.results import write_json, write_tensors

from .detectors import Detector
from .rows import cascade_of

TRUTH = "true rendering"  # a row of the small world: the scene itself, encoded and decoded


@dataclass(frozen=True)
class Job:
    row: str
    subject: str  # a prompt, an image's file name, or what a scene shows
    seed: int
    scene: Scene | None = None
    image: Path | None = None

    @property
    def stem(self) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.row} {self.subject}".lower()).strip("-")[:60]
        digest = hashlib.sha256(f"{self.row}/{self.subject}/{self.seed}".encode()).hexdigest()[:8]
        return f"{slug}_seed{self.seed}_{digest}"


@dataclass(frozen=True)
class Plan:
    """What all jobs have in common. folder: of their files; base: the cascade but for the row; settings: of
    `Pipeline.sample`, the same for all rows but for eta, which FreeNoise has its own of."""

    folder: Path
    base: Cascade
    settings: Mapping[str, Any]
    eta: Callable[[Cascade], float]
    resize: str
    detectors: Mapping[str, Detector]  # by the measure: "FVD", "IS"

    def path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{job.stem}{suffix}"

    def finished(self, job: Job) -> bool:
        return self.path(job, ".json").exists()


def run(pipeline: Pipeline, plan: Plan, job: Job, keep: bool, progress: Callable[[int, int], None]) -> None:
    """Sample, measure in memory, and write: frames if they are to be kept, features, and last the record."""
    cascade = plan.base if job.row == TRUTH else cascade_of(job.row, plan.base)
    began = time.perf_counter()
    frames, peak = _frames(pipeline, plan, job, cascade, progress)
    seconds = time.perf_counter() - began
    fps = plan.settings["fps"]
    stages = [
        {"frames": len(x), "fps": fps * cascade.rate(s), **measures(x, frames[0], cascade.rate(s), job.scene, fps)}
        for s, x in enumerate(frames)
    ]
    features = {
        f"{name}/{stage}": detector(x) for name, detector in plan.detectors.items() for stage, x in enumerate(frames)
    }
    plan.folder.mkdir(parents=True, exist_ok=True)
    if keep:
        write_tensors(plan.path(job, ".frames"), {str(stage): x for stage, x in enumerate(frames)})
    if features:
        write_tensors(plan.path(job, ".features"), features)
    record = {"row": job.row, "subject": job.subject, "seed": job.seed, "seconds": round(seconds, 2)}
    write_json(plan.path(job, ".json"), record | {"bus_peak_bytes": peak, "stages": stages})


def _frames(
    pipeline: Pipeline, plan: Plan, job: Job, cascade: Cascade, progress: Callable[[int, int], None]
) -> tuple[list[Tensor], int]:
    """uint8 f h w 3 of every stage, and the bytes that the bus held at most."""
    if job.row == TRUTH:
        assert job.scene is not None
        fps = plan.settings["fps"]
        rates = [cascade.rate(s) for s in range(cascade.stages)]
        return [true_frames(pipeline, job.scene, cascade.frames * n, fps * n) for n in rates], 0
    settings = {**plan.settings, "eta": plan.eta(cascade), "progress": progress}
    if job.scene is not None:
        video = make(pipeline, job.scene, job.seed, cascade, **settings)
    elif job.image is not None:
        images = [read_image(job.image)]
        (video,) = pipeline.sample(images=images, resize=plan.resize, seeds=job.seed, cascade=cascade, **settings)
    else:
        (video,) = pipeline.sample(job.subject, seeds=job.seed, cascade=cascade, **settings)
    return video.frames, video.bus_peak_bytes


def measures(frames: Tensor, base: Tensor, n: int, scene: Scene | None, fps: float) -> dict[str, float]:
    """A stage's measures. frames, base: uint8 f h w 3; n: frames for one of the base; fps: of the base.

    Against the base video, where n > 1: PSNR and SSIM of the key frames, and of the inserted ones against a blend.
    Of a scene also what a video shows and how it moves, see `smallworld`.
    """
    got: dict[str, float] = {}
    if n > 1:
        got |= {"PSNR": psnr(frames[::n], base), "SSIM": ssim(frames[::n], base), "blend": blend_psnr(frames, n)}
    if scene is not None:
        reading = read(frames)
        got["color right"] = float(reading.color == scene.color)
        got["shape right"] = float(reading.shape == scene.shape)
        got["direction right"] = float(reading.goes(scene.direction, fps * n))
        got["speed right"] = float(reading.has_speed(scene.speed, fps * n))
        if n > 1:
            got |= smoothness(reading, n, frames.shape[1]) | redrawn_psnr(frames, reading, scene, n)
    return got


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, each with its features and frames where it has them, as paths."""
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for kind in ("features", "frames"):
            beside = path.with_suffix(f".{kind}")
            record[kind] = beside if beside.exists() else None
        records.append(record)
    return records
