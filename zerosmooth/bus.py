"""HiddenStateBus: carries each attention module's hidden states from one stage to the next.

Stage s of the cascade runs the network with `bus.stage(s, ...)` as its `stage` argument. Each
attention module calls `exchange`, which takes what the same module published in stage s-1, corrects
this stage's states with it (Eq. 9-14) and publishes the corrected ones for stage s+1; and `blend`,
which mixes the outputs of attention without and with correction (Eq. 15). States are dropped once
taken.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor, nn

from .offload import Memory, Waiting
from .operators import A1, A2, Operator, S, back_project

State = dict[str, Tensor]


@dataclass(frozen=True)
class Correction:
    """What is corrected, and with which operator: the rows of Table 3 before "+ CCS"."""

    spatial: bool = True  # spatial self-attention and cross-attention (Eq. 10-14)
    temporal: bool = True  # temporal attention (Eq. 9)
    kv_operator: str = "A1/A2"  # for spatial k and v: A1 or A2 at random, or "S"
    a1_probability: float = 1 - NormalDist().cdf(0.5)  # of drawing A1: p > 0.5, p ~ N(0, 1)
    draw_seed: int = 0  # draws depend on it, module, stage and step only


class BusError(RuntimeError):
    """A module took what was never published, or published again before that was taken."""


class HiddenStateBus:
    """Hands hidden states from each stage of a cascade to the next.

    frames: t0, frames of stage 0 and of a temporal attention window. scales: n of stages 1, 2, ..
    overlap: frames shared by neighbouring windows; None: half. device: where states wait to be
    taken; None: where they are made; "cpu": in host memory (copies to and from a CUDA device
    overlap its work). ValueError for numbers that make no cascade.
    """

    def __init__(self, frames: int, scales: tuple[int, ...] = (), overlap: int | None = None,
                 correction: Correction = Correction(),
                 device: str | torch.device | None = None) -> None:
        self.frames, self.scales, self.correction = frames, tuple(scales), correction
        self.overlap = frames // 2 if overlap is None else overlap
        if frames < 1 or any(n < 2 for n in scales):
            raise ValueError(f"{frames=} and {scales=}; at least 1 frame, and 2 or more a stage")
        if not 0 <= self.overlap < frames:
            raise ValueError(f"overlap={overlap} in windows of {frames}; use 0 to {frames - 1}")
        self.memory = Memory(None if device is None else torch.device(device))
        self._waiting: dict[tuple[int, int, str], dict[str, Waiting]] = {}

    def stage(self, index: int, step: int = 0, strength: float = 1.0) -> Stage:
        """The bus as stage `index` sees it at denoising step `step` with w_t = `strength`."""
        if not 0 <= index <= len(self.scales):
            raise ValueError(f"stage {index} of a cascade of {len(self.scales) + 1} stages")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is not in [0, 1]")
        return Stage(self, index, step, strength, n=self.scales[index - 1] if index else 1)

    def publish(self, stage: int, module: str, states: State, branch: int = 0) -> None:
        """Leave a module's states for the next stage. BusError if its last were not taken yet."""
        key = stage, branch, module
        if key in self._waiting:
            raise BusError(f"stage {stage} published {module!r} twice before it was read")
        self._waiting[key] = self.memory.put(states)

    def take(self, stage: int, module: str, branch: int = 0) -> State:
        """What a module of `stage` published, which is then dropped. BusError if there is none."""
        key = stage, branch, module
        if key not in self._waiting:
            raise BusError(f"stage {stage} published nothing for {module!r}; run stages in order")
        states = self._waiting.pop(key)
        # modules run in one order in every stage: the first left is the next taken, so prefetch it
        following = (held for at, held in self._waiting.items() if at[:2] == key[:2])
        return self.memory.take(states, ahead=next(following, {}))

    def clear(self) -> None:
        """Drop all that waits, for instance after an interrupted step."""
        self.memory.clear()
        self._waiting.clear()

    @property
    def held_bytes(self) -> int:
        """Size of the states that wait to be read."""
        return self.memory.held_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that ever waited at once."""
        return self.memory.peak_bytes


@dataclass(frozen=True)
class Stage:
    """The bus as one stage sees it during one forward pass: what a network gets as `stage`."""

    bus: HiddenStateBus = field(repr=False)
    index: int  # 0 is the stage of key frames
    step: int
    strength: float  # w_t
    n: int  # frames of this stage for one of the stage before; 1 in stage 0
    branch: int = 0  # of guidance, if its branches run one by one: each has its own states

    @property
    def window(self) -> int:
        """Frames of a temporal attention window: those of stage 0."""
        return self.bus.frames

    @property
    def overlap(self) -> int:
        return self.bus.overlap

    def kv_operator(self, module: str) -> Operator:
        """For a module's spatial k and v (Eq. 11-14): drawn once per module, stage and step."""
        correction = self.bus.correction
        if correction.kv_operator == "S":
            return S(self.n)
        key = f"{correction.draw_seed}/{module}/{self.index}/{self.step}"
        return A1(self.n) if random.Random(key).random() < correction.a1_probability else A2(self.n)

    def exchange(self, module: str, part: str, **states: tuple[Tensor, Operator]) -> State | None:
        """Correct a module's states with those of the stage before, and publish the corrected ones.

        part: "spatial" or "temporal". states: name=(x, M), x: b f .. Returns x^ by name, or None
        where nothing is corrected: in stage 0, at strength 0, and where `correction` switches the
        part off. Change neither x nor x^ in place afterwards: one of them waits on the bus.
        """
        if self.strength == 0 or not getattr(self.bus.correction, part):
            return None
        own = {name: x for name, (x, _) in states.items()}
        corrected = None
        if self.index > 0:
            before = self.bus.take(self.index - 1, module, self.branch)
            corrected = {name: back_project(x, before[name], M) for name, (x, M) in states.items()}
        if self.index < len(self.bus.scales):
            self.bus.publish(self.index, module, corrected or own, self.branch)
        return corrected

    def blend(self, o: Tensor, o_hat: Tensor) -> Tensor:
        """o~ = o + w_t (o^ - o) (Eq. 15), before the output projection, which is affine."""
        return torch.lerp(o, o_hat, self.strength)


class OnBus(nn.Module):
    """A module that knows its path in the network: its key on the bus and in a `ContextStates`."""

    name = ""


def name_modules(network: nn.Module) -> None:
    """Give every `OnBus` module of a network its name."""
    for path, module in network.named_modules():
        if isinstance(module, OnBus):
            module.name = path
