"""A checkpoint's config: its family, the sizes of its networks, and the settings its videos are
made with."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from .fields import PART, SEED, Range, UserError, check, check_fields, short
from .models.autoencoder import AutoencoderConfig
from .models.unet import SkeletonConfig
from .samplers import TRAIN_STEPS, DDIMConfig, EulerConfig

SIDE, GUIDANCE = Range(1, 8192), Range(-1000, 1000)
LETTERS = 10_000  # of a text


def check_text(name: str, text: str) -> None:
    """UserError for what is no text that a prompt could be."""
    check(name, text, str)
    if len(text) > LETTERS or "\0" in text:
        what = "NUL in it" if "\0" in text else f"{len(text):,} letters"
        raise UserError(f"{name} has {what}; up to {LETTERS:,} letters of text are possible")


@dataclass(frozen=True)
class Sampling:
    """Settings that a checkpoint recommends and that may be changed for a video. Values here are
    VideoCrafter2's (the paper's Table 4); texts are what `--help` says. UserError for a value that
    no checkpoint could take."""

    height: Annotated[int, "pixels", SIDE] = 320
    width: Annotated[int, "pixels", SIDE] = 512
    steps: Annotated[int, "denoising steps; best a divisor of 1000", Range(1, TRAIN_STEPS)] = 50
    eta: Annotated[float, "share of fresh noise a step, 0 to 1", PART] = 1.0
    guidance_scale: Annotated[float, "of classifier-free guidance; 1 is none", GUIDANCE] = 12.0
    first_guidance_scale: Annotated[float | None, "of the first frame, linear to the last one's",
                                    GUIDANCE] = None
    guidance_rescale: Annotated[float, "share of guidance's rise in contrast that is taken back",
                                PART] = 0.0
    fps: Annotated[int, "key frames a second, as the model is told and they play",
                   Range(1, 1000)] = 8
    negative_prompt: Annotated[str, "what guidance leads away from"] = ""
    motion_bucket_id: Annotated[int, "amount of motion, 0 to 255", Range(0, 255)] = 127
    noise_aug_strength: Annotated[float, "noise on the image: more lets the video leave it",
                                  PART] = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        check_text("negative_prompt", self.negative_prompt)

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch has a part in the result."""
        return self.guidance_scale != 1 or self.first_guidance_scale not in (None, 1)


@dataclass(frozen=True)
class Defaults(Sampling):
    """A checkpoint's own settings, its own prompt, and the preset (`settings.PRESETS`) that it is
    best made with."""

    prompt: str = "A panda eats a pizza, wearing space suit, closeup, photorealistic"
    preset: str = "paper"


@dataclass(frozen=True)
class ModelConfig:
    """encoder: of what the video is made from; its class is the family's choice, as the network's
    is."""

    family: str
    unet: SkeletonConfig
    vae: AutoencoderConfig
    encoder: Any
    sampler: DDIMConfig | EulerConfig
    defaults: Defaults

    def __post_init__(self) -> None:
        if not self.unet.channel_mult or not self.vae.channel_mult:
            raise UserError("channel_mult is empty; a network has at least one level")

    @property
    def side(self) -> int:
        """Pixels of which a video's height and width are multiples."""
        return self.vae.factor * 2 ** (len(self.unet.channel_mult) - 1)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def like(self, text: str) -> ModelConfig:
        """The config of the same classes that `to_json` wrote. UserError, which names the field, on
        anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is not JSON: {error}") from error
        return build(self, values)


INT, FLOAT = Range(0, 1 << 20), Range(-1e6, 1e6)  # what any number may be
RANGES: dict[str, Range] = {  # what a field of that name may be, or each item of it; else as above
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels"), Range(1, 64)),
    **dict.fromkeys(("channels", "context_dim", "condition_dim", "out"), Range(1, 16384)),
    **dict.fromkeys(("channel_mult", "groups", "heads", "head_dim", "patch_size"), Range(1, 1024)),
    **dict.fromkeys(("res_blocks", "transformer_depth"), Range(1, 16)),
    **dict.fromkeys(("context_length", "vocab_size", "width", "image_size"), Range(1, 1 << 20)),
    **dict.fromkeys(("beta_start", "beta_end"), Range(1e-12, 0.9)),
    **dict.fromkeys(("outer_eps", "scale", "sigma_min", "sigma_max", "rho"), Range(1e-12, 1e6)),
    **dict.fromkeys(("seed", "draw_seed"), SEED),
    "frames": Range(2, 1024),
    "consistency": Range(0, TRAIN_STEPS),
    "data_scale": Range(1e-3, 1.0),
    "data_scale_steps": Range(1, TRAIN_STEPS),
    "layers": Range(1, 128),
}
ITEMS = 16  # of a list


def build(like: Any, values: Any, where: str = "") -> Any:
    """A dataclass from what `asdict` and JSON made of one; like: one of the same classes. What a
    file of an older version lacks has its class's default. UserError, which names the field, on
    anything else."""
    if not isinstance(values, dict):
        raise UserError(f"{where or 'it'} is {short(values)}, not an object of fields")
    known = {field.name: field for field in fields(like)}
    if unknown := [name for name in values if name not in known]:
        raise UserError(f"{where}{unknown[0][:40]!r} is no field that this version knows")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}{name} is missing")
    hints = get_type_hints(type(like))
    built = {}
    for name, value in values.items():
        if is_dataclass(inner := getattr(like, name)):
            built[name] = build(inner, value, f"{where}{name}.")
        else:
            built[name] = _read(hints[name], value, f"{where}{name}", name)
    try:
        return type(like)(**built)
    except UserError as error:  # what the class itself asks for
        raise UserError(f"{where.removesuffix('.') or 'it'}: {error}") from error


def _read(hint: Any, value: Any, where: str, name: str) -> Any:
    """A value of JSON as its field's type has it, within the range of the field's name. UserError
    if it is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and value is not None:
        return _read(next(kind for kind in inner if kind is not NoneType), value, where, name)
    if origin is tuple and isinstance(value, list):
        if len(value) > ITEMS:
            raise UserError(f"{where} has {len(value):,} items; up to {ITEMS} are possible")
        return tuple(_read(inner[0], item, where, name) for item in value)
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    check(where, value, hint, RANGES.get(name, {int: INT, float: FLOAT}.get(hint)))
    if hint is str:
        check_text(where, value)
    return value
