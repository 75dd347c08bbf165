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
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from zerosmooth.arguments import add_running, add_sampling, add_subjects, read_subjects, seeds_of, settings_of
from zerosmooth.bus import Correction
from zerosmooth.cascade import METHODS, Cascade
from zerosmooth.checkpoint import Checkpoint, CheckpointError, describe, find, load, sha256
from zerosmooth.estimate import FLOP_SHARE, matrix_rate, needs
from zerosmooth.images import read_image
from zerosmooth.pipeline import NonFiniteError, default_chunk
from zerosmooth.results import Result, device_of, dtype_of, out_of_memory
from zerosmooth.video import check_writer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subjects(parser.add_argument_group("what to show"), prompt=True)
    add = parser.add_argument_group("what comes out").add_argument
    add("--check", action="store_true", help="say what the checkpoint is and what it would need, and stop")
    add(
        "--scale", type=int, choices=(1, 2, 4, 8), default=4, help="frames of the result for one key frame (default: 4)"
    )
    add("--method", choices=METHODS, default="zerosmooth", help="zerosmooth, or a baseline (default: zerosmooth)")
    add("--num_frames", type=int, help="key frames (default: as many as the model was trained on)")
    add(
        "--save_fps",
        type=float,
        help="key frames a second, as the files play; further stages multiply it (default: --fps)",
    )
    add("--gif", action="store_true", help="write GIF instead of mp4")
    add("--outdir", type=Path, default=Path("outputs"), help="folder of the results (default: outputs)")
    add_sampling(parser.add_argument_group("how it is sampled"))
    add_running(parser.add_argument_group("where it runs"))
    add = parser.add_argument_group("settings of the method (defaults: the paper's)").add_argument
    add("--strength", type=float, default=0.8, help="highest correction strength w_t, 0 to 1 (default: 0.8)")
    add(
        "--strength_schedule",
        choices=("linear", "constant"),
        default="linear",
        help="of w_t over the steps (default: linear)",
    )
    add("--no_spatial", action="store_true", help="do not correct spatial self- and cross-attention")
    add("--no_temporal", action="store_true", help="do not correct temporal attention")
    add("--kv_operator", choices=("A1/A2", "S"), default="A1/A2", help="for spatial keys and values (default: A1/A2)")
    add(
        "--a1_probability",
        type=float,
        default=Correction.a1_probability,
        help="of A1 against A2 (default: %(default).3f)",
    )
    add(
        "--convolutions",
        type=float,
        default=Correction.convolutions,
        metavar="WEIGHT",
        help="of correcting temporal convolutions too, 0 to 1: not in the paper (default: 0)",
    )
    add("--overlap", type=int, help="frames that two attention windows share (default: half a window)")
    add("--color_correction", action="store_true", help="pull each frame's latent colours to the key frames'")
    return parser


def main() -> int:
    args = arguments().parse_args()
    try:
        return sample(args)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if (what := out_of_memory(error)) is None:
            raise
        hint = "try --offload, --sequential_guidance, --frame_chunk 4, a smaller --decode_chunk_size or size"
        print(f"sample.py: {what}; {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nsample.py: stopped; finished videos are whole, and the same command goes on from them", file=sys.stderr
        )
        return 130


def sample(args: argparse.Namespace) -> int:
    """Check everything that can be checked before the networks load, then make what is not there yet."""
    checkpoint = describe(find(args.ckpt))
    config = checkpoint.config
    cascade = Cascade(
        frames=config.unet.frames if args.num_frames is None else args.num_frames,
        scales=(2,) * (args.scale.bit_length() - 1),
        method=args.method,
        correction=Correction(
            spatial=not args.no_spatial,
            temporal=not args.no_temporal,
            kv_operator=args.kv_operator,
            a1_probability=args.a1_probability,
            convolutions=args.convolutions,
        ),
        strength=args.strength,
        strength_schedule=args.strength_schedule,
        overlap=args.overlap,
        color_correction=args.color_correction,
        bus_device="cpu" if args.offload else None,
    )
    settings = settings_of(args, config, cascade)
    device = device_of(args.device)
    dtype = dtype_of(args.dtype, device)
    if args.check:
        for line in report(checkpoint, cascade, settings, device, dtype, args):
            print(line, flush=True)
        return 0

    subjects = read_subjects(args, config)
    suffix = ".gif" if args.gif else ".mp4"
    args.outdir.mkdir(parents=True, exist_ok=True)
    check_writer(args.outdir, suffix)
    check_space(args.outdir, cascade, settings["height"], settings["width"])
    fps = settings["fps"] if args.save_fps is None else args.save_fps
    if not 0.1 <= fps <= 240:
        raise ValueError(f"key frames cannot play at {fps:g} a second; use --save_fps 0.1 to 240")
    play_fps = [fps * cascade.rate(stage) for stage in range(cascade.stages)]
    if args.gif and play_fps[-1] > 50:
        raise ValueError(f"GIF plays at most 50 frames a second, not {play_fps[-1]:g}; use mp4, or a lower --save_fps")
    decided = {
        "family": config.family,
        "sha256": sha256(checkpoint.path),
        **settings,
        "dtype": str(dtype).removeprefix("torch."),
        "play_fps": play_fps,
        "cascade": {k: v for k, v in asdict(cascade).items() if k != "bus_device"},
    }
    if config.vae.temporal:  # where chunks meet, what is decoded depends on them
        decided["decode_chunk_size"] = args.decode_chunk_size or default_chunk(config)
    results = [
        Result(args.outdir, subject.name, seed, {**decided, **subject.settings}, suffix)
        for subject in subjects
        for seed in seeds_of(args)
    ]
    waiting = [result for result in results if not result.finished()]
    if len(waiting) < len(results):
        print(f"{len(results) - len(waiting)} of {len(results)} videos are in {args.outdir} already")
    if not waiting:
        return 0

    pipeline = load(checkpoint.path, device, dtype)
    for subject in subjects:
        if not config.takes_images and (lost := pipeline.tokenizer.overflow(subject.name)):
            name = f"{subject.name[:40]!r}.."
            print(f"note: the last {lost} tokens of {name} do not fit into the text encoder and are left out")
    images = {subject.name: subject.image for subject in subjects if subject.image is not None}
    if cascade.scales:
        dense = cascade.frames_of(cascade.stages - 1)
        print(f"{cascade.frames} key frames at {fps:g} fps become {dense} at {play_fps[-1]:g} fps: ", end="")
        print(f"the same {cascade.frames / fps:.3g} seconds, denser, not longer")
    failed = 0
    for result in waiting:
        began = time.perf_counter()
        with tqdm(desc=f"{result.subject[:40]} (seed {result.seed})", unit="stage", leave=False) as bar:

            def progress(done: int, of: int) -> None:
                bar.total = of
                bar.update(done - bar.n)

            try:
                (video,) = pipeline.sample(
                    None if images else result.subject,
                    images=[read_image(images[result.subject])] if images else None,
                    resize=args.resize,
                    seeds=result.seed,
                    cascade=cascade,
                    decode_chunk_size=args.decode_chunk_size,
                    sequential_guidance=args.sequential_guidance,
                    frame_chunk=args.frame_chunk,
                    progress=progress,
                    **settings,
                )
            except NonFiniteError as error:  # the others need not suffer
                bar.close()
                print(f"sample.py: no video of {result.subject!r}, seed {result.seed}: {error}", file=sys.stderr)
                failed += 1
                continue
        facts = {
            "seconds": round(time.perf_counter() - began, 1),
            "device": str(device),
            "checkpoint": str(args.ckpt),
            "bus_peak_bytes": video.bus_peak_bytes,
            "converted_from": checkpoint.source,
            "converted_from_sha256": checkpoint.source_sha256,
            "command": shlex.join(["python", *sys.argv]),
        }
        for path, x, rate in zip(result.write(video, play_fps, facts), video.frames, play_fps):
            print(f"{len(x)} frames, {rate:g} fps, {len(x) / rate:.3g} s: {path}")
        print(f"picture {result.record.with_suffix('.png')}, settings {result.record} ({facts['seconds']} s)")
    return int(failed > 0)


def report(
    checkpoint: Checkpoint,
    cascade: Cascade,
    settings: dict,
    device: torch.device,
    dtype: torch.dtype,
    args: argparse.Namespace,
) -> Iterator[str]:
    """What a checkpoint is, and what a video with these settings would need; line by line, as it is known."""
    c = checkpoint.config
    yield f"{checkpoint.path}: a whole {c.family} checkpoint, {checkpoint.bytes / 1e6:,.1f} MB"
    yield f"  {len(checkpoint.shapes)} tensors, {checkpoint.parameters / 1e6:,.1f} M parameters as {checkpoint.dtype}"
    yield f"  made from {checkpoint.source or 'unknown'} {checkpoint.source_sha256[:16]}"
    frames = ", ".join(str(cascade.frames_of(s)) for s in range(cascade.stages))
    size = f"{settings['height']}x{settings['width']}"
    yield f"  {frames} frames of {size}, {settings['steps']} steps, on {device} as {str(dtype).removeprefix('torch.')}:"
    guided = settings["guidance_scale"] != 1
    need = needs(
        c,
        cascade,
        settings["height"],
        settings["width"],
        dtype,
        guided,
        args.decode_chunk_size,
        args.sequential_guidance,
        args.frame_chunk,
    )
    where = "and in CPU memory" if cascade.bus_device == "cpu" else "of which"
    yield (
        f"  memory: weights {need.weights / 1e9:.2f} GB; a step up to {need.step / 1e9:.2f} GB, {where} up to "
        f"{need.bus / 1e9:.2f} GB of hidden states that wait; then, to decode, up to {need.decoding / 1e9:.2f} GB "
        "(counted; a process takes up to twice as much)"
    )
    rate = matrix_rate(device, dtype)
    yield (
        f"  time: {need.flops / 1e12:,.2f} TFLOP a step, about {need.flops / rate / FLOP_SHARE:,.2g} s at "
        f"{FLOP_SHARE:.0%} of this machine's {rate / 1e12:.2f} TFLOP/s (an estimate)"
    )


def check_space(folder: Path, cascade: Cascade, height: int, width: int) -> None:
    """ValueError if a disk could not hold one result even if nothing compressed."""
    frames = sum(cascade.frames_of(stage) for stage in range(cascade.stages))
    worst, free = frames * height * width * 3 + 50_000_000, shutil.disk_usage(folder).free
    if free < worst:
        raise ValueError(f"{folder} has {free / 1e6:.0f} MB free; one result may need {worst / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
