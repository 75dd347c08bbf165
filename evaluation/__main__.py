"""Measures a checkpoint: the method, its baselines, its ablation; or two folders of videos.

    python -m evaluation --scenes 32              # vc2-small on its drawn world, Table 1's rows
    python -m evaluation --ckpt vc2.safetensors --prompt_file prompts.txt --num_videos 20 \\
        --detector i3d_torchscript.pt --classifier c3d_ucf101.pt --real UCF101/    # the paper's
    torchrun --nproc_per_node 2 -m evaluation --scenes 32     # the same, shared by two processes
    python -m evaluation --compare A B    # two folders of videos, or patterns: 'outputs/*_16f.mp4'

A run that was stopped goes on from what is finished; rows, subjects and seeds can be added later.
In --outdir: a record for each video, table.md, results.json, pictures, and index.html, where the
rows play side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch loads
    import zerosmooth  # noqa: F401  before torch, whose threads it tells how to wait

import torch

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.extensions import METHODS
from zerosmooth.fields import Range, UserError, check
from zerosmooth.files import remove_left
from zerosmooth.pipeline import NonFiniteError
from zerosmooth.settings import Output, Settings, device_of, options
from zerosmooth_cli import arguments
from zerosmooth_cli.command import agreed, processes, run_command, said_once, together
from zerosmooth_cli.live import Progress
from zerosmooth_cli.page import Page
from zerosmooth_cli.results import check_folder, read_json, versions, write_json, write_text

from . import figures, interpolators, tables
from .compare import RealVideos, compare
from .detectors import Detector, torchscript
from .jobs import TRUTH, Job, Plan, measure_jobs, read_records
from .rows import CHANGES, ORDER, TABLES, settings_of_row

VIDEOS = Range(1, 1_000_000)  # of an evaluation: all that was measured of them is kept in memory


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = arguments.Parser("python -m evaluation", "python -m evaluation [options]",
                              __doc__, formatter_class=arguments.Help)
    parser.set_defaults(seed=0)
    add, path = parser.add_argument, arguments.as_path
    arguments.add_checkpoint(add)
    arguments.add_subjects(add)
    add("--scenes", type=int, metavar="N", help="N scenes of the small world instead, by --seed")
    add("--true_keys", action="store_true",
        help="the far world's true key frames: only what lies between them is judged")
    add("--table", choices=TABLES, default="1", help="the paper's table to measure (default: 1)")
    add("--rows", nargs="+", metavar="ROW",
        help=f"rows instead: {', '.join(ORDER)}; or with changes, 'zerosmooth:strength=1'; or "
             "'anchored+rife', whose last doubling an interpolator makes")
    add("--interpolator", nargs="+", type=path, default=[], metavar="FILE",
        help="lavie-interpolation (.safetensors), ldmvfi (.ckpt), or TorchScript, a row so named")
    add("--detector", type=path, metavar="FILE", help="TorchScript network for FVD's features")
    add("--classifier", type=path, metavar="FILE", help="the same for IS: class probabilities")
    add("--real", type=path, metavar="DIR", help="real videos with which FVD compares")
    add("--compare", nargs=2, metavar=("A", "B"), help="only measure videos B against videos A")
    add("--batch_size", type=int, default=1, metavar="N", help="videos made at once (default: 1)")
    add("--show", type=int, default=3, metavar="N", help="subjects with pictures (default: 3)")
    add("--outdir", type=path, default=Path("evaluations"), help="default: evaluations")
    arguments.add_settings(add, leave_out=("preset", "method"))
    return parser.parse_args(argv)


def compare_folders(args: argparse.Namespace) -> None:
    names = ("ckpt", "family", "prompt_file", "image", "scenes", "rows", "interpolator")
    given = [name for name in names if getattr(args, name)] + list(arguments.asked(args))
    if given:
        raise UserError(f"--compare measures existing videos; leave {given[0]} out")
    measured, (a, b) = measuring(args, None), args.compare
    print(compare(a, b, measured, real_of(args, measured)))


def real_of(args: argparse.Namespace, measured: Mapping[str, Detector]) -> RealVideos | None:
    """The real videos with which FVD compares, if they are given."""
    if args.real is None:
        return None
    return RealVideos(args.real, args.outdir / "real", measured["FVD"])


@dataclass(frozen=True)
class Work:
    """What is to be measured, checked. groups: for each subject and seed, the jobs of all rows, so
    that a run that is stopped early has something to compare. common: what all records of the
    folder share."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    plan: Plan
    groups: list[list[Job]]
    real: RealVideos | None
    common: dict[str, Any]

    def jobs(self, rank: int = 0, world: int = 1) -> list[tuple[Job, bool]]:
        """One process's share of the jobs, and whether their frames are kept."""
        return [(job, i < self.args.show) for i, group in enumerate(self.groups)
                if i % world == rank for job in group]


def prepare(args: argparse.Namespace) -> Work:
    """Check everything that can be checked before the networks load."""
    check("--batch_size", args.batch_size, int, VIDEOS)
    checkpoint = arguments.described(args)
    plan = plan_of(args, checkpoint, world_of(args, checkpoint))
    check_folder(args.outdir, plan.base, checkpoint.lengths(plan.base))
    Page(args.outdir)  # which refuses another's
    groups, real = list(groups_of(args, checkpoint, plan)), real_of(args, plan.detectors)
    return Work(args, checkpoint, plan, groups, real, agree(args, checkpoint, plan))


def evaluate(work: Work, rank: int, world: int) -> int:
    """Measure what is not there yet, and report. Returns the exit status: 1 if the process that
    reports left videos out."""
    plan, mine, waiting = work.plan, work.jobs(rank, world), []
    if work.real is not None:
        work.real.measure(rank, world)
    for job, keep in mine:
        if lost := plan.lacks(job, keep):
            waiting.append((job, keep))
            if lost.exists():
                print(f"note: {lost} is damaged; the video is made again")
    if len(waiting) < len(mine):
        print(f"{len(mine) - len(waiting)} of {len(mine)} videos are measured already")
    if waiting:
        measure(work, waiting, rank)
    together(None)
    if rank > 0:
        return 0
    jobs = work.jobs()
    left_out = [job for job, keep in jobs if plan.lacks(job, keep)]
    if all(record["row"] == TRUTH for record in read_records(plan.folder)):
        raise UserError("every video turned NaN; what to try is said above")
    report(work)
    if left_out:
        rows = ", ".join(dict.fromkeys(job.row for job in left_out))
        print(f"evaluation: {len(left_out)} of {len(jobs)} videos turned NaN and were left out: "
              f"{rows}", file=sys.stderr)
    return int(bool(left_out))


def measure(work: Work, waiting: list[tuple[Job, bool]], rank: int) -> None:
    """Make and measure this process's videos. Those that turn NaN are left out, and said."""
    plan = work.plan
    shown = [job.subject for job, _ in waiting]
    pipeline = arguments.loaded(work.checkpoint, shown, plan.base, plan.running, silent=rank > 0)
    with Progress(len(waiting), silent=rank > 0) as bar:
        todo = list(batches(waiting, work.args.batch_size))
        while todo:
            some, keep = zip(*(batch := todo.pop(0)))
            bar.at(0.0, f"{some[0].row}, {some[0].subject.name[:30]}")
            try:
                measure_jobs(pipeline, plan, some, keep)
            except NonFiniteError as error:  # the others need not suffer
                if len(batch) > 1:
                    todo[:0] = [[one] for one in batch]
                    continue
                bar.clear()
                print(f"left out: {some[0].row}, {some[0].subject.name}, seed {some[0].seed}: "
                      f"{error}", file=sys.stderr)
            bar.end(len(batch))


def batches(waiting: list[tuple[Job, bool]], size: int) -> Iterator[list[tuple[Job, bool]]]:
    """Up to `size` jobs of one row each. With size 1 they stay in their order."""
    rows = dict.fromkeys(job.row for job, _ in waiting) if size > 1 else [None]
    for row in rows:
        of_row = [pair for pair in waiting if row in (None, pair[0].row)]
        yield from (of_row[i : i + size] for i in range(0, len(of_row), size))


def measuring(args: argparse.Namespace, world: Any) -> dict[str, Detector]:
    """The detectors by measure. UserError if one cannot be used."""
    device, found = device_of(args.device), {}
    for measure, path, classes in (("FVD", args.detector, False), ("IS", args.classifier, True)):
        if path is not None:
            found[measure] = torchscript(path, device, classes)
        elif world is not None and world.detects:
            found[measure] = world.detector(device, classes)
    if world is None and (args.detector is None) != (args.real is None):
        raise UserError("FVD needs both --detector and --real; add the other, or leave both out")
    return found


def world_of(args: argparse.Namespace, checkpoint: Checkpoint) -> Any:
    """The checkpoint's small world, see `smallworld.world`, if its scenes are asked for. UserError
    for what does not go with them."""
    if args.scenes is None:
        return None
    given = {**vars(args), **arguments.asked(args)}
    from smallworld.far_world import world_of_checkpoint  # which only --scenes needs

    world = world_of_checkpoint(checkpoint, args.true_keys)
    names = ["height", "width", "prompt_file", "image", "motion_bucket_id", "real"]
    names += [] if world.detects else ["fps"]  # of whose laws it is a part
    said = [name for name in names if given.get(name) is not None]
    if said or args.num_videos != 1:
        wrong = [*said, "num_videos"][0]
        raise UserError(f"--scenes draws its own subjects, one video each; leave {wrong} out")
    if not world.detects and (args.detector or args.classifier):
        raise UserError("FVD and IS are not measured on the far world, which has no reference "
                        "videos; leave --detector and --classifier out")
    return world


def plan_of(args: argparse.Namespace, checkpoint: Checkpoint, world: Any) -> Plan:
    """UserError for settings that do not fit in some row. Rows of interpolators that cannot be made
    are left out, unless they are asked for by name or by file."""
    said, files = arguments.asked(args), {option.name for option in options(Output)}
    for name in said:
        if name in {*CHANGES, "preset", "method"}:
            own = said[name] if name in ("preset", "method") else f"zerosmooth:{name}=VALUE"
            raise UserError(f"{name} is a row's own: use --rows {own}")
        if name in files:
            raise UserError(f"{name} does nothing to an evaluation; leave it out")
    base, running = arguments.read_settings(args, checkpoint)
    shared = {**arguments.of_kind(Settings, said), "dtype": base.dtype}
    device, dtype = device_of(running.device), getattr(torch, base.dtype)
    known = interpolators.open_interpolators(args.interpolator, device, dtype)
    required = {*(args.rows or ()), *known}
    names = [*(args.rows or TABLES[args.table]), *(x for x in known if x not in interpolators.ROWS)]
    lavie = any(row.endswith(interpolators.LAVIE) for row in names)
    if world is not None and lavie:  # its own, unless the user brings one
        known = {**interpolators.open_interpolators(world.interpolators, device, dtype), **known}
    rows, used = {}, {}
    for row in names:
        method, _, filler = row.rpartition("+")  # "anchored+rife": rife makes the last doubling
        if filler not in known and filler not in interpolators.ROWS:
            rows[row] = settings_of_row(row, checkpoint, shared)
            continue
        try:
            if filler not in known:
                raise UserError("it needs its weights: --interpolator FILE")
            own = settings_of_row(method, checkpoint, shared) if method else base
            begun = own.scale // 2 if method else 1
            if method and begun < 2:
                raise UserError("its method makes frames from a scale of 4 on")
            known[filler].check(replace(own, scale=own.scale // begun,
                                        key_frames=own.key_frames * begun))
            rows[row], used[row] = own, (known[filler], begun)
        except UserError as error:
            if row in required:
                raise UserError(f"the row {row} cannot be made: {error}") from error
            print(f"without the row {row}: {error}", file=sys.stderr)
    for row, own in rows.items():
        if args.true_keys and METHODS[own.method].slides:
            raise UserError(f"the row {row} slides windows as long as the key video, which "
                            "--true_keys would take for it; leave one of them out")
    return Plan(args.outdir / "videos", base, rows, running, measuring(args, world), world, used,
                checkpoint.lengths(base))


def groups_of(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> Iterator[list[Job]]:
    """For each subject and seed, the jobs of all rows."""
    if plan.world is not None:
        check("rows x --scenes", len(plan.rows) * args.scenes, int, VIDEOS)
        for i, scene in enumerate(plan.world.scenes(checkpoint, args.seed, args.scenes)):
            shown = arguments.Shown(f"{scene.prompt()}, {i}", {})
            yield [Job(row, shown, args.seed + i, scene) for row in (*plan.rows, TRUTH)]
        return
    subjects = arguments.read_subjects(args, checkpoint)
    count = len(plan.rows) * len(subjects) * args.num_videos
    check("rows x subjects x --num_videos", count, int, VIDEOS)
    for seed in arguments.seeds_of(args):
        for subject in subjects:
            yield [Job(row, subject, seed) for row in plan.rows]


def agree(args: argparse.Namespace, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """What all records of the folder share, which is kept there. UserError if the folder holds
    records of something else."""
    subjects = "given"
    if plan.world is not None:  # whose scenes a later version may draw in another way
        some = repr(plan.world.scenes(checkpoint, args.seed, 4)).encode()
        subjects = (f"scenes {hashlib.sha256(some).hexdigest()[:8]} drawn by seed {args.seed}"
                    + ", with true key frames" * args.true_keys)
    common = {
        "checkpoint": checkpoint.sha256(),
        "settings": asdict(plan.base),
        "subjects": subjects,
        "protocol": {name: detector.protocol for name, detector in plan.detectors.items()},
        "frames": "up to the last key frame" if plan.interpolators else "all",
    }
    for folder in (args.outdir, plan.folder):
        remove_left(folder.absolute())
    path = args.outdir / "evaluation.json"
    if path.exists() and next(plan.folder.glob("*.json"), None):
        before = read_json(path)
        if not isinstance(before, dict):
            print(f"note: {path} is damaged; this command is taken to be what made the videos")
        elif other := [name for name in common if before.get(name) != common[name]]:
            raise UserError(f"{args.outdir} differs in {', '.join(other)}; use another --outdir")
    write_json(path, common)
    return common


def report(work: Work) -> None:
    """Write the table, the numbers and the pictures of all records in the folder."""
    args, plan, common = work.args, work.plan, work.common
    stages, references = range(plan.base.cascade.stages), {}  # features by stage, for FVD
    if plan.world is not None and plan.world.detects:
        references = {s: plan.world.references(work.checkpoint, plan.base, plan.frames_of(s),
                                               plan.base.fps_of(s), plan.detectors["FVD"])
                      for s in stages}
    elif work.real is not None:
        references = dict.fromkeys(stages, work.real.features())
    results = tables.Results(read_records(plan.folder), references, plan.rows)
    lines = [f"- `{name}` by {text}." for name, text in common["protocol"].items()]
    if references:
        truth = "true renderings, not through the autoencoder"
        what = truth if args.real is None else f"videos of {args.real}"
        lines.append(f"- FVD compares with {len(references[0])} {what}.")
    if plan.interpolators:
        lines.append(f"- All rows are measured {common['frames']}, where interpolators end: "
                     "n (k - 1) + 1 of n k frames.")
        lines += [f"- `{row}`: {plan.decided(row)['interpolator']}." for row in plan.interpolators]
    text = tables.markdown(results, work.checkpoint.family.name) + "\n".join(lines)
    write_text(args.outdir / "table.md", text + "\n")
    write_json(args.outdir / "results.json",
               {**common, "versions": versions(), "rows": results.as_json()})
    pictures = figures.write(args.outdir, results, plan)
    print(text)
    names = ["results.json", *(path.name for path in pictures)]
    print(f"written: {args.outdir / 'table.md'}, {', '.join(names)}")


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        args = parse(argv)
        if args.true_keys and args.scenes is None:
            raise UserError("--true_keys goes with --scenes; add it, or leave both out")
        with processes(args) as (rank, world):
            if args.compare:
                compare_folders(args)
                return 0
            with said_once():
                prepared = agreed("evaluation", lambda: prepare(args))
            return evaluate(prepared, rank, world)

    return run_command("evaluation", work, "the same command goes on from what is finished")


if __name__ == "__main__":
    sys.exit(main())
