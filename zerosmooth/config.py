"""A checkpoint's config: its family, the sizes of its networks, and the settings its videos are made with."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from .models.autoencoder import AutoencoderConfig
from .models.text import TextConfig
from .models.videocrafter import VC1, VC2, UNetConfig
from .samplers import DDIMConfig


@dataclass(frozen=True)
class Defaults:
    """What `sample.py` uses where it is not told otherwise; the paper's Table 4 for the published checkpoints."""

    height: int = 320  # pixels
    width: int = 512
    steps: int = 50
    eta: float = 1.0  # share of fresh noise a step
    guidance_scale: float = 12.0
    fps: int = 8  # of the key frames: as condition and as playing speed
    prompt: str = "A panda eats a pizza, wearing space suit, closeup, photorealistic"
    negative_prompt: str = ""  # the unconditional branch of guidance


@dataclass(frozen=True)
class ModelConfig:
    family: str
    unet: UNetConfig
    vae: AutoencoderConfig
    text: TextConfig
    sampler: DDIMConfig
    defaults: Defaults

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """ValueError on anything that is not a config of this version."""
        try:
            return _build(ModelConfig, json.loads(text))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a config of this version: {error}") from error


FAMILIES = {  # the published checkpoints; a small one has the same classes in another size
    "vc2": ModelConfig("vc2", VC2, AutoencoderConfig(), TextConfig(), DDIMConfig(data_scale=0.7), Defaults()),
    "vc1": ModelConfig("vc1", VC1, AutoencoderConfig(), TextConfig(), DDIMConfig(), Defaults()),
}


def _build(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from what `asdict` and JSON made of it."""
    hints = get_type_hints(kind)
    if missing := hints.keys() ^ values.keys():
        raise KeyError(f"{kind.__name__}: {', '.join(sorted(missing))}")
    built = {}
    for field in fields(kind):
        value = values[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            value = _build(hints[field.name], value)
        elif isinstance(value, list):
            value = tuple(value)
        built[field.name] = value
    return kind(**built)
