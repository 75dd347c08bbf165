"""Measures a checkpoint: the method, its baselines, its ablation; or two folders of videos.

    python -m evaluation --scenes 32                            # vc2-small on its drawn world, Table 1's rows
    python -m evaluation --ckpt vc2.safetensors --prompt_file prompts.txt --num_videos 20 --real UCF101/ \
        --detector i3d_torchscript.pt --classifier c3d_ucf101.pt          # the paper's experiment
    torchrun --nproc_per_node 2 -m evaluation --scenes 32       # the same, shared by two processes
    python -m evaluation --compare A B      # two folders of videos, or patterns such as 'outputs/*_16f.mp4'

A run that was stopped goes on from what is finished, and rows, subjects and seeds can be added later. In --outdir: a
record a video, table.md, results.json, pictures, and index.html, where the rows play side by side.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is work to tidy up: no traceback while torch loads
    import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait

import torch
from torch import Tensor

from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import Checkpoint, load_described
from zerosmooth.cli.arguments import (
    Shown,
    add_checkpoint,
    add_settings,
    add_subjects,
    as_path,
    asked,
    described,
    read_settings,
    read_subjects,
    seeds_of,
)
from zerosmooth.cli.check import check_folder, say_lost_tokens
from zerosmooth.cli.command import run_command
from zerosmooth.cli.processes import processes
from zerosmooth.cli.progress import Progress
from zerosmooth.fields import Range, check
from zerosmooth.files import remove_left
from zerosmooth.page import Page
from zerosmooth.pipeline import NonFiniteError
from zerosmooth.results import read_json, versions, write_json, write_text
from zerosmooth.settings import Settings, device_of, options

from . import detectors, figures, interpolators, reference, tables
from .compare import compare
from .interpolators import Interpolator
from .jobs import TRUTH, Job, Plan, measure_jobs, read_records
from .rows import ORDER, TABLES, settings_of_row
from .world import World

VIDEOS = Range(1, 1_000_000)  # of an evaluation, which keeps what it measured of all of them in memory


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what to show")
    add_checkpoint(group)
    add_subjects(group, prompt=False)
    add = parser.add_argument_group("what is measured").add_argument
    add("--scenes", type=int, metavar="N", help="N scenes of the small world instead of prompts or images, by --seed")
    add("--table", choices=TABLES, default="1", help="the paper's table whose rows are measured (default: 1)")
    add(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"rows instead: {', '.join(ORDER)}; or with changes, 'zerosmooth:strength=1'",
    )
    add(
        "--interpolator",
        nargs="+",
        type=as_path,
        default=[],
        metavar="FILE",
        help="weights of the row lavie-interpolation (.safetensors, converted) or ldmvfi (.ckpt, as published); or a "
        "TorchScript file, for a row of its name: see docs/evaluation.md",
    )
    add(
        "--detector",
        type=as_path,
        help="TorchScript file whose features give FVD (default with --scenes: our own)",
    )
    add(
        "--classifier",
        type=as_path,
        help="TorchScript file whose class probabilities give IS (default: likewise)",
    )
    add("--real", type=as_path, help="folder of the real videos that FVD compares with, searched through")
    add("--compare", nargs=2, metavar=("A", "B"), help="measure videos B against A, fewer frames of the same, and stop")
    add("--batch_size", type=int, default=1, help="videos sampled at once (default: 1)")
    add("--show", type=int, default=3, help="subjects of which pictures are made (default: 3)")
    add("--outdir", type=as_path, default=Path("evaluations"), help="folder of the results (default: evaluations)")
    rows_say = [option.name for option in options(Cascade)]
    add_settings(parser, leave_out=[*rows_say, "preset"])
    return parser


def compare_folders(args: argparse.Namespace) -> None:
    if args.scenes is not None:
        raise ValueError("--compare measures videos that are there; leave --scenes out")
    measured = measuring(args, None)
    real = None
    if "FVD" in measured:
        videos = reference.RealVideos(args.real, args.outdir / "real", measured["FVD"])
        videos.measure()
        real = videos.features()
    a, b = args.compare
    print(compare(a, b, measured, real))


def evaluate(args: argparse.Namespace, rank: int, world: int) -> int:
    """Check everything that can be checked first, then measure what is not there yet, and report.

    Returns the exit status: 1 if videos were left out, of the process that reports."""
    checkpoint = described(args)
    plan = plan_of(args, checkpoint, world_of(args))
    check_folder(args.outdir, plan.base)
    Page(args.outdir)  # which refuses another's
    groups = list(jobs_of(args, checkpoint, plan))
    real = None if args.real is None else reference.RealVideos(args.real, args.outdir / "real", plan.detectors["FVD"])
    common = agree(args, checkpoint, plan)
    if real is not None:
        real.measure(rank, world)
    jobs = [(job, i < args.show) for i, group in enumerate(groups) for job in group if i % world == rank]
    waiting = []
    for job, keep in jobs:
        if lost := plan.lacks(job, keep):
            waiting.append((job, keep))
            if lost.exists():
                print(f"note: {lost} is damaged; the video is made again")
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} videos are measured already")
    if waiting:
        pipeline = load_described(checkpoint, plan.running.device, getattr(torch, plan.base.dtype))
        if rank == 0:
            say_lost_tokens(pipeline, [*(job.subject.prompt or "" for job, _ in waiting), plan.base.negative_prompt])
        with Progress(len(waiting), silent=rank > 0) as bar:
            for batch in batches(waiting, args.batch_size):
                some, keep = zip(*batch)
                bar.at(0.0, f"{some[0].row}, {some[0].subject.name[:30]}")
                try:
                    measure_jobs(pipeline, plan, some, keep)
                except NonFiniteError as error:  # the others need not suffer; what is left out is said at the end
                    names = "; ".join(f"{job.subject.name}, seed {job.seed}" for job in some)
                    bar.clear()
                    print(f"left out: {some[0].row}, {names}: {error}", file=sys.stderr)
                bar.end(len(batch))
    if world > 1:
        torch.distributed.barrier()
    if rank > 0:
        return 0
    asked = [(job, i < args.show) for i, group in enumerate(groups) for job in group]
    left_out = [job for job, keep in asked if plan.lacks(job, keep)]
    if all(record["row"] == TRUTH for record in read_records(plan.folder)):
        raise ValueError("every video turned NaN, so there is nothing to report; what to try is said above")
    references = {}
    stages = range(plan.base.cascade.stages)
    if plan.world is not None:
        references = {
            s: plan.world.references(
                checkpoint, plan.base, plan.frames_of(s), plan.base.fps_of(s), plan.detectors["FVD"]
            )
            for s in stages
        }
    elif real is not None:
        references = dict.fromkeys(stages, real.features())
    report(args, checkpoint, plan, common, references)
    if left_out:
        rows = ", ".join(dict.fromkeys(job.row for job in left_out))
        print(
            f"evaluation: {len(left_out)} of {len(asked)} videos turned NaN and were left out: {rows}", file=sys.stderr
        )
    return int(bool(left_out))


def batches(waiting: list[tuple[Job, bool]], size: int) -> Iterator[list[tuple[Job, bool]]]:
    """Jobs of one row each, at most `size`. Those of a subject stay together where the size is one."""
    by_row = [[pair] for pair in waiting]
    if size > 1:
        rows = dict.fromkeys(job.row for job, _ in waiting)
        by_row = [[pair for pair in waiting if pair[0].row == row] for row in rows]
    for of_row in by_row:
        yield from (of_row[i : i + size] for i in range(0, len(of_row), size))


def measuring(args: argparse.Namespace, world: World | None) -> dict[str, detectors.Detector]:
    """The detectors by the measure that they give. ValueError if one cannot be used."""
    device = device_of(args.device)
    found = {}
    for measure, path, classes in (("FVD", args.detector, False), ("IS", args.classifier, True)):
        if path is not None:
            found[measure] = detectors.torchscript(path, device, classes)
        elif world is not None:
            found[measure] = world.detector(device, classes)
    if args.detector is not None and args.real is None and world is None:
        raise ValueError("FVD compares with real videos; add --real, or leave --detector out")
    if args.real is not None and args.detector is None:
        raise ValueError("--real is what FVD compares with; add --detector, whose features it compares")
    return found


def world_of(args: argparse.Namespace) -> World | None:
    """The drawn world, if its scenes are asked for. ValueError for what does not go with them."""
    if args.scenes is None:
        return None
    names = ("height", "width", "prompt_file", "image", "motion_bucket_id", "real")
    asked = [name for name in names if getattr(args, name) is not None] + ["num_videos"] * (args.num_videos != 1)
    if asked:
        raise ValueError(f"--scenes draws its own subjects, one video each: leave --{asked[0]} out")
    from smallworld.world import SmallWorld  # which only --scenes needs

    return SmallWorld()


def plan_of(args: argparse.Namespace, checkpoint: Checkpoint, world: World | None) -> Plan:
    """ValueError for settings that do not fit, in any row."""
    base, running = read_settings(args, checkpoint)
    said = {**asked(args), "dtype": base.dtype}
    names = args.rows or TABLES[args.table]
    known: dict[str, Interpolator] = {}
    if args.interpolator or set(names) & set(interpolators.ROWS):
        device, dtype = device_of(running.device), getattr(torch, base.dtype)
        known = interpolators.open_interpolators(args.interpolator, device, dtype)
        required = {*(args.rows or ()), *known}
        if world is not None and interpolators.LAVIE in names:  # the world's own, unless the user brings one
            known = {**interpolators.open_interpolators(world.interpolators, device, dtype), **known}
        names = interpolating(names, known, required, base)
    used = {row: known[row] for row in names if row in known}
    rows = {row: base if row in used else settings_of_row(row, checkpoint, said) for row in dict.fromkeys(names)}
    return Plan(args.outdir / "videos", base, rows, running, measuring(args, world), world, used)


def interpolating(
    names: Sequence[str], known: Mapping[str, Interpolator], required: Collection[str], base: Settings
) -> list[str]:
    """Those of the rows, and of interpolators that have rows of their own, that can be made. ValueError for one that is
    required and cannot be."""
    rows = []
    for row in dict.fromkeys([*names, *(row for row in known if row not in interpolators.ROWS)]):
        try:
            if row in known:
                known[row].check(base)
            elif row in interpolators.ROWS:
                raise ValueError("it needs its weights: --interpolator FILE")
            rows.append(row)
        except ValueError as error:
            if row in required:
                raise ValueError(f"the row {row} cannot be: {error}") from error
            print(f"without the row {row}: {error}", file=sys.stderr)
    return rows


def jobs_of(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> Iterator[list[Job]]:
    """All rows of a subject and seed, so that a run that is stopped early has something to compare."""
    if plan.world is not None:
        check("rows x --scenes", len(plan.rows) * args.scenes, int, VIDEOS)
        for i, scene in enumerate(plan.world.scenes(checkpoint, args.seed, args.scenes)):
            shown = Shown(f"{scene.prompt()}, {i}", {})
            yield [Job(row, shown, args.seed + i, scene) for row in (*plan.rows, TRUTH)]
        return
    subjects = read_subjects(args, checkpoint)
    check("rows x subjects x --num_videos", len(plan.rows) * len(subjects) * args.num_videos, int, VIDEOS)
    for seed in seeds_of(args):
        for subject in subjects:
            yield [Job(row, subject, seed) for row in plan.rows]


def agree(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What all records of the folder have in common, kept there. ValueError if it holds records of something else."""
    common = {
        "checkpoint": checkpoint.sha256(),
        "settings": plan.decided(""),
        "subjects": f"scenes drawn by seed {args.seed}" if args.scenes is not None else "given",
        "protocol": {name: detector.protocol for name, detector in plan.detectors.items()},
        "frames": "up to the last key frame" if plan.interpolators else "all",
    }
    for folder in (args.outdir, plan.folder):
        remove_left(folder.absolute())
    path = args.outdir / "evaluation.json"
    if path.exists() and next(plan.folder.glob("*.json"), None):
        before = read_json(path)
        if not isinstance(before, dict):
            print(f"note: {path} is damaged; the videos beside it are taken to be of what this command says")
        elif other := [name for name in common if {"frames": "all", **before}.get(name) != common[name]]:
            raise ValueError(f"{args.outdir} holds an evaluation of another {', '.join(other)}; use another --outdir")
    write_json(path, common)
    return common


def report(
    args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan, common: dict[str, Any], references: dict[int, Tensor]
) -> None:
    """The table, the numbers, the pictures: of all records in the folder."""
    results = tables.Results(read_records(plan.folder), references)
    lines = [f"- `{name}` by {text}." for name, text in common["protocol"].items()]
    if references:
        what = "true renderings, not through the autoencoder" if args.real is None else f"videos of {args.real}"
        lines.append(f"- FVD compares with {len(references[0])} {what}.")
    if plan.interpolators:
        lines.append(
            f"- All rows are measured {common['frames']}, where interpolators end: n (k - 1) + 1 of n k frames."
        )
        lines += [f"- `{row}`: {interpolator.protocol}." for row, interpolator in plan.interpolators.items()]
    text = tables.markdown(results, checkpoint.family.name) + "\n".join(lines)
    write_text(args.outdir / "table.md", text + "\n")
    write_json(args.outdir / "results.json", {**common, "versions": versions(), "rows": results.as_json()})
    sampler = checkpoint.config.sampler.sampler(plan.base.steps, plan.base.eta)
    pictures = figures.write(args.outdir, results, plan, [sampler.share(i) for i in range(len(sampler))])
    print(text)
    print(f"written: {args.outdir / 'table.md'}, results.json, {', '.join(path.name for path in pictures)}")


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        args = arguments().parse_args(argv)
        with processes(args) as (rank, world):
            if not args.compare:
                return evaluate(args, rank, world)
            compare_folders(args)
            return 0

    return run_command("evaluation", work, "the same command goes on from what is finished")


if __name__ == "__main__":
    sys.exit(main())
