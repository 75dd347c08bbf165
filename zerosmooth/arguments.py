"""Command-line arguments of whatever samples: what to show, how, and where it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cascade import Cascade
from .checkpoint import DEFAULT, sha256, shipped
from .config import ModelConfig
from .images import RESIZE, find_images, read_image
from .pipeline import check_settings, default_eta
from .results import read_prompts
from .samplers import TRAIN_STEPS

OWN = "(default: the checkpoint's own)"
ONLY_IMAGES, ONLY_PROMPTS = ("motion_bucket_id", "noise_aug_strength"), ("prompt", "prompt_file", "negative_prompt")


def add_subjects(parser: argparse._ActionsContainer, prompt: bool) -> None:
    """--ckpt, and what its videos are made from. prompt: a single one can be given too."""
    add = parser.add_argument
    add("--ckpt", default=DEFAULT, help=f"converted checkpoint: a file, or {', '.join(shipped())} (default: {DEFAULT})")
    one = parser.add_mutually_exclusive_group()
    if prompt:
        one.add_argument("--prompt", help=f"what to show {OWN}")
    one.add_argument("--prompt_file", type=Path, help="prompts, one a line; blank lines and # lines are skipped")
    one.add_argument("--image", type=Path, help="first frame of image to video: an image file, or a folder of them")
    add(
        "--resize",
        choices=RESIZE,
        default=RESIZE[0],
        help=f"how an image gets the video's size: cut, between bars, or out of shape (default: {RESIZE[0]})",
    )
    add(
        "--seed", type=int, default=0, help="of the noise; a seed gives the same key frames at every scale (default: 0)"
    )
    add(
        "--num_videos",
        type=int,
        default=1,
        help="videos a prompt or image, with seeds --seed, --seed + 1, .. (default: 1)",
    )


def add_sampling(parser: argparse._ActionsContainer) -> None:
    """What decides a video beside its subject, seed and cascade."""
    add = parser.add_argument
    add("--negative_prompt", help=f"what guidance leads away from {OWN}")
    add("--height", type=int, help=f"pixels {OWN}")
    add("--width", type=int, help=f"pixels {OWN}")
    add("--steps", type=int, help=f"denoising steps; best a divisor of 1000 {OWN}")
    add(
        "--guidance_scale",
        type=float,
        help=f"of classifier-free guidance; 1 is none; of the last frame, where it grows over the frames {OWN}",
    )
    add("--eta", type=float, help=f"share of fresh noise a step, 0 to 1 {OWN}")
    add("--fps", type=int, help=f"key frames a second, as the model is told {OWN}")
    add("--motion_bucket_id", type=int, help=f"amount of motion, 0 to 255, where the model has such a condition {OWN}")
    add("--noise_aug_strength", type=float, help=f"noise on the image, 0 to 1: more lets the video leave it {OWN}")


def add_running(parser: argparse._ActionsContainer) -> None:
    """Device, precision, and settings that take less memory."""
    add = parser.add_argument
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float32 on cpu, float16 on cuda")
    add("--device", help="cpu, cuda, cuda:1, .. (default: cuda where there is one, else cpu)")
    add(
        "--decode_chunk_size",
        type=int,
        help="frames decoded at a time; less takes less memory (default: 16, or 8 where the decoder mixes frames)",
    )
    add("--offload", action="store_true", help="keep hidden states that wait for the next stage in CPU memory")
    add(
        "--sequential_guidance",
        action="store_true",
        help="run the branches of guidance one after the other: half the activations",
    )
    add("--frame_chunk", type=int, help="frames at a time in layers that see them one by one (default: all)")


def settings_of(args: argparse.Namespace, config: ModelConfig, cascade: Cascade) -> dict[str, Any]:
    """The settings of `Pipeline.sample`, the checkpoint's own where nothing is said. ValueError if they do not fit."""
    own = config.defaults
    others = ONLY_PROMPTS if config.takes_images else ("image", *ONLY_IMAGES)
    unfit = [name for name in others if getattr(args, name, None) is not None]
    if not config.takes_images and args.resize != RESIZE[0]:
        unfit.append("resize")
    if unfit:
        source = "images" if config.takes_images else "prompts"
        raise ValueError(f"--{unfit[0]} does not fit {args.ckpt}, which makes videos from {source}")
    names: tuple[str, ...] = ("height", "width", "steps", "eta", "guidance_scale", "fps")
    names += ONLY_IMAGES if config.takes_images else ("negative_prompt",)
    settings = {name: getattr(own if getattr(args, name) is None else args, name) for name in names}
    settings["eta"] = default_eta(config, cascade) if args.eta is None else args.eta
    numbers = {name: getattr(own, name) for name in ONLY_IMAGES} | settings
    numbers.pop("negative_prompt", None)
    check_settings(config, cascade, **numbers, decode_chunk_size=args.decode_chunk_size, frame_chunk=args.frame_chunk)
    sampler = config.sampler.sampler(settings["steps"], settings["eta"])
    if len(sampler) != settings["steps"]:
        instead = f"not {settings['steps']}: one at each of evenly spaced timesteps below {TRAIN_STEPS}"
        print(f"note: {len(sampler)} steps are taken, {instead}")
    elif sampler.share(0) < 0.95:
        first = f"timestep {sampler.timestep(0)} of {TRAIN_STEPS}"
        print(f"note: {len(sampler)} steps begin at {first}, where noise is not yet all; a divisor begins at the end")
    return settings


@dataclass(frozen=True)
class Subject:
    """What a video is made from. name: the prompt, or the image's file name; settings: what else decides the result."""

    name: str
    settings: dict[str, Any]
    image: Path | None = None


def read_subjects(args: argparse.Namespace, config: ModelConfig) -> list[Subject]:
    """Each prompt or image once. ValueError if there is none, or an image cannot be used."""
    if not config.takes_images:
        own = [config.defaults.prompt if getattr(args, "prompt", None) is None else args.prompt]
        return [Subject(p, {}) for p in dict.fromkeys(read_prompts(args.prompt_file) if args.prompt_file else own)]
    if args.image is None:
        raise ValueError(f"{args.ckpt} makes videos from images: add --image with a file or a folder")
    subjects = []
    for path in find_images(args.image):
        read_image(path)  # and let go: there may be thousands
        subjects.append(Subject(path.name, {"image_sha256": sha256(path), "resize": args.resize}, path))
    return subjects


def seeds_of(args: argparse.Namespace) -> Sequence[int]:
    """ValueError if there are none."""
    if args.num_videos < 1:
        raise ValueError("--num_videos must be at least 1")
    return range(args.seed, args.seed + args.num_videos)
