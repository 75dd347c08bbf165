"""All around the paper's method: baselines, its colour correction, and what is ours.

A method is a file with a function that takes `sample_cascade`'s arguments (`join` also passes xs
and steps, and one with `slides` gets `see`), and an entry in METHODS. A correction of predicted
frames is a file with a `predictions.Lift`, and an entry in LIFTS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor

from ..bus import Correction
from ..cascade import Cascade, sample_cascade
from ..samplers import Sampler
from .ddnm import sample_ddnm
from .diffuseslide import calls, sample_diffuseslide
from .freenoise import sample_freenoise
from .motion import carried
from .predictions import Lift, lines

CORRECTION = tuple(each.name for each in fields(Correction))
OURS = (*CORRECTION, "prediction", "strength", "strength_schedule")  # not for baselines


@dataclass(frozen=True)
class Method:
    text: str  # what every stage after the first does
    sample: Callable[..., list[Tensor]] = sample_cascade
    windows: bool = True  # attention in windows on a bus; else there is none
    corrects: bool = False  # hidden states; else it runs at strength 0
    needs: Mapping[str, Any] = field(default_factory=dict)  # the only values of settings it takes
    idle: tuple[str, ...] = OURS  # settings that are refused with it
    # Of a method that slides windows of its own over frames, each shown its first frame, and told
    # less motion instead of more frames a second: how often it runs the network.
    slides: Callable[[Sampler, Cascade], int] | None = None


def sliding(text: str, **changes: Any) -> Method:
    """DiffuseSlide, or what is left of it with changes."""
    idle = (*OURS, "overlap", "color_correction", "join", "reuse")
    return Method(text, partial(sample_diffuseslide, **changes), windows=False, idle=idle,
                  slides=partial(calls, **changes))


METHODS = {
    "zerosmooth": Method("attention in windows, corrected by the stage before", corrects=True,
                         idle=()),
    "windowed": Method("attention in windows, no correction"),
    "direct": Method("attention over all frames, no correction", windows=False,
                     idle=(*OURS, "overlap", "reuse")),
    "ddnm": Method("windows; key frames' predicted data is stage 0's (Eq. 6 on latents)",
                   sample_ddnm),
    "freenoise": Method("windows; the first frames' noise, repeated in shuffled order",
                        sample_freenoise, needs={"eta": 0.0},  # or it would cover that noise
                        idle=(*OURS, "color_correction", "join")),
    "diffuseslide": sliding("the base video interpolated, noised halfway and denoised in sliding "
                            "windows, with noise put back"),
    "sdedit": sliding("the same without putting noise back", again=0),
}
LIFTS: dict[str, Lift] = {"lines": lines, "carried": carried}  # by setting `prediction`
