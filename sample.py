"""Smooth video from a prompt or an image: a frozen 16-frame model makes 32 and 64 frames of the same seconds.

    python sample.py                                            # a small model that ships with the code
    python sample.py --ckpt vc2.safetensors --prompt "a panda eating pizza"
    python sample.py --ckpt our_svd.safetensors --image photo.jpg   # or a folder of images
    python sample.py --check --ckpt vc2.safetensors             # what a file is, and what it would need
    python sample.py --again video.mp4 --scale 8                # what made a file makes it again, here denser
    torchrun --nproc_per_node 2 sample.py --prompt_file prompts.txt     # shared by two processes, or GPUs

For each prompt or image and each seed it writes a video a stage (key frames first), one picture, and a json. Each of
them carries all that is needed to make them again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is work to tidy up: no traceback while torch loads
    import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait

import torch

from zerosmooth.checkpoint import Checkpoint, load_described
from zerosmooth.cli import again, arguments
from zerosmooth.cli.check import check_folder, report, say_lost_tokens
from zerosmooth.cli.command import run_command
from zerosmooth.cli.live import Live
from zerosmooth.cli.processes import agreed, first, processes, said_once, together
from zerosmooth.fields import Range, check
from zerosmooth.files import remove_left
from zerosmooth.naming import NAME, slug, used
from zerosmooth.page import NAME as PAGE
from zerosmooth.page import Page
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.results import Result
from zerosmooth.settings import Running, Settings
from zerosmooth.video import check_writer

NAMED = Range(1, 1_000_000)  # videos whose names have no digest, and are all compared first


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what to show")
    arguments.add_checkpoint(group)
    arguments.add_subjects(group, prompt=True)
    group.add_argument(
        "--again",
        type=arguments.as_path,
        metavar="FILE",
        help="make what a video, picture or json of ours shows again, but for what other flags say",
    )
    add = parser.add_argument_group("what comes out").add_argument
    add("--check", action="store_true", help="say what the checkpoint is and what it would need, and stop")
    add(
        "--save_fps",
        type=float,
        help="frames a second at which the densest video plays, instead of what the model is told; the others follow",
    )
    arguments.add_switch(add, "gif", "gif", "write GIF instead of mp4", False, unsaid=False)
    add("--side_by_side", action="store_true", help="also write one video of the key frames beside the densest video")
    add("--no_picture", action="store_true", help="write no picture that compares the stages")
    add(
        "--name",
        default=NAME,
        metavar="TEMPLATE",
        help="of the files: {prompt}, {seed}, {frames}, {digest} of all that decides, {scale}, {steps} and any other "
        f"setting (default: {NAME})",
    )
    add("--preview", action="store_true", help="while it runs, keep coarse key frames in the folder: preview.gif")
    add(
        "--outdir",
        type=arguments.as_path,
        default=Path("outputs"),
        help="folder of the results (default: outputs)",
    )
    arguments.add_settings(parser)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return flags().parse_args(argv)


def parse_again(argv: list[str] | None, file: Path, record: again.Record) -> argparse.Namespace:
    """As `parse`, where a file's record says what was not said. ckpt_said: whether that was."""
    parser = flags()
    said = parser.parse_args(argv, argparse.Namespace(ckpt=None))
    parser.set_defaults(**again.defaults(file, record, said), ckpt_said=said.ckpt is not None)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Work:
    """What is to be made, checked. args: the flags, with what a record adds to them."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    settings: Settings
    running: Running
    play_fps: list[float]
    seeds: Sequence[int]
    shown: list[arguments.Shown]

    def results(self) -> Iterator[tuple[arguments.Shown, Result]]:
        """All of them, in the order in which they are made."""
        args, digest, suffix = self.args, self.checkpoint.sha256(), ".gif" if self.args.gif else ".mp4"
        written = (suffix, args.name, not args.no_picture, args.side_by_side)
        for one in self.shown:
            for seed in self.seeds:
                of = (one.name, one.identity, seed, self.settings, digest, self.play_fps)
                yield one, Result(args.outdir, *of, *written)


def prepare(argv: list[str] | None, args: argparse.Namespace) -> Work | None:
    """Check everything that can be checked before the networks load, and say what a user should know. None if that is
    all that was asked for."""
    device, record = args.device, None
    if args.again is not None:
        record = again.read_record(args.again)
        args = parse_again(argv, args.again, record)
        args.device = device
    checkpoint = arguments.described(args)
    settings, running = arguments.read_settings(args, checkpoint, None if record is None else record.settings)
    print(settings.summary())
    if record is not None:
        for note in again.notes(args.again, record, checkpoint, args.ckpt_said, running.device):
            print(f"note: {note}")
    play_fps = play_rates(args, settings, checkpoint)
    seeds = arguments.seeds_of(args)
    shown = arguments.read_subjects(args, checkpoint, needed=not args.check)
    work = Work(args, checkpoint, settings, running, play_fps, seeds, shown)
    check_names(work)
    if args.check:
        for line in report(checkpoint, settings, running):
            print(line)
        return None
    check_folder(args.outdir, settings)
    Page(args.outdir)  # ValueError if it would replace one that is not ours
    remove_left(args.outdir.absolute())
    check_writer(args.outdir, ".gif" if args.gif else ".mp4")
    return work


def check_names(work: Work) -> None:
    """ValueError if --name gives no names of files, two videos the same one, or one that another video has already."""
    args = work.args
    if args.side_by_side and not work.settings.cascade.scales:
        raise ValueError("--side_by_side does nothing at scale 1, where there is one video; leave it out")
    if "digest" in used(args.name, work.settings):
        longest = max(work.shown, key=lambda one: len(slug(one.name)))
        _, result = next(replace(work, shown=[longest], seeds=work.seeds[-1:]).results())
        result.path()  # ValueError if it is too long; of the last seed, which has the most digits
        return
    check("videos without {digest} in --name", len(work.shown) * len(work.seeds), int, NAMED)
    names: set[Path] = set()
    for _, result in work.results():
        new = {result.record, *result.files}
        if both := names & new:
            raise ValueError(f"--name gives two videos the name {min(both)}; add {{prompt}}, {{seed}} or {{digest}}")
        if (other := result.taken()) is not None:
            raise ValueError(
                f"{other} is there already, and not this video: change --name or --outdir, or add {{digest}}"
            )
        names |= new


def make_videos(work: Work, rank: int, world: int) -> int:
    """Make what is not there yet; of several processes, each its share. Returns the exit status."""
    pipeline: Pipeline | None = None
    failed = there = said = 0
    total, args = len(work.shown) * len(work.seeds), work.args
    of = f"of {total} videos are in {args.outdir} already"
    own = len(range(rank, total, world))
    with Live(args.outdir, own, work.settings.cascade, work.play_fps[0], args.preview, silent=not first()) as live:
        for shown, result in islice(work.results(), rank, None, world):
            if (lost := result.lacks()) is None:
                there += 1
                live.drop()
                continue
            if world == 1 and there > said:
                print(there, of)
                said = there
            if lost:
                print(f"note: {lost}; the video is made again")
            if pipeline is None:
                pipeline = load_described(work.checkpoint, work.running.device, getattr(torch, work.settings.dtype))
                say_lost_tokens(pipeline, prompts_of(work, rank, world))
                with said_once():
                    say_what_scale_does(work.settings, work.play_fps)
            failed += not make_video(work, pipeline, live, shown, result)
        there, failed = (sum(counts) for counts in zip(*together((there, failed))))
    if first() and there > said:
        print(there, of)
    if first() and (args.outdir / PAGE).exists():
        print(f"play them side by side: {args.outdir / PAGE}")
    return int(failed > 0)


def prompts_of(work: Work, rank: int, world: int) -> list[str]:
    """Those of whose lost tokens this process tells: of the subjects whose first video it makes."""
    own = [one.prompt or "" for i, one in enumerate(work.shown) if i * len(work.seeds) % world == rank]
    return [*own, *[work.settings.negative_prompt] * (rank == 0)]


def say_what_scale_does(settings: Settings, play_fps: list[float]) -> None:
    if (cascade := settings.cascade).scales:
        fps, dense = play_fps[0], cascade.frames_of(cascade.stages - 1)
        print(f"{cascade.frames} key frames at {fps:g} fps become {dense} at {play_fps[-1]:g} fps: ", end="")
        print(f"the same {cascade.frames / fps:.3g} seconds, denser, not longer")


def make_video(work: Work, pipeline: Pipeline, live: Live, shown: arguments.Shown, result: Result) -> bool:
    """Whether it turned out; if not, the reason is said."""
    began = time.perf_counter()
    with live.video(f"{shown.name}, seed {result.seed}"):
        try:
            (video,) = pipeline.sample(
                shown.load(),
                result.settings,
                seeds=result.seed,
                running=work.running,
                progress=live.progress,
                preview=live.preview,
            )
        except NonFiniteError as error:  # the others need not suffer
            print(f"sample.py: no video of {shown.name!r}, seed {result.seed}: {error}", file=sys.stderr)
            return False
    checkpoint = work.checkpoint
    made_by = {
        "checkpoint": str(work.args.ckpt),
        "family": checkpoint.family.name,
        **({} if shown.image is None else {"image_path": str(shown.image)}),
        "device": work.running.device,
        "running": {name: value for name, value in asdict(work.running).items() if name != "device"},
        "threads": torch.get_num_threads(),
    }
    facts = {
        "seconds": round(time.perf_counter() - began, 1),
        "bus_peak_bytes": video.bus_peak_bytes,
        "converted_from": checkpoint.source,
        "converted_from_sha256": checkpoint.source_sha256,
        "command": shlex.join(["python", *sys.argv]),
    }
    for path, x, rate in zip(result.write(video, made_by, facts), video.frames, result.play_fps):
        print(f"{len(x)} frames, {rate:g} fps, {len(x) / rate:.3g} s: {path}")
    others = {**result.beside, "settings": result.record}
    print(f"{', '.join(f'{what} {path}' for what, path in others.items())} ({facts['seconds']} s)")
    return True


def play_rates(args: argparse.Namespace, settings: Settings, checkpoint: Checkpoint) -> list[float]:
    """Frames a second at which each stage's file plays; says it if that is not as the model is told. ValueError if no
    player or format could."""
    told = checkpoint.family.told_rate(checkpoint.config)
    if None not in (args.fps, args.save_fps) and not told:
        raise ValueError(
            f"--fps does nothing beside --save_fps: {checkpoint.family.name} is not told it; leave one of them out"
        )
    cascade = settings.cascade
    n, dense = cascade.scale_of(cascade.stages - 1), cascade.frames_of(cascade.stages - 1)
    own = settings.fps_of(cascade.stages - 1)
    fps = own if args.save_fps is None else args.save_fps
    if not 0.1 * n <= fps <= 240 * n:
        raise ValueError(f"{dense} frames cannot play at {fps:g} a second; use --save_fps {0.1 * n:g} to {240 * n}")
    if args.gif and fps > 50:
        raise ValueError(f"GIF plays at most 50 frames a second, not {fps:g}; use mp4, or --save_fps 50")
    if fps != own:
        pace = f"{own / fps:.3g} times slower" if fps < own else f"{fps / own:.3g} times faster"
        than = "the model is told" if told else f"their own pace, {settings.fps} key frames a second"
        lasts = f"{dense / fps:.3g} s, not {dense / own:.3g} s"
        print(f"note: {dense} frames at {fps:g} fps play in {lasts}: {pace} than {than}")
    return [float(fps * cascade.scale_of(stage) / n) for stage in range(cascade.stages)]


def main(argv: list[str] | None = None) -> int:
    def work() -> int:
        args = parse(argv)
        with processes(args) as (rank, world):
            with said_once():
                prepared = agreed("sample.py", lambda: prepare(argv, args))
            return 0 if prepared is None else make_videos(prepared, rank, world)

    stopped = "finished videos are whole, and the same command goes on from them"
    return run_command("sample.py", work, stopped if first() else "")


if __name__ == "__main__":
    sys.exit(main())
