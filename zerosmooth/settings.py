"""All that decides a video, beside its checkpoint, its subject and its seed: one set of settings, checked once.

A field is all that an option needs: its default and what it means, which `--help` says. From it come a flag of that
name (`cli.arguments.FLAGS` has the exception), a keyword of `Pipeline.sample`, a change in a row of the evaluation, an
entry in records.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import types
import typing
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch

from .bus import Correction
from .cascade import IDLE, METHODS, Cascade
from .config import ModelConfig, Sampling
from .family import Family
from .fields import Range, check_fields, short

PRESETS: dict[str, dict[str, Any]] = {  # named sets of settings; what is said beside one goes before it
    "paper": {},
    "anchored": {"prediction": True, "spatial": False, "temporal": False},
}
PRESET_TEXTS = {
    "paper": "key frames' hidden states correct those of the longer videos' attention",
    "anchored": "key frames' predictions correct those of the longer videos, which keep them: not in the paper",
}
AT_A_TIME = Range(1, 1 << 20)  # frames
T = TypeVar("T")


@dataclass(frozen=True)
class Settings(Sampling):
    """`settings_for` fills in a checkpoint's own; the cascade's frames are the key frames."""

    cascade: Cascade = Cascade()
    preset: Annotated[str, f"a named set of settings: {', '.join(PRESETS)}"] = "paper"
    resize: Annotated[Literal["crop", "pad", "stretch"], "how an image gets the video's size"] = "crop"
    decode_chunk_size: Annotated[
        int, "frames decoded at a time; a decoder that mixes frames fades between chunks", AT_A_TIME
    ] = 16
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], "of the networks"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cascade.method == "freenoise" and self.eta != 0:
            raise ValueError(f"eta={self.eta} with freenoise, whose repeated noise fresh noise would cover; use 0")

    def check(self, config: ModelConfig) -> None:
        """ValueError, with what would fit, if a checkpoint of this config cannot make such a video."""
        trained = config.unet.frames
        if not 2 <= self.cascade.frames <= trained:
            raise ValueError(
                f"{self.cascade.frames} key frames; this network was trained on {trained}: use 2 to {trained}"
            )
        for name, size in {"height": self.height, "width": self.width}.items():
            if size < config.side or size % config.side:
                near = max(config.side, round(size / config.side) * config.side)
                raise ValueError(f"{name} {size} is not a multiple of {config.side} pixels; {near} is")
        config.sampler.sampler(self.steps, self.eta)

    def summary(self) -> str:
        """One line of which method makes the longer videos."""
        method = self.cascade.method
        if method != "zerosmooth":
            return f"method {method}: {METHODS[method]}"
        return f"preset {self.preset}: {PRESET_TEXTS[self.preset]}"

    def as_json(self) -> dict[str, Any]:
        """As `json.loads` gives it back."""
        return json.loads(json.dumps(asdict(self)))

    def fps_of(self, stage: int) -> float:
        """Frames a second of a stage, as its network is told."""
        return float(self.fps * self.cascade.scale_of(stage))


@dataclass(frozen=True)
class Running:
    """Where and in which pieces a video is computed: less memory, the same video up to rounding."""

    device: Annotated[str, "cpu, cuda, cuda:1, .."] = "cpu"
    offload: Annotated[bool, "keep hidden states that wait for the next stage or step in CPU memory"] = False
    sequential_guidance: Annotated[bool, "run the branches of guidance one after the other: half the activations"] = (
        False
    )
    frame_chunk: Annotated[int | None, "frames at a time in layers that see them one by one", AT_A_TIME] = None
    compile: Annotated[bool, "compile the layers between attention modules, which takes minutes at first"] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if device_of(self.device).type == "cpu" and self.compile and not has_compiler():
            raise ValueError("compile needs a C++ compiler (g++, or what CXX names), and none is there; leave it out")

    def idle(self, settings: Settings, guided: bool) -> Iterator[str]:
        """What does nothing to a video of such settings, in words. guided: whether the network runs in two branches."""
        cascade = settings.cascade
        if self.offload and device_of(self.device).type == "cpu":
            yield "offload does nothing on the CPU, whose memory is where hidden states wait anyway"
        elif self.offload and cascade.reuse == 1 and (not cascade.scales or cascade.method == "direct"):
            yield "offload does nothing here: no stage waits for the hidden states of another"
        if self.compile and device_of(self.device).type == "cpu":
            yield "compile takes minutes at first and makes nothing faster on a CPU (docs/speed.md)"
        if self.sequential_guidance and not guided:
            yield "sequential_guidance does nothing here: the network runs in one branch of guidance alone"


def settings_for(family: Family, config: ModelConfig, before: Settings | None = None, **asked: Any) -> Settings:
    """A checkpoint's own settings, changed by a preset, changed by what was asked: fields of `Settings`, or of the
    cascade or the correction in it, by name. before: settings to start from instead; another method or preset brings
    its own cascade. ValueError for what there is not, does not fit, or would do nothing."""
    known = [option.name for option in options(Settings)]
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"there is no setting {unknown[0]!r}; use one of {', '.join(known)}")
    kept = {} if before is None else _kept(family, config, before, asked)
    if idle := [name for name in asked if name in family.idle]:
        source = " and ".join(f"{kind}s" for kind in family.takes)
        raise ValueError(f"{idle[0]} does nothing to {family.name}, which makes videos from {source}; leave it out")
    if family.told_guidance(config):
        for name in ("negative_prompt", "first_guidance_scale", "guidance_rescale"):
            if name in asked:
                raise ValueError(f"{name} does nothing to a network that is told the guidance scale; leave it out")
    own = {field.name: getattr(config.defaults, field.name) for field in fields(Sampling)}
    own |= {"frames": config.unet.frames, "decode_chunk_size": config.vae.decode_chunk_size}
    said = {**kept, **asked}
    method = said.get("method", Cascade.method)
    if method == "freenoise":
        own["eta"] = 0.0  # fresh noise would cover the one that it repeats
    preset = said.get("preset", config.defaults.preset if method == Cascade.method else "paper")
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}; use one of {', '.join(PRESETS)}")
    settings = change(Settings(), **{**own, **PRESETS[preset], **said, "preset": preset})
    settings.check(config)
    for name, reason in _idle(settings):
        if name in asked:
            raise ValueError(f"{name} does nothing {reason}; leave it out")
    cascade, steps = settings.cascade, len(config.sampler.sampler(settings.steps, settings.eta))
    first = cascade.first_step(steps)
    if "join" in asked and cascade.join > 0 == first:
        raise ValueError(f"join={cascade.join} comes to none of {steps} steps; use more, or leave it out")
    if "reuse" in asked and cascade.reuse > 1 and not any(i % cascade.reuse for i in range(first + 1, steps)):
        raise ValueError(f"reuse={cascade.reuse} reuses nothing in {steps - first} steps of all stages; leave it out")
    return settings


def _kept(family: Family, config: ModelConfig, before: Settings, asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when settings were made that `asked` is to change, as far as it still has a meaning."""
    made_by = {"method": before.cascade.method, "preset": before.preset}
    plain = values(settings_for(family, config, None, **made_by))
    kept = {name: value for name, value in values(before).items() if value != plain[name] and name not in family.idle}
    if any(asked.get(name, value) != value for name, value in made_by.items()):
        own = values(Cascade())
        return {name: value for name, value in kept.items() if name not in own or name in ("frames", "scales")}
    return {**made_by, **kept}


def _idle(settings: Settings) -> Iterator[tuple[str, str]]:
    """Names of settings that decide nothing beside the others, and why."""
    cascade, correction = settings.cascade, settings.cascade.correction
    any_scale = ("frames", "scales", "method", "reuse")
    every = [option.name for option in options(Cascade) if option.name not in any_scale]
    parts = [option.name for option in options(Correction)]
    drawn = ["a1_probability", "draw_seed"]
    states = ["strength", "strength_schedule", "kv_operator", *drawn]  # settings of how hidden states are corrected
    for idle, names, reason in (
        (not cascade.scales, every, "at scale 1, where no stage follows the first"),
        (True, IDLE[cascade.method], f"to {cascade.method}"),
        ("correction" in IDLE[cascade.method], parts, f"to {cascade.method}"),
        (
            not (correction.spatial or correction.temporal),
            states,
            f"where no hidden states are corrected (preset {settings.preset}; with preset paper they are)",
        ),
        (cascade.strength == 0, [*states[1:], "spatial", "temporal"], "at strength=0"),
        (not correction.spatial, states[2:], "where spatial attention is not corrected"),
        (correction.kv_operator == "S", drawn, "to kv_operator S, for which nothing is drawn"),
        (not settings.guided, ["negative_prompt"], "without guidance (guidance_scale=1)"),
    ):
        if idle:
            yield from ((name, reason) for name in names)


def default_dtype(device: torch.device) -> str:
    """Of the networks, where nothing else is said."""
    return "float32" if device.type == "cpu" else "float16"


def has_compiler() -> bool:
    """Whether there is a C++ compiler that torch would find."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


def device_of(name: str | torch.device | None) -> torch.device:
    """The device asked for, or a CUDA one where there is one. ValueError if it is none, or not there; a warning where
    nothing is tested."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {short(name)} is no device; use cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:  # torch has no one class for it
            raise ValueError(f"device {name} does not work with this torch; use cpu or cuda") from error
        warnings.warn(f"nothing is tested on {device.type}, only on cpu and cuda: compare with the CPU's", stacklevel=2)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


@dataclass(frozen=True)
class Option:
    """A field of a dataclass, or of one within it. kind: its type; text: what it means; choices: if it has some."""

    name: str
    kind: type
    text: str
    default: Any
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """Its value, of a text. ValueError if it is none."""
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError(f"{self.name}={text}: true or false is needed")
            return text == "true"
        try:
            return self.kind(text)
        except ValueError as error:
            raise ValueError(f"{self.name}={text}: {self.kind.__name__} is needed") from error


def options(of: type) -> Iterator[Option]:
    """The fields of a dataclass that are single values, those of dataclasses within it included."""
    hints = typing.get_type_hints(of, include_extras=True)
    for field in fields(of):
        if is_dataclass(field.default):
            yield from options(type(field.default))
            continue
        hint, *texts = typing.get_args(hints[field.name]) or (hints[field.name],)
        if not texts:
            continue  # not for the command line
        choices: tuple[str, ...] = ()
        if typing.get_origin(hint) is Literal:
            hint, choices = str, typing.get_args(hint)
        elif typing.get_origin(hint) in (types.UnionType, typing.Union):
            hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        yield Option(field.name, hint, texts[0], field.default, choices)


def values(of: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, those of dataclasses within it included, as `change` takes them."""
    found: dict[str, Any] = {}
    for field in fields(of):
        inner = getattr(of, field.name)
        found |= values(inner) if is_dataclass(inner) else {field.name: inner}
    return found


def change(value: T, **changes: Any) -> T:
    """A dataclass with fields changed, its own or by the same names those of dataclasses within it, all at once."""
    own = {}
    for field in fields(value):  # type: ignore[arg-type]
        inner = getattr(value, field.name)
        if field.name in changes:
            own[field.name] = changes[field.name]
        elif dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            own[field.name] = change(inner, **changes)
    return replace(value, **own)  # type: ignore[type-var]
