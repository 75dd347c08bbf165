"""One job: a video of one row, subject and seed, sampled and measured, and the files that keep what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from zerosmooth.cli.arguments import Shown
from zerosmooth.pipeline import Pipeline
from zerosmooth.results import read_json, stem, versions, write_json, write_tensors
from zerosmooth.settings import Running, Settings, change

from .detectors import Detector
from .interpolators import Interpolator
from .metrics import blend_psnr, psnr, ssim
from .world import World

TRUTH = "true rendering"  # a row of a world: the scene itself, encoded and decoded


@dataclass(frozen=True)
class Job:
    """subject: what is shown; or of a world, scene."""

    row: str
    subject: Shown
    seed: int
    scene: Any = None

    @property
    def stem(self) -> str:
        return stem(f"{self.row} {self.subject.name}", self.seed, [self.row, self.subject.identity, self.seed])


@dataclass(frozen=True)
class Plan:
    """What all jobs have in common. folder: of their files; base: what is the same in all rows; rows: their settings;
    detectors: by the measure, "FVD" or "IS"; world: where subjects are a world's scenes; interpolators: by row, which
    fill in the key frames of the base video, and with which all rows are measured up to the last key frame alone."""

    folder: Path
    base: Settings
    rows: Mapping[str, Settings]
    running: Running
    detectors: Mapping[str, Detector]
    world: World | None = None
    interpolators: Mapping[str, Interpolator] = field(default_factory=dict)

    def path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{job.stem}{suffix}"

    def settings(self, row: str) -> Settings:
        return self.rows.get(row, self.base)

    def frames_of(self, stage: int) -> int:
        """Frames of a stage that are measured."""
        cascade = self.base.cascade
        n = cascade.scale_of(stage)
        return n * (cascade.frames - 1) + 1 if self.interpolators else n * cascade.frames

    def decided(self, row: str) -> dict[str, Any]:
        """A row's settings, as they are kept in its records."""
        settings = self.settings(row).as_json()
        if row in self.interpolators:
            settings["interpolator"] = self.interpolators[row].protocol
        return settings

    def lacks(self, job: Job, keep: bool) -> Path | None:
        """The first file of a job that is not there, or not whole. ValueError if they were made with other settings of
        the row."""
        path = self.path(job, ".json")
        if blocked := next((p for x in (".json", ".features", ".frames") if (p := self.path(job, x)).is_dir()), None):
            raise ValueError(f"{blocked} is a folder, where a file of a video belongs; move it away")
        if (record := read_record(path)) is None:
            return path
        if record["settings"] != self.decided(job.row):
            raise ValueError(f"{path} was made with other settings of {job.row!r}; use another --outdir")
        wanted = [".features"] * bool(self.detectors) + [".frames"] * keep
        return next((self.path(job, suffix) for suffix in wanted if not whole_tensors(self.path(job, suffix))), None)


def measure_jobs(pipeline: Pipeline, plan: Plan, jobs: Sequence[Job], keep: Sequence[bool]) -> None:
    """Sample jobs of one row, as one batch, measure in memory, and write what each has: see `write`."""
    settings = plan.settings(jobs[0].row)
    began = time.perf_counter()
    videos, peak = _videos(pipeline, plan, jobs, settings)
    facts = {
        "seconds": round((time.perf_counter() - began) / len(jobs), 2),
        "bus_peak_bytes": peak,
        "running": asdict(replace(plan.running, device=str(pipeline.device))) | {"batch_size": len(jobs)},
        "versions": versions(),
    }
    for job, frames, kept in zip(jobs, videos, keep):
        write(pipeline, plan, job, [x[: plan.frames_of(s)] for s, x in enumerate(frames)], kept, facts)


def write(
    pipeline: Pipeline, plan: Plan, job: Job, frames: Sequence[Tensor], keep: bool, facts: dict[str, Any]
) -> None:
    """A job's frames if they are to be kept, features, and last its record. frames: of each stage, uint8 f h w 3."""
    settings, stages = plan.settings(job.row), []
    for s, x in enumerate(frames):
        n, fps = settings.cascade.scale_of(s), settings.fps_of(s)
        stages.append({"frames": len(x), "fps": fps, **measures(x, frames[0], n)})
        if plan.world is not None:
            paced = job.row == TRUTH or plan.world.paced(pipeline, settings)
            stages[-1] |= plan.world.measures(x, job.scene, n, fps, paced)
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
        "subject": job.subject.name,
        **job.subject.identity,
        "seed": job.seed,
        "settings": plan.decided(job.row),
        "stages": stages,
        **facts,
    }
    write_json(plan.path(job, ".json"), record)


def _videos(pipeline: Pipeline, plan: Plan, jobs: Sequence[Job], settings: Settings) -> tuple[list[list[Tensor]], int]:
    """uint8 f h w 3 of every stage of every job, and the bytes that the bus held at most."""
    seeds = [job.seed for job in jobs]
    interpolate = plan.interpolators.get(jobs[0].row)
    paced = plan.world is not None and plan.world.paced(pipeline, settings)
    if interpolate is not None:  # of the same base video, asked for in the same words
        settings = change(settings, scales=())
    if plan.world is None:
        subjects = [job.subject.load() for job in jobs]
        videos = pipeline.sample(subjects, settings, seeds=seeds, running=plan.running)
    elif jobs[0].row == TRUTH:
        sizes = [(settings.cascade.frames_of(s), settings.fps_of(s)) for s in range(settings.cascade.stages)]
        return [[plan.world.truth(pipeline, job.scene, f, fps, settings) for f, fps in sizes] for job in jobs], 0
    else:
        videos = plan.world.make(pipeline, [job.scene for job in jobs], seeds, settings, plan.running, paced)
    made, peak = [video.frames for video in videos], max(video.bus_peak_bytes for video in videos)
    if interpolate is None:
        return made, peak
    cascade = plan.base.cascade
    for video, frames in zip(videos, made):
        n = cascade.scale_of(cascade.stages - 1)
        dense = interpolate(frames[0], n, video.prompt, video.seed)
        frames += [dense[:: n // cascade.scale_of(stage)] for stage in range(1, cascade.stages)]
    return made, peak


def measures(frames: Tensor, base: Tensor, n: int) -> dict[str, float]:
    """Of the key frames against the base video, and of the inserted ones against a blend. frames, base: uint8 f h w 3;
    n: frames for one of the base; with one for one there is nothing to compare."""
    if n == 1:
        return {}
    return {"PSNR": psnr(frames[::n], base), "SSIM": ssim(frames[::n], base), "blend": blend_psnr(frames, n)}


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a file; None if it is damaged or not there."""
    record = read_json(path)
    kinds: dict[str, Any] = {
        "row": str,
        "subject": str,
        "seed": int,
        "settings": dict,
        "stages": list,
        "seconds": (int, float),
    }
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        return None
    stages = record["stages"]
    if not stages or not all(isinstance(stage, dict) and isinstance(stage.get("frames"), int) for stage in stages):
        return None
    return record


def whole_tensors(path: Path) -> bool:
    """Whether a file holds tensors, all that its header says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, each with the paths of its features and frames, None where it has none. What is damaged,
    and of none of the videos that were asked for, is left out, and said."""
    records = []
    for path in sorted(folder.glob("*.json")):
        if (record := read_record(path)) is None:
            print(f"note: {path} is damaged and left out; name its row and subject to make it again")
            continue
        for kind in ("features", "frames"):
            beside = path.with_suffix(f".{kind}")
            record[kind] = beside if whole_tensors(beside) else None
            if record[kind] is None and beside.exists():
                print(f"note: {beside} is damaged and left out; name its row and subject to make it again")
        records.append(record)
    return records
