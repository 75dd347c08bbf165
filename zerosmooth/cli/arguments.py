"""Command-line arguments of whatever samples. Those of `Settings` and `Running` are made from their fields."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import DEFAULT, Checkpoint, CheckpointError, describe, find, shipped
from ..config import Defaults, check_text
from ..families import FAMILIES
from ..family import load_family
from ..fields import SEED, Range, check
from ..header import sha256
from ..images import find_images, read_image
from ..pipeline import Subject
from ..samplers import TRAIN_STEPS
from ..settings import Option, Running, Settings, default_dtype, device_of, options, settings_for
from .processes import once

STDIN = Path("-")
LARGEST = 64_000_000  # bytes of a prompt file
METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}
FLAGS = {"frames": "key_frames"}  # where the field's name would not say enough
OWN = [option.name for option in options(Defaults)] + ["frames", "decode_chunk_size", "preset"]  # a checkpoint's to say
DEFAULT_TEXTS = {
    **dict.fromkeys(OWN, "the checkpoint's own"),
    "device": "cuda where there is one, else cpu",
    "dtype": " on cpu, else ".join(default_dtype(torch.device(name)) for name in ("cpu", "cuda")),
}


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    add = parser.add_argument
    add("--ckpt", default=DEFAULT, help=f"converted checkpoint: a file, or {', '.join(shipped())} (default: {DEFAULT})")
    add("--family", metavar="FILE", help="Python file or module that defines the checkpoint's family, if not built in")


def add_subjects(parser: argparse._ActionsContainer, prompt: bool) -> None:
    """What videos are made from. prompt: a single one can be given too."""
    add = parser.add_argument
    if prompt:
        add("--prompt", help="what to show (default: the checkpoint's own)")
    add(
        "--prompt_file",
        type=as_path,
        help="prompts, one a line, or - for standard input; blank and # lines are skipped",
    )
    add("--image", type=as_path, help="first frame of image to video: an image file, or a folder of them")
    add("--seed", type=int, default=0, help="of the noise; the same key frames at every scale (default: 0)")
    add("--num_videos", type=int, default=1, help="of each subject, with seeds --seed, --seed + 1, .. (default: 1)")


def as_path(text: str) -> Path:
    """Of an argument: an empty one would be the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text)


def add_settings(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """A flag for each field of `Settings` and of `Running`."""
    add = parser.add_argument_group("how it is sampled").add_argument
    add(
        "--scale",
        dest="scales",
        type=int,
        choices=(1, 2, 4, 8),
        help="frames of the result for one key frame; each doubling is a stage (default: 4)",
    )
    for option in options(Settings):
        if option.name not in (*leave_out, "scales"):
            _add(add, option)
    add = parser.add_argument_group("where it runs").add_argument
    for option in options(Running):
        _add(add, option)


def _add(add: Any, option: Option) -> None:
    """None where nothing is said, so that what was asked can be told from what is a default."""
    name, dest = FLAGS.get(option.name, option.name), option.name
    if option.kind is bool:
        add_switch(add, name, dest, option.text, option.default)
        return
    default = DEFAULT_TEXTS.get(option.name, "none" if option.default is None else option.default)
    text = f"{option.text} (default: {default})".replace("%", "%%")
    choices = option.choices or None
    add(
        f"--{name}",
        dest=dest,
        type=option.kind,
        choices=choices,
        help=text,
        metavar=None if choices else METAVARS[option.kind],
    )


def add_switch(add: Any, name: str, dest: str, text: str, default: bool, unsaid: bool | None = None) -> None:
    """`--name` and `--no_name`: the one that changes the default is in `--help`, the other one is for where something
    else than the default stands, as beside a preset or a record. unsaid: what holds if neither is said."""
    texts = {True: argparse.SUPPRESS if default else text, False: f"do not {text}" if default else argparse.SUPPRESS}
    add(f"--{name}", dest=dest, action="store_true", default=unsaid, help=texts[True])
    add(f"--no_{name}", dest=dest, action="store_false", default=unsaid, help=texts[False])


def described(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that is asked for. ValueError if it will not do."""
    family = None if args.family is None else load_family(args.family, FAMILIES)
    file = find(args.ckpt)
    if not file.exists():
        names = ", ".join(shipped())
        raise CheckpointError(
            f"{file} does not exist; give a converted checkpoint, or one that ships with this: {names}"
        )
    return describe(file, family)


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were said, by name."""
    names = {option.name for option in options(Settings)}
    said = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if "scales" in said:
        said["scales"] = (2,) * (said["scales"].bit_length() - 1)
    return said


def read_settings(
    args: argparse.Namespace, checkpoint: Checkpoint, before: Settings | None = None
) -> tuple[Settings, Running]:
    """What was asked for, checked; prints what else a user should know of it. before: settings that it changes, if not
    the checkpoint's own. ValueError if it does not fit."""
    device = device_of(args.device)
    said = asked(args)
    if before is None:
        said = {"dtype": default_dtype(device), **said}
    settings = settings_for(checkpoint.family, checkpoint.config, before, **said)
    sampler = checkpoint.config.sampler.sampler(settings.steps, settings.eta)
    if len(sampler) != settings.steps:
        instead = f"not {settings.steps}: one at each of evenly spaced timesteps below {TRAIN_STEPS}"
        print(f"note: {len(sampler)} steps are taken, {instead}")
    elif sampler.share(0) < 0.95:
        first = f"timestep {sampler.timestep(0)} of {TRAIN_STEPS}"
        print(f"note: {len(sampler)} steps begin at {first}, where noise is not yet all; a divisor begins at the end")
    given = {o.name: getattr(args, o.name) for o in options(Running) if getattr(args, o.name) is not None}
    running = Running(**{**given, "device": str(device)})
    for text in running.idle(settings, checkpoint.family.guided(checkpoint.config, settings)):
        print(f"note: {text}")
    return settings, running


@dataclass(frozen=True)
class Shown:
    """A subject before it is loaded. name: what people call it, the prompt or the image's file name; identity: all that
    it is, for records."""

    name: str
    identity: dict[str, Any]
    prompt: str | None = None
    image: Path | None = None

    def load(self) -> Subject:
        return Subject(self.prompt, None if self.image is None else read_image(self.image))


def read_subjects(args: argparse.Namespace, checkpoint: Checkpoint, needed: bool = True) -> list[Shown]:
    """Each prompt or image once; of a family that takes both, each image with each prompt. ValueError if one cannot be
    used, or there is none and one is needed."""
    takes, config = checkpoint.family.takes, checkpoint.config
    prompt = getattr(args, "prompt", None)
    for kind, flag, given in (
        ("prompt", "prompt", prompt),
        ("prompt", "prompt_file", args.prompt_file),
        ("image", "image", args.image),
    ):
        if given is not None and kind not in takes:
            raise ValueError(f"--{flag} does not fit {args.ckpt}, which makes videos from {' and '.join(takes)}s")
    if prompt is not None and args.prompt_file is not None:
        raise ValueError("--prompt and --prompt_file exclude each other; give one")
    if "image" in takes and args.image is None and needed:
        raise ValueError(f"{args.ckpt} makes videos from images: add --image with a file or a folder")
    prompts: list[str | None] = [None]
    if "prompt" in takes:
        own = [config.defaults.prompt if prompt is None else prompt]
        prompts = list(dict.fromkeys(read_prompts(args.prompt_file) if args.prompt_file else own))
    for text in prompts:
        check_text("a prompt", text or "")
    shown = []
    for image in [None] if args.image is None else find_images(args.image):
        facts = {}
        if image is not None:
            read_image(image)  # and let go: there may be thousands
            facts = {"image": image.name, "image_sha256": sha256(image)}
        for text in prompts:
            name = " ".join(part for part in (image and image.name, text) if part)
            shown.append(Shown(name, facts if text is None else {"prompt": text, **facts}, text, image))
    return shown


def _read(file: Path) -> bytes:
    """One byte more than LARGEST, if there are so many."""
    if file != STDIN:
        with file.open("rb") as opened:
            return opened.read(LARGEST + 1)
    if sys.stdin is None:
        raise ValueError("--prompt_file -: this process has no standard input")
    if sys.stdin.isatty():
        print("type prompts, one a line; Ctrl-D ends them", file=sys.stderr)
    return sys.stdin.buffer.read(LARGEST + 1)


def read_prompts(file: Path) -> list[str]:
    """Prompts of a file or a pipe, one a line; blank lines and # lines are skipped. "-": of standard input. ValueError
    if it has none."""
    what = "standard input" if file == STDIN else f"the prompt file {file}"
    if not file.exists() and file != STDIN or file.is_dir():
        raise ValueError(f"{what} {'is a folder' if file.is_dir() else 'does not exist'}")
    content = file.read_bytes() if file.is_file() and file.stat().st_size <= LARGEST else once(lambda: _read(file))
    if len(content) > LARGEST:
        raise ValueError(f"{what} has more than {LARGEST / 1e6:.0f} MB; it is no list of prompts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{what} has NULs in it, as UTF-16 and other files have; save it as UTF-8")
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]  # splitlines splits at form feeds and U+2028 too
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{what} has no prompts")
    return prompts


def seeds_of(args: argparse.Namespace) -> Sequence[int]:
    """ValueError if there are none, or they are out of range."""
    check("--num_videos", args.num_videos, int, Range(1, 1_000_000_000))
    for flag, seed in (("--seed", args.seed), ("--seed + --num_videos", args.seed + args.num_videos - 1)):
        check(flag, seed, int, SEED)
    return range(args.seed, args.seed + args.num_videos)
