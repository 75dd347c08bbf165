"""All that decides a video beside its checkpoint, its subject and its seed, and how it is made.

A field of `Settings`, `Running` or `Output` is all that an option needs: its default, its range and
what it means. Python's keywords, the command line, rows of the evaluation and records use its name.
`idle` alone says which of them do nothing beside which others.
"""

from __future__ import annotations

import os
import shutil
import types
import typing
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import torch

from .bus import Correction, HiddenStateBus
from .cascade import Cascade
from .config import ModelConfig, Sampling
from .extensions import LIFTS, METHODS, OURS
from .family import Family
from .fields import PART, SEED, Range, UserError, check_fields, near, short

ANCHORED = {"prediction": "carried", "spatial": False, "temporal": False}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # what is meant, and its settings
    "paper": ("key frames' hidden states correct longer videos in attention layers; anchored kept "
              "motion better wherever we measured both", {}),
    "anchored": ("key frames' predictions correct longer videos', along the motion, and become a "
                 "part of them: not in the paper", ANCHORED),
    "fast": ("anchored, where longer videos join after three quarters of the steps: at 4x, 2.4 "
             "times the cost of the key frames", {**ANCHORED, "join": 0.75}),
}
SCALES = (1, 2, 4, 8)
AT_A_TIME = Range(1, 1 << 20)  # frames
MOST = Range(1, 1 << 13)  # key frames
NAME = "{prompt}_seed{seed}_{digest}"  # of files: no two results share it


def default_dtype(device: torch.device) -> str:
    """That of the networks, if none is asked for."""
    return "float32" if device.type == "cpu" else "float16"


def has_compiler() -> bool:
    """Whether there is a C++ compiler that torch would find."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


def device_of(name: str | torch.device | None) -> torch.device:
    """The device asked for; for None a CUDA device, if there is one, else the CPU. UserError if
    there is no such device; a warning for a kind on which nothing is tested."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {short(name)} is no device; use cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:  # torch has no one class
            raise UserError(f"device {name} does not work with this torch; use cpu") from error
        warnings.warn(f"nothing is tested on {device.type}: compare with the CPU", stacklevel=2)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device {name}: this machine has {count} CUDA devices; use cpu")
    return device


@dataclass(frozen=True)
class Settings(Sampling):
    """What decides a video; `settings_for` starts from a checkpoint's own values."""

    scale: Annotated[int, "frames for one key frame: 1, 2, 4 or 8; each doubling is a stage"] = 4
    preset: Annotated[str, f"a named set of settings: {', '.join(PRESETS)}"] = "paper"
    method: Annotated[str, f"zerosmooth, or a baseline: {', '.join(list(METHODS)[1:])}"] = (
        "zerosmooth")
    key_frames: Annotated[int, "how many key frames, t0; at most as in training", MOST] = 16
    strength: Annotated[float, "the highest correction strength w_t, 0 to 1", PART] = 0.8
    strength_schedule: Annotated[Literal["linear", "constant"],
                                 "w_t falls with t/T (Eq. 24), or not"] = "linear"
    overlap: Annotated[int | None, "frames that two attention windows share; none: half"] = None
    spatial: Annotated[bool, "correct spatial self- and cross-attention (Eq. 10-14)"] = True
    temporal: Annotated[bool, "correct temporal attention (Eq. 9)"] = True
    kv_operator: Annotated[Literal["A1/A2", "S"],
                           "of spatial keys and values: S, or A1 and A2, drawn for each"] = "A1/A2"
    a1_probability: Annotated[float, "of drawing A1, not A2; 'p > 0.5, p ~ N(0, 1)' is 0.309",
                              PART] = Correction.a1_probability
    draw_seed: Annotated[int, "seed of the draws of A1 and A2", SEED] = 0
    color_correction: Annotated[bool, "match frames' latent colours to key frames' (A.2)"] = False
    prediction: Annotated[str, f"correct predicted frames: none, or along {', '.join(LIFTS)}"] = (
        "none")
    join: Annotated[float, "share of the steps after which longer videos join in", PART] = 0.0
    reuse: Annotated[int, "compute deep features only once in so many steps", Range(1, 1000)] = 1
    resize: Annotated[Literal["crop", "pad", "stretch"],
                      "how an image gets the video's size"] = "crop"
    decode_chunk_size: Annotated[int, "frames decoded at a time; a decoder that mixes frames fades "
                                      "between chunks", AT_A_TIME] = 16
    dtype: Annotated[Literal["float32", "float16", "bfloat16"],
                     "precision of the networks"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in {"scale": SCALES, "preset": PRESETS, "method": METHODS,
                             "prediction": ("none", *LIFTS)}.items():
            if (value := getattr(self, name)) not in values:
                raise UserError(f"{name}={short(value)}; {near(value, values)}")
        if self.overlap is not None and not 0 <= self.overlap < self.key_frames:
            raise UserError(f"overlap={self.overlap} in windows of {self.key_frames} frames; use 0 "
                            f"to {self.key_frames - 1}")
        for name, needed in METHODS[self.method].needs.items():
            if (value := getattr(self, name)) != needed:
                raise UserError(f"{name}={short(value)} with {self.method}; use {needed}")

    @property
    def cascade(self) -> Cascade:
        """The shape of the cascade, and the paper's method with these settings."""
        own = {field.name: getattr(self, field.name) for field in fields(Correction)}
        return Cascade(self.key_frames, (2,) * (self.scale.bit_length() - 1),
                       self.strength if METHODS[self.method].corrects else 0.0,
                       self.strength_schedule, self.overlap, Correction(**own))

    def check(self, family: Family, config: ModelConfig) -> None:
        """UserError, with what would fit, if a checkpoint of this config makes no such video."""
        if self.scale > 1 and not family.dense:
            raise UserError(f"scale={self.scale}; of {family.name} this makes key frames alone: "
                            "use 1, and see the head of its file for more")
        trained = config.unet.frames
        if not 2 <= self.key_frames <= trained:
            raise UserError(f"{self.key_frames} key frames; this network was trained on {trained}: "
                            f"use 2 to {trained}")
        for name, size in {"height": self.height, "width": self.width}.items():
            if size < config.side or size % config.side:
                near = max(config.side, round(size / config.side) * config.side)
                raise UserError(
                    f"{name} {size} is not a multiple of {config.side} pixels; {near} is")
        config.sampler.sampler(self.steps, self.eta)

    def bus(self, device: str | None = None) -> HiddenStateBus | None:
        """For one run; None if the method needs none. device: where hidden states wait."""
        return self.cascade.bus(device) if METHODS[self.method].windows else None

    def first_step(self, steps: int) -> int:
        """The step at which longer videos join: the last one at the latest."""
        return min(round(self.join * steps), steps - 1) if self.scale > 1 else 0

    def summary(self) -> str:
        """One line of which method makes the longer videos."""
        if self.method != "zerosmooth":
            return f"method {self.method}: {METHODS[self.method].text}"
        return f"preset {self.preset}: {PRESETS[self.preset][0]}"

    def fps_of(self, stage: int) -> float:
        """Frames a second of a stage (-1: the last), as its network is told."""
        cascade = self.cascade
        return float(self.fps * cascade.scale_of(stage % cascade.stages))


@dataclass(frozen=True)
class Running:
    """Where and in which pieces a video is computed. It is the same video, up to rounding."""

    device: Annotated[str, "cpu, cuda, cuda:1, .."] = "cpu"
    offload: Annotated[bool, "keep waiting hidden states and deep features in CPU memory"] = False
    sequential_guidance: Annotated[bool, "run the branches of guidance one after the other, for "
                                         "half the activations"] = False
    frame_chunk: Annotated[int | None, "frames at a time in layers that see them one by one",
                           AT_A_TIME] = None
    compile: Annotated[bool, "compile layers between attention modules: minutes at first"] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if device_of(self.device).type == "cpu" and self.compile and not has_compiler():
            raise UserError("compile needs a C++ compiler (g++, or what CXX names); leave it out")


@dataclass(frozen=True)
class Output:
    """Which files are written of a video."""

    gif: Annotated[bool, "write GIF instead of mp4"] = False
    densest_only: Annotated[bool, "write the densest video alone, without key frames"] = False
    side_by_side: Annotated[bool, "also one video of key frames beside the densest video"] = False
    picture: Annotated[bool, "also a picture that compares the stages"] = True
    page: Annotated[bool, "also a web page that plays the stages in step"] = True
    preview: Annotated[bool, "while it runs, keep coarse key frames in preview.gif"] = False
    save_fps: Annotated[float | None, "frames a second at which the densest video plays, if not as "
                                      "the model is told"] = None
    name: Annotated[str, "of the files, with {prompt}, {seed}, {frames}, {digest} (of all that "
                         "decides the video) or any setting"] = NAME

    def __post_init__(self) -> None:
        check_fields(self)


def settings_for(family: Family, config: ModelConfig, before: Settings | None = None,
                 **asked: Any) -> Settings:
    """A checkpoint's own settings, changed by a preset, changed by what was asked, by name.

    before: settings to start from instead; another method or preset keeps what it shares with them.
    UserError for a setting that does not exist, does not fit, or would do nothing.
    """
    known(asked, Settings)
    said = {**({} if before is None else _kept(family, config, before, asked)), **asked}
    own = {field.name: getattr(config.defaults, field.name) for field in fields(Sampling)}
    own |= {"key_frames": config.unet.frames, "decode_chunk_size": config.vae.decode_chunk_size}
    own |= {} if family.dense else {"scale": 1}
    method = said.get("method", Settings.method)
    preset = said.get("preset", config.defaults.preset if method == Settings.method else "paper")
    if method in METHODS:
        own |= METHODS[method].needs
    settings = Settings(**{**own, **PRESETS.get(preset, ("", {}))[1], **said, "preset": preset})
    settings.check(family, config)
    refuse(asked, idle(family, config, settings))
    return settings


def _kept(family: Family, config: ModelConfig, before: Settings,
          asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for when the settings `before` were made, as far as it still has a meaning
    beside what is asked for now."""
    made_by = {"method": before.method, "preset": before.preset}
    own = made_by if before.method == Settings.method else {"method": before.method}
    plain = asdict(settings_for(family, config, None, **own))
    kept = {name: x for name, x in asdict(before).items()
            if x != plain[name] and name not in family.idle}
    if any(asked.get(name, value) != value for name, value in made_by.items()):
        return {name: x for name, x in kept.items() if name not in DENSE}
    return {**made_by, **kept}


DENSE = ("overlap", "color_correction", "join", *OURS)  # settings of stages after the first
DRAWN = ("a1_probability", "draw_seed")
STATES = ("strength", "strength_schedule", "kv_operator", *DRAWN)


def idle(family: Family, config: ModelConfig, s: Settings, running: Running = Running(),
         output: Output = Output()) -> Iterator[tuple[str, str]]:
    """The names of settings that do nothing beside the others, and why."""
    on_cpu = device_of(running.device).type == "cpu"
    steps = len(config.sampler.sampler(s.steps, s.eta))
    first = s.first_step(steps)
    distilled = family.told_guidance(config)
    passes = s.scale > 1 and METHODS[s.method].windows  # hidden states, from stage to stage
    rules: Iterable[tuple[bool, Collection[str], str]] = (
        (True, family.idle, f"to {family.name}, which makes videos from "
                            f"{' and '.join(f'{kind}s' for kind in family.takes)}"),
        (distilled, ("negative_prompt", "first_guidance_scale", "guidance_rescale"),
         "to a guidance-distilled network"),
        (s.scale == 1, DENSE, "at scale 1, where no stage follows the first"),
        (s.scale == 1, ("side_by_side", "densest_only"), "at scale 1, where there is one video"),
        (True, METHODS[s.method].idle, f"to {s.method}"),
        (s.method != Settings.method and s.preset != "paper", ("preset",), "a baseline can use"),
        (not (s.spatial or s.temporal), STATES,
         f"where no hidden states are corrected (preset {s.preset}; with preset paper they are)"),
        (s.strength == 0, (*STATES[1:], "spatial", "temporal"), "at strength=0"),
        (not s.spatial, STATES[2:], "where spatial attention is not corrected"),
        (s.kv_operator == "S", DRAWN, "to kv_operator S, for which nothing is drawn"),
        (not s.guided, ("negative_prompt",), "without guidance (guidance_scale=1)"),
        (s.join > 0 and first == 0, ("join",), f"in {steps} steps, of which it is less than one"),
        (s.reuse > 1 and not any(i % s.reuse for i in range(first + 1, steps)), ("reuse",),
         f"in {steps - first} steps of all stages"),
        (output.save_fps is not None and not family.told_rate(config), ("fps",),
         f"beside save_fps: {family.name} is not told it"),
        (on_cpu, ("offload",), "on the CPU, in whose memory hidden states wait anyway"),
        (not passes and s.reuse == 1, ("offload",), "where no hidden states wait"),
        (on_cpu, ("compile",), "for speed on a CPU, and takes minutes (docs/speed.md)"),
        (not family.guided(config, s), ("sequential_guidance",), "where guidance has one branch"),
    )
    for applies, names, reason in rules:
        if applies:
            yield from ((name, reason) for name in names)


def refuse(asked: Collection[str], idle: Iterable[tuple[str, str]]) -> None:
    """UserError for the first of the names asked for that does nothing."""
    for name, reason in idle:
        if name in asked:
            raise UserError(f"{name} does nothing {reason}; leave it out")


def known(asked: Iterable[str], *of: type, beside: Iterable[str] = ()) -> None:
    """UserError for a name that is no option of these dataclasses. beside: names that are none, but
    may be what was meant, where `running` is one."""
    names = [option.name for kind in of for option in options(kind)]
    for name in asked:
        if name not in names:
            if beside and name in (option.name for option in options(Running)):
                hint = f"write running=Running({name}=..)"
            else:
                hint = near(name, [*names, *beside])
            raise UserError(f"there is no setting {short(name)}; {hint}")


KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Option:
    """A field of `Settings`, `Running` or `Output`. kind: its type; text: what it means."""

    name: str
    kind: type
    text: str
    default: Any
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value that a text gives it. UserError if the text gives none."""
        if text == "none" and self.default is None:
            return None
        if self.kind is bool:
            if text not in ("true", "false"):
                raise UserError(f"{self.name}={short(text)}; true or false is needed")
            return text == "true"
        try:
            return self.kind(text)
        except ValueError as error:
            raise UserError(f"{self.name}={short(text)}; {KINDS[self.kind]} is needed") from error


def options(of: type) -> Iterator[Option]:
    """The fields of a dataclass that have a text."""
    hints = typing.get_type_hints(of, include_extras=True)
    for field in fields(of):
        hint, *texts = typing.get_args(hints[field.name]) or (hints[field.name],)
        choices: tuple[str, ...] = ()
        if typing.get_origin(hint) is Literal:
            hint, choices = str, typing.get_args(hint)
        elif typing.get_origin(hint) in (types.UnionType, typing.Union):
            hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        if texts:
            yield Option(field.name, hint, texts[0], field.default, choices)
