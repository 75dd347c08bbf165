"""Command-line arguments of all commands that sample: subjects, and settings by name."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from zerosmooth.checkpoint import (
    DEFAULT,
    Checkpoint,
    check_digest,
    describe,
    load_described,
    sha256,
    shipped,
)
from zerosmooth.config import Defaults, check_text
from zerosmooth.families import FAMILIES
from zerosmooth.family import load_family
from zerosmooth.fields import SEED, Range, UserError, check, near, short
from zerosmooth.images import find_images, read_image
from zerosmooth.pipeline import Pipeline, Subject
from zerosmooth.samplers import TRAIN_STEPS
from zerosmooth.settings import (
    Option,
    Output,
    Running,
    Settings,
    default_dtype,
    device_of,
    idle,
    known,
    options,
    refuse,
    settings_for,
)

from .again import Record, check_work, notes, recall
from .command import once

STDIN = Path("-")
LARGEST = 64_000_000  # bytes of a prompt file
READ = 500_000_000  # bytes of a checkpoint that are read at every start, which takes a second
OPTIONS = {option.name: option for of in (Settings, Running, Output) for option in options(of)}
FLAGS = ("scale", "preset", "method", "steps", "guidance_scale", "fps", "height", "width", "device")
OWN = [option.name for option in options(Defaults)] + ["key_frames", "decode_chunk_size", "preset"]
METAVARS = {int: "N", float: "X", str: "NAME"}


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows all options of `sample.py` on one screen."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)


class Parser(argparse.ArgumentParser):
    """Says of a flag that is none what may have been meant."""

    def error(self, message: str) -> NoReturn:
        _, unknown, rest = message.partition("unrecognized arguments: ")
        name = rest.split()[0].lstrip("-").partition("=")[0] if unknown and rest.strip() else ""
        if rest.startswith("-") and name in OPTIONS:
            message += f"; write --set {name}=VALUE"
        elif rest.startswith("-"):
            settings = (f"--set {name}" for name in OPTIONS if name not in FLAGS)
            meant = near(f"--{name}", [*self._option_string_actions, *settings],
                         "--help lists all flags")
            message += f"; {meant}"
        elif rest:
            message += '; put what has spaces in quotes: --prompt "a red circle"'
        super().error(message)


def add_checkpoint(add: Any) -> None:
    names = ", ".join(shipped())
    add("--ckpt", type=as_name, metavar="FILE",
        help=f"converted checkpoint, or {names} (default: {DEFAULT})")
    add("--family", metavar="FILE", help="Python file that defines the checkpoint's family")


def add_subjects(add: Any) -> None:
    """What videos are made from."""
    add("--prompt_file", type=as_path, metavar="FILE", help="prompts, one a line; - reads stdin")
    add("--image", type=as_path, metavar="FILE", help="image to video: an image, or a folder")
    add("--seed", type=as_seed, metavar="N", help="seed of the noise (default: 0)")
    add("--num_videos", type=int, default=1, metavar="N",
        help="videos of each subject, with seeds --seed, --seed + 1, .. (default: 1)")


def add_settings(add: Any, leave_out: Sequence[str] = ()) -> None:
    """A flag for each of FLAGS, `--set` for all settings, and `--settings`, which lists them."""
    for name in FLAGS:
        if name not in leave_out:
            option = OPTIONS[name]
            add(f"--{name}", type=option.kind, metavar=METAVARS[option.kind],
                help=f"{option.text}{default_text(option, short=True)}".replace("%", "%%"))
    add("--set", action=Set, nargs="+", default=argparse.SUPPRESS, metavar="NAME=VALUE",
        help="any other setting; --settings lists them")
    add("--settings", action=ListSettings, nargs=0, help="list all settings and their meaning")


class Set(argparse.Action):
    """`--set NAME=VALUE ..`: as if there were a flag for each name."""

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, texts: Any,
                 *_: Any) -> None:
        for text in texts:
            name, equals, value = text.partition("=")
            if hasattr(args, name) and name not in OPTIONS:
                raise UserError(f"{name} is no setting but a flag: --{name}")
            known([name], Settings, Running, Output)
            if not equals:
                raise UserError(f"--set {text}: write {name}=VALUE")
            setattr(args, name, OPTIONS[name].read(value))


class ListSettings(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for option in OPTIONS.values():
            flag = f"--{option.name}" if option.name in FLAGS else f"--set {option.name}="
            choices = f": {' or '.join(option.choices)}" if option.choices else ""
            print(f"{flag:27} {option.text}{choices}{default_text(option)}")
        parser.exit()


def default_text(option: Option, short: bool = False) -> str:
    """What holds by default, in brackets. short: empty for what is the checkpoint's own."""
    own = {"device": "cuda where there is one, else cpu", "dtype": "float32 on cpu, else float16",
           **dict.fromkeys(OWN, "the checkpoint's own")}
    value = str(option.default)
    text = own.get(option.name, value.lower() if value in ("True", "False", "None") else value)
    return "" if short and option.name in OWN else f" (default: {text})"


def as_path(text: str) -> Path:
    """The path in an argument. An empty one would mean the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text)


def as_name(text: str) -> str:
    """Of a file, or of what ships. An empty one would mean the default."""
    as_path(text)
    return text


def as_seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{short(text)} is no whole number; --seed N --num_videos M makes M videos, with seeds "
            "from N on") from None


def described(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that is asked for. UserError if it cannot be used, or is damaged."""
    family = None if args.family is None else load_family(args.family, FAMILIES)
    checkpoint = describe(args.ckpt or DEFAULT, family)
    check_whole(checkpoint)
    return checkpoint


def check_whole(checkpoint: Checkpoint) -> None:
    """CheckpointError if a file's tensors are not those that were written. Larger ones than READ
    are read once as they are: an empty file in the user's cache tells that they were whole."""
    facts, mark = checkpoint.path.stat(), None
    if facts.st_size > READ:
        stamp = (str(checkpoint.path.resolve()), facts.st_size, facts.st_mtime_ns,
                 facts.st_ctime_ns, checkpoint.tensors_sha256)
        name = hashlib.sha256(repr(stamp).encode("utf-8", "backslashreplace")).hexdigest()
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        mark = Path(cache) / f"zerosmooth/{name[:32]}.whole"
    if mark is None or not mark.exists():
        check_digest(checkpoint)
    if mark is not None:
        with suppress(OSError):  # then it is read again
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, by name."""
    return {name: value for name, value in vars(args).items()
            if name in OPTIONS and not (name in FLAGS and value is None)}


def of_kind(kind: type, said: dict[str, Any]) -> dict[str, Any]:
    """Those settings of `said` that are fields of a kind: `Settings`, `Running` or `Output`."""
    names = {option.name for option in options(kind)}
    return {name: value for name, value in said.items() if name in names}


def read_settings(args: argparse.Namespace, checkpoint: Checkpoint, before: Settings | None = None,
                  running: Running = Running()) -> tuple[Settings, Running]:
    """What was asked for, checked. before: the settings that it changes, if not the checkpoint's
    own; running: likewise, except for the device. UserError if it does not fit."""
    said, device = asked(args), device_of(args.device)
    dtype = {"dtype": default_dtype(device)} if before is None else {}
    own = {**dtype, **of_kind(Settings, said)}
    settings = settings_for(checkpoint.family, checkpoint.config, before, **own)
    running = replace(running, **{**of_kind(Running, said), "device": str(device)})
    refuse(said, idle(checkpoint.family, checkpoint.config, settings, running))
    sampler = checkpoint.config.sampler.sampler(settings.steps, settings.eta)
    if len(sampler) != settings.steps:
        print(f"note: {len(sampler)} steps are taken, not {settings.steps}: one at each of evenly "
              "spaced timesteps")
    elif sampler.share(0) < 0.95:
        better = f"a divisor of {TRAIN_STEPS}" if TRAIN_STEPS % settings.steps else "more steps"
        print(f"note: {len(sampler)} steps begin at timestep {sampler.timestep(0)} of "
              f"{TRAIN_STEPS}, where noise is not yet all; {better} would begin nearer to it")
    return settings, running


def resolve(args: argparse.Namespace, record: Record | None
            ) -> tuple[Checkpoint, Settings, Running, Output]:
    """All that was asked for, with a record's values for what was not. Prints what a user should
    know about it. UserError if it does not fit."""
    said, named = asked(args), args.ckpt is not None
    output = Output() if record is None else recall(args, record, said)
    checkpoint = described(args)
    before = () if record is None else (record.settings, record.running)
    settings, running = read_settings(args, checkpoint, *before)
    if record is not None and not getattr(args, "check", False):
        own = settings_for(checkpoint.family, checkpoint.config)
        check_work(args.again, settings, own, said)
    output = replace(output, **of_kind(Output, said))
    refuse(said, idle(checkpoint.family, checkpoint.config, settings, running, output))
    if record is not None:
        for note in notes(args.again, record, checkpoint, named, running.device):
            print(f"note: {note}")
    return checkpoint, settings, running, output


def play_rates(settings: Settings, checkpoint: Checkpoint, output: Output) -> list[float]:
    """Frames a second at which each stage's file plays; prints what that is. UserError if no player
    or format could play it."""
    cascade, n, own = settings.cascade, settings.scale, settings.fps_of(-1)
    lengths = checkpoint.lengths(settings)
    keys, dense = lengths[0], lengths[-1]
    fps = own if output.save_fps is None else output.save_fps
    if not 0.1 * n <= fps <= 240 * n:
        raise UserError(f"{dense} frames cannot play at {fps:g} a second; use --set save_fps="
                        f"{0.1 * n:g} to {240 * n}")
    if output.gif and fps > 50:
        raise UserError(f"GIF plays at most 50 frames a second, not {fps:g}; use mp4, or "
                        "--set save_fps=50")
    print(settings.summary())
    rates = [float(fps * cascade.scale_of(stage) / n) for stage in range(cascade.stages)]
    if fps != own:
        told = checkpoint.family.told_rate(checkpoint.config)
        pace = f"{own / fps:.3g} times slower" if fps < own else f"{fps / own:.3g} times faster"
        than = "the model is told" if told else f"at their own {settings.fps} key frames a second"
        print(f"note: {dense} frames at {fps:g} fps play in {dense / fps:.3g} s, not "
              f"{dense / own:.3g} s: {pace} than {than}")
    if n > 1:
        print(f"{keys} key frames at {rates[0]:g} fps become {dense} at "
              f"{rates[-1]:g} fps: the same {dense / fps:.3g} seconds, denser, not longer")
    return rates


def made_by(args: argparse.Namespace, checkpoint: Checkpoint, running: Running,
            shown: Shown) -> dict[str, Any]:
    """What a record holds beside what decides the video: all that is needed to remake it."""
    image = {} if shown.image is None else {"image_path": str(shown.image)}
    return {"checkpoint": str(args.ckpt or DEFAULT), "family": checkpoint.family.name, **image,
            "device": running.device, "running": asdict(running),
            "threads": torch.get_num_threads(), "converted_from": checkpoint.source,
            "converted_from_sha256": checkpoint.source_sha256}


@dataclass(frozen=True)
class Shown:
    """A subject before it is loaded. name: what people call it, the prompt or the image's file
    name; identity: all that identifies it in records."""

    name: str
    identity: dict[str, Any]
    prompt: str | None = None
    image: Path | None = None

    def load(self) -> Subject:
        image = None if self.image is None else read_image(self.image, note=str)  # said before
        return Subject(self.prompt, image)


def read_subjects(args: argparse.Namespace, checkpoint: Checkpoint) -> list[Shown]:
    """Each prompt or image once; of a family that takes both, each image with each prompt.
    UserError if one cannot be used, or there is none."""
    takes, prompt = checkpoint.family.takes, getattr(args, "prompt", None)
    kinds = " and ".join(f"{kind}s" for kind in takes)
    given = {"prompt": prompt, "prompt_file": args.prompt_file, "image": args.image}
    for flag, value in given.items():
        if value is not None and flag.removesuffix("_file") not in takes:
            raise UserError(f"--{flag} does not fit {checkpoint.path.name}, which makes videos "
                            f"from {kinds}")
    if prompt is not None and args.prompt_file is not None:
        raise UserError("--prompt and --prompt_file exclude each other; give one")
    if "image" in takes and args.image is None and not getattr(args, "check", False):
        raise UserError(f"{checkpoint.path.name} makes videos from {kinds}: add --image with a "
                        "file or a folder")
    prompts: list[str | None] = [None]
    if "prompt" in takes:
        own = [checkpoint.config.defaults.prompt if prompt is None else prompt]
        prompts = list(dict.fromkeys(read_prompts(args.prompt_file) if args.prompt_file else own))
    for text in prompts:
        check_text("a prompt", text or "")
    say_unknown(checkpoint, [text for text in prompts if text is not None])
    shown = []
    for image in [None] if args.image is None else find_images(args.image):
        facts = {}
        if image is not None:
            # checked and let go: there may be thousands
            read_image(image, note=lambda text: print(f"note: {text}"))
            facts = {"image": image.name, "image_sha256": sha256(image)}
        for text in prompts:
            name = " ".join(part for part in (image and image.name, text) if part)
            identity = facts if text is None else {"prompt": text, **facts}
            shown.append(Shown(name, identity, text, image))
    return shown


def say_unknown(checkpoint: Checkpoint, prompts: Sequence[str]) -> None:
    """Print what of the prompts the checkpoint cannot show, because it was not trained on it."""
    name, words = checkpoint.path.stem, checkpoint.words
    outside = list(dict.fromkeys(word for text in prompts for word in checkpoint.unknown(text)))
    fits = f"; it was trained on such as {checkpoint.config.defaults.prompt!r}, of the words " \
           f"{', '.join(words)}" if words else ""
    if any(not text.strip() for text in prompts):
        print(f"note: a prompt is empty: {name} shows what it likes{'' if outside else fits}")
    if outside:
        more = f" and {len(outside) - 5} more words" if len(outside) > 5 else ""
        print(f"note: {name} cannot show {', '.join(outside[:5])}{more}{fits}")


def _read(file: Path) -> bytes:
    """The content of a file or of standard input, cut one byte after LARGEST."""
    if file != STDIN:
        with file.open("rb") as opened:
            return opened.read(LARGEST + 1)
    if sys.stdin is None:
        raise UserError("--prompt_file -: this process has no standard input")
    if sys.stdin.isatty():
        print("type prompts, one a line; Ctrl-D ends them", file=sys.stderr)
    return sys.stdin.buffer.read(LARGEST + 1)


def read_prompts(file: Path) -> list[str]:
    """The prompts in a file, a pipe or standard input ("-"), one a line; blank lines and # lines
    are skipped. UserError if there are none."""
    what = "standard input" if file == STDIN else f"the prompt file {file}"
    if file.is_dir() or not file.exists() and file != STDIN:
        raise UserError(f"{what} {'is a folder' if file.is_dir() else 'does not exist'}")
    content = once(lambda: _read(file))
    if len(content) > LARGEST:
        raise UserError(f"{what} has more than {LARGEST / 1e6:.0f} MB; it is no list of prompts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{what} has NULs in it, as UTF-16 has; save it as UTF-8")
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]  # not at form feeds, U+2028
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{what} has no prompts")
    return prompts


def loaded(checkpoint: Checkpoint, shown: Iterable[Shown], settings: Settings, running: Running,
           silent: bool = False) -> Pipeline:
    """The pipeline, once what its family encodes first is encoded. Unless silent, says which of
    the first prompts are too long."""
    prompts = list(dict.fromkeys(one.prompt or "" for one in shown))
    device = device_of(running.device)
    checkpoint.family.encode_first(checkpoint.config, prompts, settings, device)
    pipeline = load_described(checkpoint, device, getattr(torch, settings.dtype))
    say_lost_tokens(pipeline, [] if silent else [settings.negative_prompt, *prompts[:1000]])
    return pipeline


def say_lost_tokens(pipeline: Pipeline, texts: Sequence[str]) -> None:
    """Print which prompts are too long for the text encoder, and how much of them it ignores."""
    for text in dict.fromkeys(texts):
        if lost := pipeline.family.lost_tokens(pipeline.networks, text):
            print(f"note: the last {lost} tokens of {text[:40]!r}.. do not fit into the text "
                  "encoder and are left out")


def seeds_of(args: argparse.Namespace) -> Sequence[int]:
    """Those of each subject's videos. UserError if there are none, or one is out of range."""
    check("--num_videos", args.num_videos, int, Range(1, 1_000_000_000))
    first = args.seed or 0
    for seed in (first, first + args.num_videos - 1):
        check("--seed", seed, int, SEED)
    return range(first, first + args.num_videos)
