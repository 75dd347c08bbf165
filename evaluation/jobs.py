"""One job: a video of one row, subject and seed, sampled and measured, and the files that keep what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smallworld.draw import Scene
from smallworld.gate import make, paced, true_frames
from smallworld.motion import jitter, redrawn_psnr, smoothness
from smallworld.read import read
from zerosmooth.cascade import Cascade
from zerosmooth.images import read_image
from zerosmooth.metrics import blend_psnr, psnr, ssim
from zerosmooth.pipeline import Pipeline
from zerosmooth.results import stem, versions, write_json, write_tensors

from .detectors import Detector
from .rows import cascade_of

TRUTH = "true rendering"  # a row of the small world: the scene itself, encoded and decoded


@dataclass(frozen=True)
class Job:
    row: str
    subject: str  # a prompt, an image's file name, or what a scene shows
    seed: int
    identity: Mapping[str, Any] = field(default_factory=dict)  # what else the subject is: an image's digest
    scene: Scene | None = None
    image: Path | None = None

    @property
    def stem(self) -> str:
        everything = [self.row, self.subject, self.seed, dict(self.identity)]
        return stem(f"{self.row} {self.subject}", self.seed, everything)


@dataclass(frozen=True)
class Plan:
    """What all jobs have in common. folder: of their files; base: the cascade but for the row; settings: of
    `Pipeline.sample`; running: those that decide memory and time alone; detectors: by the measure, "FVD" or "IS"."""

    folder: Path
    base: Cascade
    settings: Mapping[str, Any]
    running: Mapping[str, Any]
    resize: str
    detectors: Mapping[str, Detector]

    def path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{job.stem}{suffix}"

    def decided(self, row: str) -> dict[str, Any]:
        """What a row adds to the plan, as it is kept in its records."""
        if row == TRUTH:
            return {}
        cascade = cascade_of(row, self.base)
        kept = {k: v for k, v in asdict(cascade).items() if k != "bus_device"}
        return json.loads(json.dumps({"eta": self.eta(cascade), "cascade": kept}))

    def eta(self, cascade: Cascade) -> float:
        """The settings' own, but for FreeNoise, which is defined without fresh noise."""
        return 0.0 if cascade.method == "freenoise" else self.settings["eta"]

    def finished(self, job: Job, keep: bool) -> bool:
        """Whether all files of a job are there. ValueError if they were made with other settings of the row."""
        path = self.path(job, ".json")
        if not path.exists():
            return False
        made = json.loads(path.read_text())["decided"]
        if made != self.decided(job.row):
            raise ValueError(f"{path} was made with other settings of {job.row!r}; use another --outdir")
        wanted = [".features"] * bool(self.detectors) + [".frames"] * keep
        return all(self.path(job, suffix).exists() for suffix in wanted)


def run(pipeline: Pipeline, plan: Plan, job: Job, keep: bool) -> None:
    """Sample, measure in memory, and write: frames if they are to be kept, features, and last the record."""
    cascade = plan.base if job.row == TRUTH else cascade_of(job.row, plan.base)
    began = time.perf_counter()
    frames, peak = _frames(pipeline, plan, job, cascade)
    seconds = time.perf_counter() - began
    fps = plan.settings["fps"]
    stages = []
    for s, x in enumerate(frames):
        n = cascade.rate(s)
        stages.append({"frames": len(x), "fps": fps * n, **measures(x, frames[0], n, job.scene, fps)})
        if job.row != TRUTH and not paced(pipeline.config, cascade):
            stages[-1].pop("speed right", None)  # it was not asked for
    features = {
        f"{name}/{stage}": detector(x) for name, detector in plan.detectors.items() for stage, x in enumerate(frames)
    }
    plan.folder.mkdir(parents=True, exist_ok=True)
    if keep:
        write_tensors(plan.path(job, ".frames"), {str(stage): x for stage, x in enumerate(frames)})
    if features:
        write_tensors(plan.path(job, ".features"), features)
    record = {
        "row": job.row,
        "subject": job.subject,
        **job.identity,
        "seed": job.seed,
        "decided": plan.decided(job.row),
        "stages": stages,
        "seconds": round(seconds, 2),
        "bus_peak_bytes": peak,
        "running": {**plan.running, "device": str(pipeline.device), "offload": plan.base.bus_device is not None},
        "versions": versions(),
    }
    write_json(plan.path(job, ".json"), record)


def _frames(pipeline: Pipeline, plan: Plan, job: Job, cascade: Cascade) -> tuple[list[Tensor], int]:
    """uint8 f h w 3 of every stage, and the bytes that the bus held at most."""
    if job.row == TRUTH:
        assert job.scene is not None
        fps = plan.settings["fps"]
        rates = [cascade.rate(s) for s in range(cascade.stages)]
        chunk = plan.running["decode_chunk_size"]
        return [true_frames(pipeline, job.scene, cascade.frames * n, fps * n, chunk) for n in rates], 0
    settings = {**plan.settings, **plan.running, "eta": plan.eta(cascade)}
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
    Of a scene also what a video shows and how it moves, see `smallworld`; NaN where its shape is lost.
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
        got["lost"] = reading.path.isnan().any(1).float().mean().item()
        got["jitter"] = jitter(reading, frames.shape[1])
        if n > 1:
            got |= smoothness(reading, n, frames.shape[1]) | redrawn_psnr(frames, reading, scene, n)
    return got


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, each with the paths of its features and frames, None where it has none."""
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for kind in ("features", "frames"):
            beside = path.with_suffix(f".{kind}")
            record[kind] = beside if beside.exists() else None
        records.append(record)
    return records
