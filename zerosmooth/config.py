"""A checkpoint's config: its family, the sizes of its networks, and its recommended settings."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from .fields import PART, SEED, Range, UserError, check, check_fields, short
from .samplers import STEPS

SIDE, GUIDANCE, RATES = Range(1, 8192), Range(-1000, 1000), Range(1, 1000)
LETTERS = 10_000  # of a text


def check_letters(name: str, text: str) -> None:
    """UserError for a text that nothing here takes."""
    check(name, text, str)
    if len(text) > LETTERS or "\0" in text:
        what = "a NUL" if "\0" in text else f"{len(text):,} letters"
        raise UserError(f"{name} has {what}; use up to {LETTERS:,} letters of text")


def check_text(name: str, text: str) -> None:
    """UserError for a text that cannot be a prompt."""
    check_letters(name, text)
    if odd := re.search("[\ud800-\udfff]", text):  # half a character, or a byte of another code
        raise UserError(f"{name} is no whole Unicode at {text[odd.start() :][:20]!r}; write it in "
                        "UTF-8")


@dataclass(frozen=True)
class Sampling:
    """Settings that a checkpoint recommends, and that may be changed for a video. The values here
    are VideoCrafter2's (the paper's Table 4); `--help` shows the texts. UserError for a value that
    no checkpoint takes."""

    height: Annotated[int, "pixels", SIDE] = 320
    width: Annotated[int, "pixels", SIDE] = 512
    steps: Annotated[int, "denoising steps; best a divisor of 1000", STEPS] = 50
    eta: Annotated[float, "share of fresh noise a step, 0 to 1", PART] = 1.0
    guidance_scale: Annotated[float, "of classifier-free guidance; 1 is none", GUIDANCE] = 12.0
    first_guidance_scale: Annotated[
        float | None, "of the first frame; from it, the scale rises linearly", GUIDANCE] = None
    guidance_rescale: Annotated[
        float, "share of the contrast added by guidance that is taken back", PART] = 0.0
    fps: Annotated[int, "key frames a second, for the model and for the files", RATES] = 8
    negative_prompt: Annotated[str, "what guidance leads away from"] = ""
    motion_bucket_id: Annotated[int, "amount of motion, 0 to 255", Range(0, 255)] = 127
    noise_aug_strength: Annotated[
        float, "noise on the image: with more, the video departs further from it", PART] = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        check_text("negative_prompt", self.negative_prompt)

    @property
    def guided(self) -> bool:
        """Whether the result depends on the unconditional branch."""
        return self.guidance_scale != 1 or self.first_guidance_scale not in (None, 1)


@dataclass(frozen=True)
class Defaults(Sampling):
    """A checkpoint's recommended settings, prompt and preset (`settings.PRESETS`)."""

    prompt: str = "A panda eats a pizza, wearing space suit, closeup, photorealistic"
    preset: str = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("prompt", self.prompt)


@dataclass(frozen=True)
class ModelConfig:
    """unet, vae, encoder: as `Family.unet`, `autoencoder` and `encoder` take them. sampler: a
    `DDIMConfig`, an `EulerConfig`, or what has their method `sampler`."""

    family: str
    unet: Any
    vae: Any
    encoder: Any
    sampler: Any
    defaults: Defaults

    def __post_init__(self) -> None:
        if () in (getattr(self.unet, "channel_mult", None), self.vae.channel_mult):
            raise UserError("channel_mult is empty; a network has at least one level")

    @property
    def side(self) -> int:
        """A video's height and width are multiples of so many pixels."""
        return self.vae.factor * self.unet.side

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def like(self, text: str) -> ModelConfig:
        """The config that `to_json` wrote as a text, with the classes of this one. UserError, which
        names the field, for any other text."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is not JSON: {error}") from error
        return build(self, values)


INT, FLOAT = Range(0, 1 << 20), Range(-1e6, 1e6)  # what any number may be
RANGES: dict[str, Range] = {  # and what fields of these names may be, or each of their items
    **dict.fromkeys(("res_blocks", "transformer_depth"), Range(1, 16)),
    **dict.fromkeys(("outer_eps", "scale", "data_scale", "sigma_min", "sigma_max", "rho"),
                    Range(1e-12, 1e6)),
    "beta_start": Range(1e-12, 0.9), "beta_end": Range(1e-12, 0.9), "frames": Range(2, 1024),
    "layers": Range(1, 128), "seed": SEED, "draw_seed": SEED,
}
ITEMS = 16  # of a list


def build(like: Any, values: Any, where: str = "") -> Any:
    """A dataclass from what `asdict` and JSON made of it, with the classes of `like`.

    Fields that a file of an older version lacks get their defaults. UserError, which names the
    field, for anything else.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'it'} is {short(values)}, not an object of fields")
    known, hints = {field.name: field for field in fields(like)}, get_type_hints(type(like))
    if unknown := [name for name in values if name not in known]:
        raise UserError(f"{where}{unknown[0][:40]!r} is no field that this version knows")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}{name} is missing")
    built = {name: build(getattr(like, name), value, f"{where}{name}.")
             if is_dataclass(getattr(like, name)) else
             _read(hints[name], value, f"{where}{name}", RANGES.get(name))
             for name, value in values.items()}
    try:
        return type(like)(**built)
    except UserError as error:  # from the class itself
        raise UserError(f"{where.removesuffix('.') or 'it'}: {error}") from error


def _read(hint: Any, value: Any, where: str, limit: Range | None) -> Any:
    """A value of JSON as a field of this type has it. UserError if it is none, or out of range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and value is not None:
        return _read(next(kind for kind in inner if kind is not NoneType), value, where, limit)
    if origin is tuple and isinstance(value, list):
        if len(value) > ITEMS:
            raise UserError(f"{where} has {len(value):,} items; up to {ITEMS} are possible")
        return tuple(_read(inner[0], item, where, limit) for item in value)
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    check(where, value, hint, limit or {int: INT, float: FLOAT}.get(hint))
    if hint is str:
        check_letters(where, value)
    return value
