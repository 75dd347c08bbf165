"""Smooth video from a prompt or an image: a frozen 16-frame model makes 32 and 64 frames.

    python sample.py                                                # a small model that ships
    python sample.py --prompt "a green square moving up"            # of what it knows
    python sample.py --ckpt vc2.safetensors --prompt "a boat at sea"
    python sample.py --ckpt svd.safetensors --image photo.jpg       # or a folder of images
    python sample.py --check --ckpt vc2.safetensors                 # what it is, what it needs
    python sample.py --again video.mp4 --scale 8                    # remake a video, denser
    torchrun --nproc_per_node 2 sample.py --prompt_file FILE        # shared by two GPUs
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zerosmooth import __version__
from zerosmooth.checkpoint import Checkpoint
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.settings import Output, Running, Settings

from . import again, arguments, check
from .command import agreed, first, processes, run_command, said_once, together
from .live import Live
from .results import Result, check_outputs

CLONE = "sample.py"  # what the command is called in a clone; installed, `zerosmooth`


def parse(argv: list[str] | None = None, name: str = CLONE) -> argparse.Namespace:
    about, usage = str(__doc__), f"python {CLONE}"
    if name != CLONE:
        about, usage = about.replace(usage, name).replace(CLONE, f"-m {name}"), name
    parser = arguments.Parser(name, f"{usage} [options]", about, formatter_class=arguments.Help)
    parser.set_defaults(called=name)
    add = parser.add_argument
    arguments.add_checkpoint(add)
    add("--prompt", help="what to show (default: the checkpoint's own)")
    arguments.add_subjects(add)
    add("--again", type=arguments.as_path, metavar="FILE",
        help="remake the video from one of its files; other flags change it")
    add("--check", action="store_true", help="say what the checkpoint is and needs, and stop")
    add("--outdir", type=arguments.as_path, default=Path("outputs"), metavar="DIR",
        help="folder of the results (default: outputs)")
    arguments.add_settings(add)
    add("--version", action="version", version=f"zerosmooth {__version__}")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Work:
    """All that is to be made, checked."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    settings: Settings
    running: Running
    output: Output
    play_fps: list[float]
    shown: list[arguments.Shown]
    seeds: Sequence[int]

    def results(self) -> Iterator[tuple[arguments.Shown, Result]]:
        """One for each subject and seed, in the order in which they are made."""
        digest, lengths = self.checkpoint.sha256(), self.checkpoint.lengths(self.settings)
        for one in self.shown:
            for seed in self.seeds:
                yield one, Result(self.args.outdir, one.name, one.identity, seed, self.settings,
                                  digest, lengths, self.play_fps, self.output)


def prepare(args: argparse.Namespace) -> Work | None:
    """Check all that can be checked before the networks load. None if no more is asked for."""
    record = None if args.again is None else again.read_record(args.again)
    checkpoint, settings, running, output = arguments.resolve(args, record)
    shown, seeds = arguments.read_subjects(args, checkpoint), arguments.seeds_of(args)
    fps = arguments.play_rates(settings, checkpoint, output)
    work = Work(args, checkpoint, settings, running, output, fps, shown, seeds)
    if args.check:
        for line in check.report(checkpoint, settings, running):
            print(line)
        return None
    results = (result for _, result in work.results())
    check_outputs(args.outdir, settings, checkpoint.lengths(settings), output, results)
    return work


def make(work: Work, rank: int, world: int) -> int:
    """Make the videos that are not there yet, of which each of several processes has its share.
    Returns the exit status."""
    pipeline: Pipeline | None = None
    folder, failed, there, total = work.args.outdir, 0, 0, len(work.shown) * len(work.seeds)
    own = len(range(rank, total, world))
    with Live(folder, own, work.settings, work.play_fps[0], work.output, not first()) as live:
        for shown, result in islice(work.results(), rank, None, world):
            if (lost := result.lacks()) is None:
                there += 1
                live.bar.videos -= 1
                continue
            if lost:
                print(f"note: {lost}; the video is made again")
            if pipeline is None:
                apart = world if len(work.seeds) == 1 else 1  # subjects of this process
                left = work.shown[work.shown.index(shown) :: apart]
                pipeline = arguments.loaded(work.checkpoint, left, work.settings, work.running,
                                            silent=rank > 0)
            failed += not make_one(work, pipeline, live, shown, result)
        there, failed = (sum(counts) for counts in zip(*together((there, failed))))
    if first() and there:
        print(f"{there} of {total} videos are in {folder} already")
    if first() and work.output.page:
        print(f"play them side by side: {folder / 'index.html'}")
    return int(failed > 0)


def make_one(work: Work, pipeline: Pipeline, live: Live, shown: arguments.Shown,
             result: Result) -> bool:
    """Make one video and write its files. Returns whether that worked; if not, prints why."""
    began = time.perf_counter()
    with live.video(f"{shown.name}, seed {result.seed}"):
        try:
            (video,) = pipeline.sample(shown.load(), result.settings, seeds=result.seed,
                                       running=work.running, progress=live.progress,
                                       preview=live.preview)
        except NonFiniteError as error:  # other videos may turn out
            print(f"{work.args.called}: no video of {shown.name!r}, seed {result.seed}: {error}",
                  file=sys.stderr)
            return False
    made_by = arguments.made_by(work.args, work.checkpoint, work.running, shown)
    facts = {"seconds": round(time.perf_counter() - began, 1),
             "bus_peak_bytes": video.bus_peak_bytes, "command": shlex.join(["python", *sys.argv])}
    for path, s in zip(result.write(video, made_by, facts), result.stages):
        fps, frames = result.play_fps[s], len(video.frames[s])
        print(f"{frames} frames, {fps:g} fps, {frames / fps:.3g} s: {path}")
    others = {**result.beside, "settings": result.record}
    print(f"{', '.join(f'{what} {path}' for what, path in others.items())} ({facts['seconds']} s)")
    return True


def main(argv: list[str] | None = None, name: str = CLONE) -> int:
    """Run the command. name: what it is called in what it says. Returns the exit status."""

    def work() -> int:
        args = parse(argv, name)
        with processes(args) as (rank, world):
            with said_once():
                prepared = agreed(name, lambda: prepare(args))
            return 0 if prepared is None else make(prepared, rank, world)

    stopped = "finished videos are whole, and the same command goes on from them"
    return run_command(name, work, stopped if first() else "")
