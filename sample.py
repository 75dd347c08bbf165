"""Smooth video from a prompt or an image: a frozen 16-frame model makes 32 and 64 frames of the same seconds.

    python sample.py                                            # a small model that ships with the code
    python sample.py --ckpt vc2.safetensors --prompt "a panda eating pizza"
    python sample.py --ckpt our_svd.safetensors --image photo.jpg   # or a folder of images
    python sample.py --check --ckpt vc2.safetensors             # what a file is, and what it would need

For each prompt or image and each seed it writes a video a stage (key frames first), one picture, and a json with all
that is needed to make them again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is work to tidy up: no traceback while torch loads

import torch

from zerosmooth.checkpoint import Checkpoint, load_described
from zerosmooth.cli import arguments
from zerosmooth.cli.check import check_folder, report, say_lost_tokens
from zerosmooth.cli.command import run_command
from zerosmooth.cli.live import Live
from zerosmooth.files import remove_left
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.results import Result
from zerosmooth.settings import Running, Settings
from zerosmooth.video import check_writer


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what to show")
    arguments.add_checkpoint(group)
    arguments.add_subjects(group, prompt=True)
    add = parser.add_argument_group("what comes out").add_argument
    add("--check", action="store_true", help="say what the checkpoint is and what it would need, and stop")
    add("--save_fps", type=float, help="key frames a second, as the files play; further stages multiply it")
    add("--gif", action="store_true", help="write GIF instead of mp4")
    add("--preview", action="store_true", help="while it runs, keep coarse key frames in the folder: preview.gif")
    add(
        "--outdir",
        type=arguments.as_path,
        default=Path("outputs"),
        help="folder of the results (default: outputs)",
    )
    arguments.add_settings(parser)
    return parser.parse_args(argv)


def make_videos(args: argparse.Namespace) -> int:
    """Check everything that can be checked before the networks load, then make what is not there yet."""
    checkpoint = arguments.described(args)
    settings, running = arguments.read_settings(args, checkpoint)
    print(settings.summary())
    play_fps = play_rates(args, settings, checkpoint)
    seeds = arguments.seeds_of(args)
    shown = arguments.read_subjects(args, checkpoint, needed=not args.check)
    if args.check:
        for line in report(checkpoint, settings, running):
            print(line)
        return 0

    suffix = ".gif" if args.gif else ".mp4"
    check_folder(args.outdir, settings)
    remove_left(args.outdir.absolute())
    check_writer(args.outdir, suffix)
    digest = checkpoint.sha256()
    results = (
        (one, Result(args.outdir, one.name, one.identity, seed, settings, digest, play_fps, suffix))
        for one in shown
        for seed in seeds
    )
    pipeline, failed, of = None, 0, len(shown) * len(seeds)
    with Live(args.outdir, of, settings.cascade, play_fps[0], args.preview) as live:
        for waiting in unfinished(results, of, args.outdir, live):
            if pipeline is None:
                pipeline = load_described(checkpoint, running.device, getattr(torch, settings.dtype))
                say_lost_tokens(pipeline, [*(one.prompt or "" for one in shown), settings.negative_prompt])
                say_what_scale_does(settings, play_fps)
            failed += not make_video(args, checkpoint, pipeline, running, live, *waiting)
    return int(failed > 0)


def unfinished(
    results: Iterator[tuple[arguments.Shown, Result]], of: int, folder: Path, live: Live
) -> Iterator[tuple[arguments.Shown, Result]]:
    """Those that are to be made, one after the other; says how many are there, and which are damaged."""
    there, said = 0, 0
    for shown, result in results:
        if (lost := result.lacks()) is None:
            there += 1
            live.drop()
            continue
        if there > said:
            print(f"{there} of {of} videos are in {folder} already")
            said = there
        if lost:
            print(f"note: {folder / lost} is damaged or gone; the video is made again")
        yield shown, result
    if there > said:
        print(f"{there} of {of} videos are in {folder} already")


def say_what_scale_does(settings: Settings, play_fps: list[float]) -> None:
    if (cascade := settings.cascade).scales:
        fps, dense = play_fps[0], cascade.frames_of(cascade.stages - 1)
        print(f"{cascade.frames} key frames at {fps:g} fps become {dense} at {play_fps[-1]:g} fps: ", end="")
        print(f"the same {cascade.frames / fps:.3g} seconds, denser, not longer")


def make_video(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    pipeline: Pipeline,
    running: Running,
    live: Live,
    shown: arguments.Shown,
    result: Result,
) -> bool:
    """Whether it turned out; if not, the reason is said."""
    began = time.perf_counter()
    with live.video(f"{shown.name}, seed {result.seed}"):
        try:
            (video,) = pipeline.sample(
                shown.load(),
                result.settings,
                seeds=result.seed,
                running=running,
                progress=live.progress,
                preview=live.preview,
            )
        except NonFiniteError as error:  # the others need not suffer
            print(f"sample.py: no video of {shown.name!r}, seed {result.seed}: {error}", file=sys.stderr)
            return False
    facts = {
        "seconds": round(time.perf_counter() - began, 1),
        "device": running.device,
        "checkpoint": str(args.ckpt),
        "family": checkpoint.family.name,
        "bus_peak_bytes": video.bus_peak_bytes,
        "converted_from": checkpoint.source,
        "converted_from_sha256": checkpoint.source_sha256,
        "command": shlex.join(["python", *sys.argv]),
    }
    for path, x, rate in zip(result.write(video, facts), video.frames, result.play_fps):
        print(f"{len(x)} frames, {rate:g} fps, {len(x) / rate:.3g} s: {path}")
    print(f"picture {result.record.with_suffix('.png')}, settings {result.record} ({facts['seconds']} s)")
    return True


def play_rates(args: argparse.Namespace, settings: Settings, checkpoint: Checkpoint) -> list[float]:
    """Frames a second at which each stage's file plays. ValueError if no player or format could."""
    if None not in (args.fps, args.save_fps) and not checkpoint.family.told_rate(checkpoint.config):
        raise ValueError(
            f"--fps does nothing beside --save_fps: {checkpoint.family.name} is not told it; leave one of them out"
        )
    fps = settings.fps if args.save_fps is None else args.save_fps
    if not 0.1 <= fps <= 240:
        raise ValueError(f"key frames cannot play at {fps:g} a second; use --save_fps 0.1 to 240")
    rates = [float(fps * settings.cascade.scale_of(stage)) for stage in range(settings.cascade.stages)]
    if args.gif and rates[-1] > 50:
        raise ValueError(f"GIF plays at most 50 frames a second, not {rates[-1]:g}; use mp4, or a lower --save_fps")
    return rates


def main(argv: list[str] | None = None) -> int:
    stopped = "finished videos are whole, and the same command goes on from them"
    return run_command("sample.py", lambda: make_videos(parse(argv)), stopped)


if __name__ == "__main__":
    sys.exit(main())
