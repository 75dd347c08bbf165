"""Makes a video of Wan 2.1 at 16 frames a second, and the same seconds at 32, or at 32 and 64.

    python -m examples.wan wan.safetensors --prompt "A cat walks on the grass." --scale 2

What it does to the longer clips, and what that costs, is in docs/wan.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from zerosmooth.checkpoint import describe, load_described
from zerosmooth.extensions import LIFTS
from zerosmooth.extensions.predictions import lines
from zerosmooth.fields import UserError
from zerosmooth.guidance import Guidance, Inputs
from zerosmooth.settings import default_dtype, device_of, settings_for
from zerosmooth.video import check_writer, write_video
from zerosmooth_cli.command import run_command
from zerosmooth_cli.results import check_folder

from . import FAMILY
from .dense import AT, Correct, Pairs, ThroughFrames, keep, noises, sample_dense, step_at

OWN = "height", "width", "steps", "guidance_scale", "negative_prompt"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.wan", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    own, add = FAMILY.config.defaults, parser.add_argument
    add("ckpt", type=Path, help="the converted checkpoint")
    add("--prompt", default=own.prompt)
    add("--scale", type=int, choices=(1, 2, 4), default=2, help="frames for one key frame")
    add("--frames", type=int, default=81, help="key frames, 1 + 4m (default: 81)")
    for name in OWN:
        value = getattr(own, name)
        add(f"--{name}", type=type(value), default=argparse.SUPPRESS,
            help=f"default: the checkpoint's own; as published {value or 'empty'}")
    add("--shift", type=float, default=FAMILY.config.sampler.shift,
        help="of the noise levels; 3 for 480 lines, 5 for 720 (default: %(default)g)")
    add("--seed", type=int, default=0)
    add("--correct", choices=("none", *LIFTS, "averages"), default="averages",
        help="the longer clips: by averages of two latents; through frames, in lines or carried "
             "along the motion; or not at all (default: averages)")
    add("--at", type=float, nargs="+", metavar="SHARE",
        help="correct through frames after these shares of the steps (default: 0.5 0.7 0.9)")
    add("--rounds", type=int, help="corrections through frames in each of these steps (default: 1)")
    add("--join", type=float, default=0.0, metavar="SHARE",
        help="begin longer clips after this share of the steps, from interpolated frames")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16"), help="of the network")
    add("--outdir", type=Path, default=Path("outputs"))
    return parser.parse_args(argv)


@torch.inference_mode()
def make(args: argparse.Namespace) -> int:
    checkpoint, device = describe(args.ckpt, FAMILY), device_of(args.device)
    config, n = checkpoint.config, checkpoint.config.vae.frames
    most = n * (config.unet.frames - 1) + 1
    if args.frames % n != 1 or not n < args.frames <= most:
        raise UserError(f"{args.frames} key frames; 1 + {n}m frames are needed, {n + 1} to {most}")
    if (args.at, args.rounds) != (None, None) and args.correct not in LIFTS:
        raise UserError("--at and --rounds are of corrections through frames: --correct lines")
    if (rounds := 1 if args.rounds is None else args.rounds) < 1:
        raise UserError(f"--rounds {rounds}; one or more is needed")
    counts = [(args.frames - 1) * 2**s + 1 for s in range(args.scale.bit_length())]
    paths = [args.outdir / f"wan-{args.seed}-{count}.mp4" for count in counts]
    if there := [str(path) for path in paths if path.exists()]:
        raise UserError(f"{there[0]} is there already; name another --outdir or --seed")
    dtype = args.dtype or ("float32" if default_dtype(device) == "float32" else "bfloat16")
    asked = {name: value for name, value in vars(args).items() if name in OWN}
    settings = settings_for(FAMILY, config, key_frames=args.frames // n + 1, dtype=dtype, **asked)
    steps = settings.steps
    join, at = step_at(args.join, steps), {step_at(share, steps) for share in args.at or AT}
    sampling = replace(config.sampler, shift=args.shift)
    check_folder(args.outdir, settings, counts)
    check_writer(args.outdir, ".mp4")
    FAMILY.encode_first(config, [args.prompt], settings, device)
    networks = load_described(checkpoint, device, getattr(torch, dtype)).networks
    guide = Guidance(networks.unet, FAMILY.branches(networks, Inputs([args.prompt]), settings),
                     settings, sequential=True)
    through = ThroughFrames(networks.vae, LIFTS.get(args.correct, lines),
                            at, rounds, settings.decode_chunk_size)
    corrections: dict[str, Correct] = {
        "none": keep, "averages": Pairs.averages(config.vae.latent_channels)}
    side = config.vae.factor
    shape = config.unet.in_channels, settings.height // side, settings.width // side
    noise = [e[None].to(device) for e in noises(shape, settings.key_frames, len(counts), args.seed)]
    bar = tqdm(total=steps, unit=" steps")

    def predict(timestep, x, positions, stage):  # noqa: ANN001, ANN202
        bar.update(stage.index == 0)
        return guide(x, timestep, positions, stage)

    xs = sample_dense(predict, sampling, steps, noise, config.unet.frames,
                      config.unet.overlap, corrections.get(args.correct, through), join,
                      through.begin)
    for s, (x, path) in enumerate(zip(xs, paths)):
        frames = networks.vae.decode(x[0].float(), settings.decode_chunk_size).clamp(-1, 1)
        frames = ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        write_video(path, frames, settings.fps * 2.0**s)
        print(path)
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command("examples.wan", lambda: make(parse(argv)), "clips that it named are whole")


if __name__ == "__main__":
    sys.exit(main())
