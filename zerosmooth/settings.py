"""All that decides a video, beside its checkpoint, its subject and its seed: one set of settings, checked once.

A field is all that an option needs: its default and what it means, which `--help` says. From it come a flag of that
name on the command line, a keyword of `Pipeline.sample`, a change in a row of the evaluation, an entry in records.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from .cascade import Cascade
from .config import ModelConfig, Sampling
from .family import Family

PRESETS: dict[str, dict[str, Any]] = {  # named sets of settings; what is said beside one goes before it
    "paper": {},
    "anchored": {"prediction": True, "spatial": False, "temporal": False},  # key frames are those of the base video
}
STATES = ("kv_operator", "a1_probability", "draw_seed", "strength", "strength_schedule")  # of correcting hidden states
T = TypeVar("T")


@dataclass(frozen=True)
class Settings(Sampling):
    """`settings_for` fills in a checkpoint's own; the cascade's frames are the key frames."""

    cascade: Cascade = Cascade()
    preset: Annotated[str, f"a named set of settings: {', '.join(PRESETS)}"] = "paper"
    resize: Annotated[Literal["crop", "pad", "stretch"], "how an image gets the video's size"] = "crop"
    decode_chunk_size: Annotated[int, "frames decoded at a time; a decoder that mixes frames fades between chunks"] = 16
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], "of the networks"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decode_chunk_size < 1:
            raise ValueError(f"decode_chunk_size={self.decode_chunk_size}; it must be at least 1")
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def fps_of(self, stage: int) -> float:
        """Frames a second of a stage, as its network is told."""
        return float(self.fps * self.cascade.rate(stage))


@dataclass(frozen=True)
class Running:
    """Where and in which pieces a video is computed: less memory, the same video up to rounding."""

    device: Annotated[str, "cpu, cuda, cuda:1, .."] = "cpu"
    offload: Annotated[bool, "keep hidden states that wait for the next stage in CPU memory"] = False
    sequential_guidance: Annotated[bool, "run the branches of guidance one after the other: half the activations"] = (
        False
    )
    frame_chunk: Annotated[int | None, "frames at a time in layers that see them one by one"] = None

    def __post_init__(self) -> None:
        if self.frame_chunk is not None and self.frame_chunk < 1:
            raise ValueError(f"frame_chunk={self.frame_chunk}; it must be at least 1")


def settings_for(family: Family, config: ModelConfig, **asked: Any) -> Settings:
    """A checkpoint's own settings, changed by a preset, changed by what was asked: fields of `Settings`, or of the
    cascade or the correction in it, by name. ValueError for what there is not, does not fit, or would do nothing."""
    known = [option.name for option in options(Settings)]
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"there is no setting {unknown[0]!r}; use one of {', '.join(known)}")
    if idle := [name for name in asked if name in family.idle]:
        source = " and ".join(f"{kind}s" for kind in family.takes)
        raise ValueError(f"{idle[0]} does nothing to {family.name}, which makes videos from {source}; leave it out")
    own = {field.name: getattr(config.defaults, field.name) for field in fields(Sampling)}
    own |= {"frames": config.unet.frames, "decode_chunk_size": config.vae.decode_chunk_size}
    method = asked.get("method", Cascade.method)
    if method == "freenoise":
        own["eta"] = 0.0  # fresh noise would cover the one that it repeats
    preset = asked.get("preset", config.defaults.preset if method == Cascade.method else "paper")
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}; use one of {', '.join(PRESETS)}")
    settings = change(Settings(), **{**own, **PRESETS[preset], **asked, "preset": preset})
    correction = settings.cascade.correction
    if not (correction.spatial or correction.temporal) and (idle := [name for name in asked if name in STATES]):
        raise ValueError(
            f"{idle[0]} does nothing where no hidden states are corrected (preset {preset!r}); use 'paper'"
        )
    settings.check(config)
    return settings


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
