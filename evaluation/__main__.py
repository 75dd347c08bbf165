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
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from smallworld.gate import scenes_of
from zerosmooth.arguments import add_running, add_sampling, add_subjects, read_subjects, seeds_of, settings_of
from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import Checkpoint, CheckpointError, describe, find, load, sha256
from zerosmooth.config import ModelConfig
from zerosmooth.pipeline import NonFiniteError, default_chunk
from zerosmooth.results import device_of, dtype_of, versions, write_json, write_text

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
            evaluate(args, rank, world)
    except (CheckpointError, NonFiniteError, ValueError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
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


def evaluate(args: argparse.Namespace, rank: int, world: int) -> None:
    device = device_of(args.device)
    measured = measuring(args, device)
    if args.compare:
        print(compare(*args.compare, measured))
        return
    checkpoint = describe(find(args.ckpt))
    plan = plan_of(args, checkpoint, measured)
    jobs = list(jobs_of(args, checkpoint))
    common = agree(args, checkpoint, plan)
    own = jobs[rank::world]
    waiting = [job for job in own if not plan.finished(job)]
    if len(waiting) < len(own):
        print(f"{len(own) - len(waiting)} of {len(own)} videos are measured already")
    shown = list(dict.fromkeys((job.subject, job.seed) for job in jobs))[: args.show]
    if waiting:
        pipeline = load(checkpoint.path, device, dtype_of(args.dtype, device))
        with tqdm(total=len(waiting), unit="video", disable=rank > 0) as bar:
            for job in waiting:
                bar.set_postfix_str(f"{job.row}, {job.subject[:30]}")
                run(pipeline, plan, job, (job.subject, job.seed) in shown, lambda done, of: None)
                bar.update()
    if args.real is not None:
        reference.measure_folder(args.real, args.outdir / "real", measured["FVD"], rank, world)
    if world > 1:
        torch.distributed.barrier()
    if rank == 0:
        report(args, checkpoint.config, plan, common)


def measuring(args: argparse.Namespace, device: torch.device) -> dict[str, detectors.Detector]:
    """The detectors by the measure that they give."""
    found = {}
    for measure, path, classes in (("FVD", args.detector, False), ("IS", args.classifier, True)):
        if path is not None:
            found[measure] = detectors.torchscript(path, device, classes)
        elif args.scenes:
            found[measure] = detectors.small_world(device, classes)
    if args.real is not None and "FVD" not in found:
        raise ValueError("--real is what FVD compares with; add --detector, whose features it compares")
    return found


def plan_of(args: argparse.Namespace, checkpoint: Checkpoint, measured: dict[str, detectors.Detector]) -> Plan:
    """ValueError for settings that do not fit, in any row."""
    config = checkpoint.config
    base = Cascade(
        frames=config.unet.frames,
        scales=(2,) * (args.scale.bit_length() - 1),
        bus_device="cpu" if args.offload else None,
        lockstep=args.lockstep,
    )
    for row in args.rows or TABLES[args.table]:
        settings_of(args, config, cascade_of(row, base))
    running = {
        "decode_chunk_size": args.decode_chunk_size or default_chunk(config),
        "sequential_guidance": args.sequential_guidance,
        "frame_chunk": args.frame_chunk,
    }
    settings = settings_of(args, config, base) | running
    if args.scenes and (settings["height"], settings["width"]) != (config.defaults.height, config.defaults.width):
        raise ValueError("--height and --width do not go with --scenes, which are drawn at the checkpoint's own size")
    return Plan(
        folder=args.outdir / "videos",
        base=base,
        settings=settings,
        eta=partial(eta_of, args, checkpoint),
        resize=args.resize,
        detectors=measured,
    )


def eta_of(args: argparse.Namespace, checkpoint: Checkpoint, cascade: Cascade) -> float:
    return settings_of(args, checkpoint.config, cascade)["eta"]


def jobs_of(args: argparse.Namespace, checkpoint: Checkpoint) -> Iterator[Job]:
    """All rows of a subject and seed one after the other, so that a run that is stopped early has something to show."""
    rows = args.rows or TABLES[args.table]
    if args.scenes:
        if args.prompt_file or args.image or args.num_videos != 1:
            raise ValueError("--scenes draws its own subjects, one video each: leave the other settings of them out")
        for i, scene in enumerate(scenes_of(checkpoint.config, args.seed, args.scenes)):
            for row in (TRUTH, *rows):
                yield Job(row, f"{scene.prompt()}, {i}", args.seed + i, scene)
        return
    for seed in seeds_of(args):
        for subject in read_subjects(args, checkpoint.config):
            for row in rows:
                yield Job(row, subject.name, seed, image=subject.image)


def agree(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What all records of the folder have in common, kept there. ValueError if it holds records of something else."""
    asked = asdict(plan.base)
    common = {
        "checkpoint": sha256(checkpoint.path),
        "settings": {k: v for k, v in plan.settings.items() if k not in ("sequential_guidance", "frame_chunk")},
        "dtype": str(dtype_of(args.dtype, device_of(args.device))).removeprefix("torch."),
        "cascade": {k: asked[k] for k in ("frames", "scales")},
        "subjects": f"scenes drawn by seed {args.seed}" if args.scenes else "given",
        "protocol": {name: detector.protocol for name, detector in plan.detectors.items()},
    }
    common = json.loads(json.dumps(common))  # as it will be read
    args.outdir.mkdir(parents=True, exist_ok=True)
    path = args.outdir / "evaluation.json"
    if path.exists():
        before = json.loads(path.read_text())
        if other := [name for name in common if before.get(name) != common[name]]:
            raise ValueError(f"{args.outdir} holds an evaluation of another {', '.join(other)}; use another --outdir")
    else:
        write_json(path, common)
    return common


def report(args: argparse.Namespace, config: ModelConfig, plan: Plan, common: dict[str, Any]) -> None:
    """The table, the numbers, the pictures: of all records in the folder."""
    references = {}
    if args.scenes:
        references = reference.of_small_world(plan, config, plan.detectors["FVD"])
    elif args.real is not None:
        references = reference.of_folder(plan, args.outdir / "real")
    results = tables.Results(read_records(plan.folder), references)
    protocol = [f"- `{name}`: {text}." for name, text in common["protocol"].items()]
    text = tables.markdown(results, config.family) + "\n".join(protocol)
    write_text(args.outdir / "table.md", text + "\n")
    write_json(args.outdir / "results.json", {**common, "versions": versions(), "rows": results.as_json()})
    sampler = config.sampler.sampler(plan.settings["steps"], plan.settings["eta"])
    pictures = figures.write(args.outdir, results, plan, [sampler.share(i) for i in range(len(sampler))])
    print(text)
    print(f"written: {args.outdir / 'table.md'}, results.json, {', '.join(path.name for path in pictures)}")


if __name__ == "__main__":
    sys.exit(main())
