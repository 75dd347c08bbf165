"""Measures a checkpoint: the method, its baselines, its ablation; or two folders of videos.

    python -m evaluation --scenes 32                            # vc2-small on its drawn world, Table 1's rows
    python -m evaluation --ckpt vc2.safetensors --prompt_file prompts.txt --num_videos 20 --real UCF101/ \
        --detector i3d_torchscript.pt --classifier c3d_ucf101.pt          # the paper's experiment
    torchrun --nproc_per_node 2 -m evaluation --scenes 32       # the same, shared by two processes
    python -m evaluation --compare A B      # two folders of videos, or patterns such as 'outputs/*_16f.mp4'

A run that was stopped goes on from what is finished, and rows, subjects and seeds can be added later. In --outdir: a
record a video, table.md, results.json, and pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from smallworld.gate import scenes_of
from zerosmooth.arguments import add_running, add_sampling, add_subjects, read_subjects, seeds_of, settings_of
from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import Checkpoint, CheckpointError, describe, find, load, sha256
from zerosmooth.config import ModelConfig
from zerosmooth.pipeline import NonFiniteError, check_cascade, default_chunk
from zerosmooth.results import device_of, dtype_of, out_of_memory, versions, write_json, write_text

from . import detectors, figures, reference, tables
from .compare import compare
from .jobs import TRUTH, Job, Plan, read_records, run
from .rows import ORDER, TABLES, cascade_of


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subjects(parser.add_argument_group("what to show"), prompt=False)
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
        "--scale",
        type=int,
        choices=(2, 4, 8),
        default=4,
        help="of the last stage; all before are measured too (default: 4)",
    )
    add("--detector", type=Path, help="TorchScript file whose features give FVD (default with --scenes: our own)")
    add("--classifier", type=Path, help="TorchScript file whose class probabilities give IS (default: likewise)")
    add("--real", type=Path, help="folder of the real videos that FVD compares with, searched through")
    add("--compare", nargs=2, metavar=("A", "B"), help="measure videos B against A, fewer frames of the same, and stop")
    add("--show", type=int, default=3, help="subjects of which pictures are made (default: 3)")
    add("--outdir", type=Path, default=Path("evaluations"), help="folder of the results (default: evaluations)")
    add_sampling(parser.add_argument_group("how it is sampled"))
    add_running(parser.add_argument_group("where it runs"))
    return parser


def main() -> int:
    args = arguments().parse_args()
    try:
        with processes(args) as (rank, world):
            if args.compare:
                compare_folders(args)
            else:
                return evaluate(args, rank, world)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if (what := out_of_memory(error)) is None:
            raise
        hint = "try --offload, --sequential_guidance or --frame_chunk 4"
        print(f"evaluation: {what}; {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nevaluation: stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130
    return 0


@contextmanager
def processes(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """This process's number and how many there are, as torchrun says it; each on its own GPU."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1
        return
    device = device_of(args.device)
    if device.type == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device_of(args.device))
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    try:
        yield torch.distributed.get_rank(), world
    finally:
        torch.distributed.destroy_process_group()


def compare_folders(args: argparse.Namespace) -> None:
    if args.scenes is not None:
        raise ValueError("--compare measures videos that are there; leave --scenes out")
    measured = measuring(args)
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
    checkpoint = describe(find(args.ckpt))
    measured = measuring(args)
    plan = plan_of(args, checkpoint, measured)
    groups = list(jobs_of(args, checkpoint))
    real = None if args.real is None else reference.RealVideos(args.real, args.outdir / "real", measured["FVD"])
    common = agree(args, checkpoint, plan)
    if real is not None:
        real.measure(rank, world)
    jobs = [(job, i < args.show) for i, group in enumerate(groups) for job in group if i % world == rank]
    waiting = [(job, keep) for job, keep in jobs if not plan.finished(job, keep)]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} videos are measured already")
    if waiting:
        pipeline = load(checkpoint.path, device_of(args.device), dtype_of(args.dtype, device_of(args.device)))
        with tqdm(total=len(waiting), unit="video", disable=rank > 0) as bar:
            for job, keep in waiting:
                bar.set_postfix_str(f"{job.row}, {job.subject[:30]}")
                try:
                    run(pipeline, plan, job, keep)
                except NonFiniteError as error:  # the others need not suffer; what is left out is said at the end
                    tqdm.write(f"left out: {job.row}, {job.subject}, seed {job.seed}: {error}", file=sys.stderr)
                bar.update()
    if world > 1:
        torch.distributed.barrier()
    if rank > 0:
        return 0
    asked = [(job, i < args.show) for i, group in enumerate(groups) for job in group]
    left_out = [job for job, keep in asked if not plan.finished(job, keep)]
    if all(record["row"] == TRUTH for record in read_records(plan.folder)):
        raise ValueError("every video turned NaN, so there is nothing to report; what to try is said above")
    references = {}
    if args.scenes is not None:
        references = reference.of_small_world(plan, checkpoint.config, measured["FVD"])
    elif real is not None:
        references = dict.fromkeys(range(plan.base.stages), real.features())
    report(args, checkpoint.config, plan, common, references)
    if left_out:
        rows = ", ".join(dict.fromkeys(job.row for job in left_out))
        print(
            f"evaluation: {len(left_out)} of {len(asked)} videos turned NaN and were left out: {rows}", file=sys.stderr
        )
    return int(bool(left_out))


def measuring(args: argparse.Namespace) -> dict[str, detectors.Detector]:
    """The detectors by the measure that they give. ValueError if one cannot be used."""
    device = device_of(args.device)
    found = {}
    for measure, path, classes in (("FVD", args.detector, False), ("IS", args.classifier, True)):
        if path is not None:
            found[measure] = detectors.torchscript(path, device, classes)
        elif args.scenes is not None:
            found[measure] = detectors.small_world(device, classes)
    if args.detector is not None and args.real is None and args.scenes is None:
        raise ValueError("FVD compares with real videos; add --real, or leave --detector out")
    if args.real is not None and args.detector is None:
        raise ValueError("--real is what FVD compares with; add --detector, whose features it compares")
    return found


def plan_of(args: argparse.Namespace, checkpoint: Checkpoint, measured: dict[str, detectors.Detector]) -> Plan:
    """ValueError for settings that do not fit, in any row."""
    config = checkpoint.config
    base = Cascade(
        frames=config.unet.frames,
        scales=(2,) * (args.scale.bit_length() - 1),
        bus_device="cpu" if args.offload else None,
    )
    settings = settings_of(args, config, base)
    for row in rows_of(args):
        check_cascade(config, cascade_of(row, base))
    if args.scenes is not None:
        own = config.defaults
        if args.scenes < 1 or own.height != own.width:
            raise ValueError(
                "--scenes takes at least one, and a checkpoint of the small world, whose videos are square"
            )
        asked = [
            n
            for n in ("height", "width", "prompt_file", "image", "motion_bucket_id", "real")
            if getattr(args, n) is not None
        ]
        if asked or args.num_videos != 1:
            raise ValueError(
                f"--scenes draws its own subjects, one video each: leave --{(asked or ['num_videos'])[0]} out"
            )
    running = {
        "decode_chunk_size": args.decode_chunk_size or default_chunk(config),
        "sequential_guidance": args.sequential_guidance,
        "frame_chunk": args.frame_chunk,
    }
    return Plan(args.outdir / "videos", base, settings, running, args.resize, measured)


def rows_of(args: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(args.rows or TABLES[args.table]))


def jobs_of(args: argparse.Namespace, checkpoint: Checkpoint) -> Iterator[list[Job]]:
    """All rows of a subject and seed, so that a run that is stopped early has something to compare."""
    if args.scenes is not None:
        for i, scene in enumerate(scenes_of(checkpoint.config, args.seed, args.scenes)):
            yield [Job(row, f"{scene.prompt()}, {i}", args.seed + i, {}, scene) for row in (*rows_of(args), TRUTH)]
        return
    subjects = read_subjects(args, checkpoint.config)
    for seed in seeds_of(args):
        for subject in subjects:
            yield [Job(row, subject.name, seed, subject.settings, image=subject.image) for row in rows_of(args)]


def agree(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What all records of the folder have in common, kept there. ValueError if it holds records of something else."""
    common = {
        "checkpoint": sha256(checkpoint.path),
        "settings": dict(plan.settings),
        "dtype": str(dtype_of(args.dtype, device_of(args.device))).removeprefix("torch."),
        "frames": [plan.base.frames_of(s) for s in range(plan.base.stages)],
        "subjects": f"scenes drawn by seed {args.seed}" if args.scenes is not None else "given",
        "protocol": {name: detector.protocol for name, detector in plan.detectors.items()},
    }
    if checkpoint.config.vae.temporal:  # where chunks meet, what is decoded depends on them
        common["decode_chunk_size"] = plan.running["decode_chunk_size"]
    args.outdir.mkdir(parents=True, exist_ok=True)
    path = args.outdir / "evaluation.json"
    if path.exists() and next(plan.folder.glob("*.json"), None):
        before = json.loads(path.read_text())
        if other := [name for name in common if before.get(name) != common[name]]:
            raise ValueError(f"{args.outdir} holds an evaluation of another {', '.join(other)}; use another --outdir")
    else:
        write_json(path, common)
    return common


def report(
    args: argparse.Namespace, config: ModelConfig, plan: Plan, common: dict[str, Any], references: dict[int, Tensor]
) -> None:
    """The table, the numbers, the pictures: of all records in the folder."""
    results = tables.Results(read_records(plan.folder), references)
    lines = [f"- `{name}` by {text}." for name, text in common["protocol"].items()]
    if references:
        what = "true renderings, not through the autoencoder" if args.real is None else f"videos of {args.real}"
        lines.append(f"- FVD compares with {len(references[0])} {what}.")
    text = tables.markdown(results, config.family) + "\n".join(lines)
    write_text(args.outdir / "table.md", text + "\n")
    write_json(args.outdir / "results.json", {**common, "versions": versions(), "rows": results.as_json()})
    sampler = config.sampler.sampler(plan.settings["steps"], plan.settings["eta"])
    pictures = figures.write(args.outdir, results, plan, [sampler.share(i) for i in range(len(sampler))])
    print(text)
    print(f"written: {args.outdir / 'table.md'}, results.json, {', '.join(path.name for path in pictures)}")


if __name__ == "__main__":
    sys.exit(main())
