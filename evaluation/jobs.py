"""One job is a video of one row, subject and seed: sampled and measured, with the files that keep
what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from zerosmooth.fields import UserError
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Running, Settings
from zerosmooth_cli.arguments import Shown
from zerosmooth_cli.results import read_json, stem, versions, write_json, write_tensors

from .detectors import Detector
from .interpolators import Interpolator
from .metrics import blend_psnr, psnr, ssim, uneven

TRUTH = "true rendering"  # a row of the small world: the scene itself, encoded and decoded
KEPT = ("features", "frames")  # beside a record
RECORD = {"row", "subject", "seed", "settings", "stages", "seconds"}  # what every record has


@dataclass(frozen=True)
class Job:
    """scene: what is shown, in the small world; elsewhere `subject` alone says it."""

    row: str
    subject: Shown
    seed: int
    scene: Any = None


@dataclass(frozen=True)
class Plan:
    """What all jobs have in common.

    folder: of their files. base: the settings of the base video, the same in all rows; rows: those
    of each row. detectors: by measure, "FVD" or "IS". world: if subjects are its scenes. lengths:
    frames of each stage.
    interpolators: by row, with the scale from which each goes on, 1 where it fills in the key
    frames of the base video; with one in the plan, all rows are measured only up to the last key
    frame.
    """

    folder: Path
    base: Settings
    rows: Mapping[str, Settings]
    running: Running
    detectors: Mapping[str, Detector]
    world: Any
    interpolators: Mapping[str, tuple[Interpolator, int]]
    lengths: Sequence[int]

    def path(self, job: Job, suffix: str) -> Path:
        identity = [job.row, job.subject.identity, job.seed]
        return self.folder / (stem(f"{job.row} {job.subject.name}", job.seed, identity) + suffix)

    def settings(self, row: str) -> Settings:
        return self.rows.get(row, self.base)

    def frames_of(self, stage: int) -> int:
        """The number of a stage's frames that are measured."""
        ends = bool(self.interpolators) * (self.base.cascade.scale_of(stage) - 1)
        return self.lengths[stage] - ends

    def decided(self, row: str) -> dict[str, Any]:
        """A row's settings, as its records keep them."""
        settings = asdict(self.settings(row))
        if row in self.interpolators:
            one, begun = self.interpolators[row]
            settings["interpolator"] = one.protocol + (f", from {begun}x on" if begun > 1 else "")
        return settings

    def lacks(self, job: Job, keep: bool) -> Path | None:
        """The first file of a job that is missing or damaged. UserError if its files were made with
        other settings. keep: whether its frames are to be kept."""
        for path in (self.path(job, suffix) for suffix in (".json", ".features", ".frames")):
            if path.is_dir():
                raise UserError(f"{path} is a folder; move it away, a video's file goes there")
        path = self.path(job, ".json")
        if (record := read_record(path)) is None:
            return path
        if record["settings"] != self.decided(job.row):
            raise UserError(f"{path} has other settings of {job.row!r}; use another --outdir")
        wanted = [".features"] * bool(self.detectors) + [".frames"] * keep
        paths = (self.path(job, suffix) for suffix in wanted)
        return next((path for path in paths if not whole_tensors(path)), None)


def measure_jobs(pipeline: Pipeline, plan: Plan, jobs: Sequence[Job], keep: Sequence[bool]) -> None:
    """Sample jobs of one row as one batch, measure the videos, and write for each its frames if
    they are to be kept, its features, and last its record."""
    began = time.perf_counter()
    videos, peak = _videos(pipeline, plan, jobs)
    facts = {
        "seconds": round((time.perf_counter() - began) / len(jobs), 2),
        "bus_peak_bytes": peak,
        "running": asdict(plan.running) | {"device": str(pipeline.device), "batch_size": len(jobs)},
        "versions": versions(),
    }
    plan.folder.mkdir(parents=True, exist_ok=True)
    for job, video, kept in zip(jobs, videos, keep):
        frames = [x[: plan.frames_of(s)] for s, x in enumerate(video)]
        features = {f"{name}/{stage}": detector(x) for name, detector in plan.detectors.items()
                    for stage, x in enumerate(frames)}
        settings, stages = plan.settings(job.row), []
        for s, x in enumerate(frames):
            n, fps = settings.cascade.scale_of(s), settings.fps_of(s)
            stages.append({"frames": len(x), "fps": fps, **measures(x, frames[0], n)})
            if plan.world is not None and job.scene is not None:
                paced = job.row == TRUTH or plan.world.paced(pipeline, settings)
                stages[-1] |= plan.world.measures(pipeline, x, job.scene, n, fps, paced)
        if kept:
            write_tensors(plan.path(job, ".frames"), {str(s): x for s, x in enumerate(frames)})
        if features:
            write_tensors(plan.path(job, ".features"), features)
        identity = {"row": job.row, "subject": job.subject.name, **job.subject.identity}
        decided = {"seed": job.seed, "settings": plan.decided(job.row)}
        write_json(plan.path(job, ".json"), {**identity, **decided, "stages": stages, **facts})


def _videos(pipeline: Pipeline, plan: Plan, jobs: Sequence[Job]) -> tuple[list[list[Tensor]], int]:
    """uint8 f h w 3 of every stage of every job, and the most bytes that the bus held."""
    row, seeds, cascade = jobs[0].row, [job.seed for job in jobs], plan.base.cascade
    settings, scenes = plan.settings(row), [job.scene for job in jobs if job.scene is not None]
    if plan.world is not None and row == TRUTH:
        sizes = [(plan.lengths[s], settings.fps_of(s)) for s in range(cascade.stages)]
        chunk = settings.decode_chunk_size
        return [[plan.world.truth(pipeline, scene, *size, chunk) for size in sizes]
                for scene in scenes], 0
    paced = plan.world is not None and plan.world.paced(pipeline, settings)
    if row in plan.interpolators:  # the same base video, from a prompt in the same words
        settings = replace(settings, scale=plan.interpolators[row][1])
    if plan.world is None:
        subjects = [job.subject.load() for job in jobs]
        videos = pipeline.sample(subjects, settings, seeds=seeds, running=plan.running)
    else:
        videos = plan.world.make(pipeline, scenes, seeds, settings, plan.running, paced)
    if row in plan.interpolators:
        scale, (one, begun) = cascade.scale_of(cascade.stages - 1), plan.interpolators[row]
        for video in videos:
            dense = one(video.frames[-1], scale // begun, video.prompt, video.seed)
            video.frames += [dense[:: scale // cascade.scale_of(s)]
                             for s in range(len(video.frames), cascade.stages)]
    return [video.frames for video in videos], max(video.bus_peak_bytes for video in videos)


def measures(frames: Tensor, base: Tensor, n: int) -> dict[str, float]:
    """Of the key frames against the base video, of the inserted ones against a blend, and how
    evenly frames change. frames, base: uint8 f h w 3. n: frames for each of the base; with n = 1
    there is nothing to compare."""
    if n == 1:
        return {}
    return {"PSNR": psnr(frames[::n], base), "SSIM": ssim(frames[::n], base),
            "blend": blend_psnr(frames, n), "uneven": uneven(frames, n)}


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a file; None if the file is damaged or missing."""
    record = read_json(path)
    return record if isinstance(record, dict) and RECORD <= record.keys() else None


def whole_tensors(path: Path) -> bool:
    """Whether a file holds all the tensors that its header names."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a folder, each with the paths of its features and frames, or None. Damaged
    files, which can be only of videos that were not asked for, are left out with a note."""
    records = []
    for path in sorted(folder.glob("*.json")):
        record, beside = read_record(path), {x: path.with_suffix(f".{x}") for x in KEPT}
        damaged = [] if record is not None else [path]
        whole = {x: p if whole_tensors(p) else None for x, p in beside.items()}
        if record is not None:
            records.append({**record, **whole})
            damaged = [p for x, p in beside.items() if whole[x] is None and p.exists()]
        for p in damaged:
            print(f"note: {p} is damaged and left out; name its row and subject to remake it")
    return records
