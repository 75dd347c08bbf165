"""HiddenStateBus: how the attention modules of one stage learn what those of the stage before did.

A stage `s` of the cascade runs the network with `bus.stage(s, ...)` as its `stage` argument. Each attention module
calls `exchange`, which takes what the same module of stage s-1 published, corrects this stage's states with it (Eq.
9-14) and publishes the corrected ones for stage s+1; and `blend`, which mixes the two attention outputs (Eq. 15).
States are handed over: taking them frees them. What a network's inner levels made may be kept for later steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from .fields import PART, SEED, Range, check, check_fields
from .offload import Memory, Waiting
from .operators import A1, A2, Interpolated, Operator, S, back_project

State = dict[str, Tensor]
OUTPUT = "output"  # of a network: in place of a module's name
REUSE = Range(1, 1000)  # steps


@dataclass(frozen=True)
class Correction:
    """What is corrected, and with which operator: each part of the paper's Table 3 is one setting."""

    spatial: Annotated[bool, "correct spatial self- and cross-attention (Eq. 10-14)"] = True
    temporal: Annotated[bool, "correct temporal attention (Eq. 9)"] = True
    kv_operator: Annotated[Literal["A1/A2", "S"], "for spatial keys and values; A1 or A2 is drawn for each"] = "A1/A2"
    a1_probability: Annotated[float, "of A1 over A2; 'p > 0.5, p ~ N(0, 1)' is 0.309", PART] = 1 - NormalDist().cdf(0.5)
    draw_seed: Annotated[int, "of the draws of A1 and A2; else they depend on module, stage and step alone", SEED] = 0

    def __post_init__(self) -> None:
        check_fields(self)


class BusError(RuntimeError):
    """A module read what was never published, or published twice before it was read; or a network takes no part."""


class HiddenStateBus:
    """The hand-over of hidden states between the stages of a cascade.

    frames: t0, frames of stage 0 and of a temporal attention window. scales: n of stages 1, 2, ...
    overlap: frames that two neighbouring windows share. device: where states wait (None: where they are made; "cpu":
    host memory, to and from which those of CUDA move beside the network's work). new_frames: stages behind the first
    run on the frames that they insert, beside what layers that mix frames had of the others in the stage before;
    nothing is corrected then. reuse: of so many steps the inner levels of a network run in one, and what they made
    stands in the others.
    """

    def __init__(
        self,
        frames: int,
        scales: tuple[int, ...] = (),
        overlap: int | None = None,
        correction: Correction = Correction(),
        device: str | torch.device | None = None,
        new_frames: bool = False,
        reuse: int = 1,
    ) -> None:
        check("frames", frames, int, Range(1, 2**63))
        scales = tuple(scales) if isinstance(scales, list) else scales
        check("scales", scales, tuple[int, ...], Range(2, 2**63))
        check("overlap", overlap, int | None)
        check("correction", correction, Correction)
        check("reuse", reuse, int, REUSE)
        self.frames, self.scales = frames, scales
        self.overlap = frames // 2 if overlap is None else overlap
        if not 0 <= self.overlap < frames:
            raise ValueError(f"overlap={self.overlap} of windows of {frames} frames; use 0 to {frames - 1}")
        self.correction, self.new_frames, self.reuse = correction, new_frames, reuse
        self.memory = Memory(None if device is None else torch.device(device))
        self._waiting: dict[tuple[int, int, str], dict[str, Waiting]] = {}
        self.kept: dict[tuple[int, int], Waiting] = {}  # of inner levels, by stage and branch

    def stage(self, index: int, step: int = 0, strength: float = 1.0) -> Stage:
        """The bus as stage `index` sees it at denoising step `step` with w_t = `strength` (0 to 1)."""
        if not 0 <= index <= len(self.scales):
            raise ValueError(f"stage {index} of a cascade of {len(self.scales) + 1} stages")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is not in [0, 1]")
        return Stage(self, index, step, strength, n=self.scales[index - 1] if index else 1)

    def publish(self, stage: int, module: str, states: State, branch: int = 0) -> None:
        """Leave the states of a module for the next stage. BusError if the last ones were not read yet."""
        key = (stage, branch, module)
        if key in self._waiting:
            raise BusError(f"stage {stage} published {module!r} twice before stage {stage + 1} read it")
        self._waiting[key] = self.memory.put(states)

    def take(self, stage: int, module: str, branch: int = 0) -> State:
        """What a module of `stage` published, which the bus then forgets. BusError if there is nothing."""
        key = (stage, branch, module)
        if key not in self._waiting:
            raise BusError(f"stage {stage} published nothing for {module!r}; run the stages of a step in order")
        states = self._waiting.pop(key)
        others = (held for at, held in self._waiting.items() if at[:2] == (stage, branch))  # in the order of publishing
        return self.memory.take(states, ahead=next(others, {}))

    def keep(self, key: tuple[int, int], make: Callable[[], Tensor]) -> Tensor:
        """Keep what inner levels make, for steps to come, instead of what they made before. key: stage and branch."""
        if key in self.kept:
            self.memory.free(self.kept.pop(key))
        h = make()
        self.kept[key] = self.memory.put({"h": h})["h"]
        return h

    def check_served(self, stage: int) -> None:
        """BusError if the network that ran a stage takes no part in what this bus is set to."""
        if self.reuse > 1 and (stage, 0) not in self.kept:
            raise BusError("reuse: this network does not call stage.inner (docs/new_backbone.md)")
        if self.new_frames and stage < len(self.scales) and (stage, 0, OUTPUT) not in self._waiting:
            raise BusError("new_frames: this network does not call stage.complete (docs/new_backbone.md)")

    def clear(self) -> None:
        """Forget all that waits, for instance after an interrupted step."""
        self.memory.clear()
        self._waiting.clear()
        self.kept.clear()

    @property
    def held_bytes(self) -> int:
        """Of states that wait to be read or are kept."""
        return self.memory.held_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that ever waited."""
        return self.memory.peak_bytes


@dataclass(frozen=True)
class Stage:
    """The bus as one stage sees it during one forward: what a network gets as its `stage` argument."""

    bus: HiddenStateBus = field(repr=False)
    index: int  # 0 is the stage of key frames
    step: int
    strength: float  # w_t
    n: int  # frames of this stage for one of the stage before
    branch: int = 0  # of guidance, where branches run one after the other: each has its own states

    @property
    def window(self) -> int:
        """Frames of a temporal attention window: those of stage 0."""
        return self.bus.frames

    @property
    def overlap(self) -> int:
        return self.bus.overlap

    def kv_operator(self, module: str) -> Operator:
        """The operator for a module's spatial keys and values (Eq. 11-14): one draw a module, stage and step."""
        correction = self.bus.correction
        if correction.kv_operator == "S":
            return S(self.n)
        p = random.Random(f"{correction.draw_seed}/{module}/{self.index}/{self.step}").random()
        return A1(self.n) if p < correction.a1_probability else A2(self.n)

    def exchange(self, module: str, part: str, **states: tuple[Tensor, Operator]) -> State | None:
        """Correct a module's states with those of the stage before, and publish the corrected ones.

        part: "spatial" or "temporal". states: name=(x, M), x: b f .. Returns x^ by name, or None where
        there is nothing to correct: in stage 0, at strength 0, and for a part that is switched off.
        """
        if self.strength == 0 or self.bus.new_frames or not getattr(self.bus.correction, part):
            return None
        corrected = None
        if self.index > 0:
            keys = self.bus.take(self.index - 1, module, self.branch)
            corrected = {name: back_project(x, keys[name], M) for name, (x, M) in states.items()}
        if self.index < len(self.bus.scales):
            self.bus.publish(self.index, module, corrected or {name: x for name, (x, _) in states.items()}, self.branch)
        return corrected

    def inserted(self, x: Tensor) -> Tensor:
        """Of all frames of this stage those that the network runs on: with `new_frames`, those between key frames.

        x: b f .. ValueError if there are not n for each key frame."""
        return S(self.n).between(x) if self.bus.new_frames and self.index > 0 else x

    def mix(self, module: str, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What a layer that mixes frames makes of those that the network runs on. x: b i .., as what it returns.

        With `new_frames` it sees all frames: key frames as they entered it in the stage before. What became of them
        there corrects what becomes of the others here, by what lies between (see operators.Interpolated).
        """
        if not self.bus.new_frames:
            return layer(x)
        if self.index == 0:
            y = layer(x)
        else:
            keys = self.bus.take(self.index - 1, module, self.branch)
            x = S(self.n).among(keys["x"], x)
            y = back_project(layer(x), keys["y"], Interpolated(self.n))
        if self.index < len(self.bus.scales):
            self.bus.publish(self.index, module, {"x": x, "y": y}, self.branch)
        return self.inserted(y)

    def complete(self, y: Tensor) -> Tensor:
        """A network's output for all frames of this stage: with `new_frames`, key frames' is that of the stage before.

        y: b i .., of the frames that it ran on."""
        if not self.bus.new_frames:
            return y
        if self.index > 0:
            y = S(self.n).among(self.bus.take(self.index - 1, OUTPUT, self.branch)["y"], y)
        if self.index < len(self.bus.scales):
            self.bus.publish(self.index, OUTPUT, {"y": y}, self.branch)
        return y

    def inner(self, levels: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """What the inner levels of a network make of h; with `reuse`, between the steps in which they run, what they
        made last (DeepCache, Ma et al. 2023, arXiv 2312.00858)."""
        bus, key = self.bus, (self.index, self.branch)
        if bus.reuse == 1:
            return levels(h)
        if self.step % bus.reuse and (kept := bus.kept.get(key)) is not None:
            return kept.get()
        return bus.keep(key, lambda: levels(h))

    def blend(self, o: Tensor, o_hat: Tensor) -> Tensor:
        """o~ = o + w_t (o^ - o), both before the output projection (Eq. 15)."""
        return torch.lerp(o, o_hat, self.strength)


class OnBus(nn.Module):
    """A module with a `name`, its path in the network, which is its key on the bus or in the ContextStates.

    `name_modules` gives it.
    """

    name = ""


def name_modules(network: nn.Module) -> None:
    """Give every `OnBus` module of a network its name on the bus: its path within the network."""
    for path, module in network.named_modules():
        if isinstance(module, OnBus):
            module.name = path
