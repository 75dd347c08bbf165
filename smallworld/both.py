"""The drawn world and that of far motion, for a network that knows both: half of the scenes each,
which go on for two seconds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from . import draw, far
from .draw import SECONDS, frame_times

__all__ = ["SECONDS", "WORDS", "Scene", "frame_times", "parse", "random_scene", "render"]

Scene = draw.Scene | far.Scene
WORDS = {kind: tuple(dict.fromkeys([*draw.WORDS.get(kind, ()), *far.WORDS.get(kind, ())]))
         for kind in {**draw.WORDS, **far.WORDS}}


def random_scene(rng: random.Random) -> Scene:
    """Any scene of either world."""
    return rng.choice((draw, far)).random_scene(rng)


def parse(prompt: str) -> dict[str, str]:
    """What a prompt asks for. ValueError if it is of neither world."""
    try:
        return draw.parse(prompt)
    except ValueError:
        return far.parse(prompt)


def render(scenes: Sequence[Scene], times: Tensor, size: int = 32) -> Tensor:
    """Frames of scenes of either world. times: b f seconds. Returns b f 3 h w, 0 to 1."""
    return torch.cat([(draw if isinstance(scene, draw.Scene) else far).render([scene], t, size)
                      for scene, t in zip(scenes, times[:, None])])
