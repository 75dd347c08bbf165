"""Does a network do what the method needs of it? For networks of your own, in seconds on a CPU,
with random weights.

    python -m zerosmooth.conformance --family my_family.py        # a family's network, in a small size

    from zerosmooth.conformance import check, report
    print(report(check(network, run, frames=16, shape=(4, 8, 8))))

Each finding names the rule that is broken and the attention module that breaks it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, fusion_matrix, windows
from .bus import BusError, Correction, HiddenStateBus, Stage
from .cascade import Cascade, by_stage
from .families import FAMILIES
from .family import Family, load_family
from .models.unet import SkeletonConfig
from .operators import Operator, S

Run = Callable[[Tensor, "Stage | None"], Tensor]
Positions = Callable[[int, "Stage | None"], Tensor]

RULES = {
    "plain": "on the bus, stage 0 is the plain network, bitwise",
    "hand-over": "every module derived from Attention publishes its states once a stage; the next one reads them once",
    "axes": "states have their frames on axis 1",
    "operators": "temporal states and queries are corrected with S, a module's keys and values with its own A1 or A2",
    "measures back": "what a module publishes measures to the states it was corrected with (Eq. 6)",
    "blend": "an output goes linearly from the plain to the corrected one with the strength (Eq. 15), and they differ",
    "windows": "temporal attention on more frames is that of its windows, each by itself, fused (Eq. 18-22)",
    "off": "at strength 0 the network is that without correction, bitwise, and hands nothing over",
    "positions": "key frames keep their positions (Eq. 16-17), if positions were passed",
    "noise": "key frames see the same noise in every stage (Eq. 23), if noise was passed",
    "batch": "videos in a batch do not see each other",
    "new frames": "of a stage's inserted frames alone, beside states that key frames had, whose output is the old one",
    "reuse": "what inner levels made stands, if the network calls stage.inner: the same input has the same output",
    "freed": "nothing waits on the bus when the last stage has run",
    "frames": "frames that are not n times the key frames are refused with a ValueError",
}


@dataclass(frozen=True)
class Broken:
    rule: str  # of RULES
    module: str  # its path in the network; empty where no single one is to blame
    what: str
    ends: bool = False  # because of it, the rules without a finding were not looked at


@torch.inference_mode()
def check(network: nn.Module, run: Run, frames: int, shape: tuple[int, int, int],
          scales: tuple[int, ...] = (2, 2), positions: Positions | None = None,
          noise: Callable[[int], Tensor] | None = None, tolerance: float = 1e-4) -> list[Broken]:
    """What a network breaks; empty if it conforms.

    network: with all its attention modules derived from `attention.Attention` and named by
    `name_modules`. run: (x, bus) -> the network's output for noisy latents x (b f c h w),
    everything else it needs being fixed and the same for all frames; in evaluation mode. frames:
    t0, that it was trained on. shape: c h w of x. positions: (f, bus) -> the positions of f frames,
    if the network adds absolute ones. noise: stage -> its starting noise, b f c h w, if it does not
    come from `cascade.sample_cascade`. tolerance: relative, for what is not bitwise.
    """
    modules = {path: module for path, module in network.named_modules()
               if isinstance(module, Attention)}
    broken = [Broken("hand-over", path, f"is named {m.name!r}; call name_modules")
              for path, m in modules.items() if m.name != path]
    if broken or not modules:
        broken = broken or [Broken("hand-over", "",
                                   "the network has no module derived from attention.Attention")]
        return [replace(b, ends=True) for b in broken]
    xs = by_stage(_noise(2, frames, scales, shape), scales)
    outputs, bus, calls, broken = _cascade(modules, run, xs, frames, scales)
    if broken:  # the rest cannot be looked at
        return [replace(b, ends=True) for b in broken]
    plain = run(xs[0], None)
    if not torch.equal(outputs[0], plain):
        broken.append(Broken("plain", "", f"differs by up to {_gap(outputs[0], plain):.1e}"))
    broken += _states(modules, bus)
    broken += _off(run, xs, frames, scales)
    for path, call in calls.items():
        broken += _module(path, modules[path], call, bus, tolerance)
    if bus.held_bytes:
        broken.append(Broken("freed", "", f"{bus.held_bytes} bytes still wait"))
    for s, x in enumerate(xs):
        if (gap := _gap(run(x[:1], None), run(x, None)[:1])) > tolerance:
            broken.append(
                Broken("batch", "", f"one of two videos of {x.shape[1]} frames differs by {gap:.1e} from it alone")
            )
            break
    broken += _frames(run, xs, frames, scales)
    broken += _new_frames({path for _, path, part, *_ in bus.exchanges if part == "temporal"}, run,
                          xs, frames, scales)
    broken += _reuse(run, xs, frames, scales)
    for s, n in enumerate(scales, start=1):
        if noise is not None and not torch.equal(noise(s)[:, ::n], noise(s - 1)):
            broken.append(Broken("noise", "",
                                 f"of the key frames in stage {s} is not that of stage {s - 1}"))
        if positions is not None:
            view = HiddenStateBus(frames, scales).stage(s)
            n = xs[s].shape[1] // frames
            if not torch.allclose(positions(n * frames, view)[::n].float(),
                                  positions(frames, None).float(), atol=1e-4):
                broken.append(
                    Broken("positions", "", f"of the key frames among {n * frames} are not those among {frames}")
                )
    return broken


def report(broken: Sequence[Broken]) -> str:
    """A line a rule ("?" where it could not be looked at), and a line a finding."""
    lines = []
    otherwise = "?     " if any(b.ends for b in broken) else "ok    "
    for rule, text in RULES.items():
        found = [b for b in broken if b.rule == rule]
        lines.append(f"{'BROKEN' if found else otherwise}  {rule}: {text}")
        lines += [f"        {b.module or 'the network'}: {b.what}" for b in found]
    return "\n".join(lines)


class _Spy(HiddenStateBus):
    """A bus that remembers what is handed over."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.published: Counter[tuple[int, str]] = Counter()
        self.taken: Counter[tuple[int, str]] = Counter()
        self.exchanges: list[tuple[Stage, str, str, dict[str, tuple[Tensor, Operator]], dict, dict
                                   | None]] = []

    def stage(self, index: int, step: int = 0, strength: float = 1.0) -> Stage:
        view = super().stage(index, step, strength)
        return _SpyStage(**{name: getattr(view, name) for name in view.__dataclass_fields__})

    def publish(self, stage: int, module: str, states: dict[str, Tensor], branch: int = 0) -> None:
        self.published[stage, module] += 1
        super().publish(stage, module, states, branch)

    def take(self, stage: int, module: str, branch: int = 0) -> dict[str, Tensor]:
        self.taken[stage, module] += 1
        self.keys = super().take(stage, module, branch)
        return self.keys


class _SpyStage(Stage):
    bus: _Spy

    def exchange(self, module: str, part: str, **states: tuple[Tensor, Operator]) -> dict[str, Tensor] | None:
        self.bus.keys = {}
        corrected = super().exchange(module, part, **states)
        self.bus.exchanges.append((self, module, part, states, self.bus.keys, corrected))
        return corrected


Call = tuple[tuple, dict[str, Any]]  # arguments of a module


def _cascade(modules: dict[str, Attention], run: Run, xs: Sequence[Tensor], frames: int,
             scales: tuple[int, ...]) -> tuple[list[Tensor], _Spy, dict[str, Call], list[Broken]]:
    """All stages at strength 1 on a spying bus: outputs, the bus, the calls of the modules in stage
    1, what broke."""
    bus = _Spy(frames, scales)
    calls: dict[str, Call] = {}
    outputs = []
    try:
        for s, x in enumerate(xs):
            with _watched(modules, calls if s == 1 else {}):
                outputs.append(run(x, bus.stage(s)))
    except BusError as error:
        return outputs, bus, calls, _hand_over(modules, bus,
                                               len(outputs)) or [Broken("hand-over", "",
                                                                        str(error))]
    except (ValueError, RuntimeError) as error:
        wrong = _states(modules, bus)
        return outputs, bus, calls, wrong or [Broken("frames", "", f"{xs[len(outputs)].shape[1]} frames fail: {error}")]
    return outputs, bus, calls, _hand_over(modules, bus, len(xs) - 1)


@contextmanager
def _watched(modules: dict[str, Attention], calls: dict[str, Call]):
    def remember(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            calls[path] = (bound.args, bound.kwargs)  # the states come first, however they were passed

        return hook

    handles = [m.register_forward_pre_hook(remember(path), with_kwargs=True)
               for path, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hand_over(modules: dict[str, Attention], bus: _Spy, last: int) -> list[Broken]:
    broken = []
    for path in modules:
        for s in range(last):
            if (count := bus.published[s, path]) != 1:
                broken.append(Broken("hand-over", path, f"published {count} times in stage {s}"))
                break
            if (count := bus.taken[s, path]) != 1:
                broken.append(Broken("hand-over", path, f"was read {count} times in stage {s + 1}"))
                break
    return broken


def _states(modules: dict[str, Attention], bus: _Spy) -> list[Broken]:
    """Axes, operators and back-projection of all that was exchanged."""
    found: dict[tuple[str, str], Broken] = {}
    for view, path, part, states, keys, corrected in bus.exchanges:
        frames = bus.frames
        for n in bus.scales[: view.index]:
            frames *= n
        for name, (x, M) in states.items():
            if x.ndim != 4 or x.shape[1] != frames:
                found.setdefault(
                    ("axes", path), Broken("axes", path, f"{name} is {tuple(x.shape)} in a stage of {frames} frames")
                )
                continue
            right = view.kv_operator(path) if part == "spatial" and name in ("k",
                                                                             "v") else S(view.n)
            if M != right or type(M) is not type(right):
                found.setdefault(("operators", path),
                                 Broken("operators", path, f"{name} takes {M}, not {right}"))
            elif corrected is not None and not torch.allclose(M.measure(corrected[name]),
                                                              keys[name], atol=1e-4):
                found.setdefault(("measures back", path),
                                 Broken("measures back", path, f"{name} does not"))
    return list(found.values())


def _off(run: Run, xs: Sequence[Tensor], frames: int, scales: tuple[int, ...]) -> list[Broken]:
    """Strength 0 against the parts switched off."""
    zero = _Spy(frames, scales)
    without = HiddenStateBus(frames, scales,
                             correction=replace(zero.correction, spatial=False, temporal=False))
    for s, x in enumerate(xs):
        try:
            same = torch.equal(run(x, zero.stage(s, strength=0.0)), run(x, without.stage(s)))
        except BusError as error:
            return [Broken("off", "", f"still takes states: {error}")]
        if not same:
            return [Broken("off", "", f"{x.shape[1]} frames differ")]
    return [Broken("off", path, "publishes at strength 0") for _, path in zero.published]


def _module(path: str, module: Attention, call: Call, bus: _Spy, tolerance: float) -> list[Broken]:
    """Blending and windows of one module, called again with the arguments that it got in stage
    1."""
    broken = []
    keys = next(keys for view, name, *_, keys, _ in bus.exchanges if name == path and view.index
                == 1)
    part = next(part for _, name, part, *_ in bus.exchanges if name == path)

    def output(strength: float, overlap: int | None = None) -> Tensor:
        own = HiddenStateBus(bus.frames, bus.scales[:1], overlap)
        if strength:
            own.publish(0, path, {name: y + 0.5 for name, y in keys.items()})  # other states than its own
        return _call(module, call, own.stage(1, strength=strength))

    plain, half, full = (output(w) for w in (0.0, 0.5, 1.0))
    if _gap(full, plain) < tolerance:
        broken.append(Broken("blend", path,
                             "its output does not depend on the states of the stage before"))
    elif (gap := _gap(half, (plain + full) / 2)) > tolerance:
        broken.append(Broken("blend", path, f"at half the strength it is {gap:.1e} off the middle"))
    if part == "temporal":
        h = call[0][0]
        for overlap in (0, bus.frames // 2):
            fused = torch.zeros_like(plain)
            spans = windows(h.shape[1], bus.frames, overlap)
            for (start, end), share in zip(spans, fusion_matrix(spans)):
                alone = _call(module, ((h[:, start:end], *call[0][1:]), call[1]), None)
                fused[:, start:end] += share[:, None, None] * alone
            if (gap := _gap(output(0.0, overlap), fused)) > tolerance:
                broken.append(Broken("windows", path,
                                     f"windows that share {overlap} frames are {gap:.1e} off"))
                break
    return broken


def _call(module: Attention, call: Call, bus: Stage | None) -> Tensor:
    """The module with the arguments it got, but another bus."""
    args = tuple(bus if isinstance(a, Stage) else a for a in call[0])
    kwargs = {name: bus if isinstance(a, Stage) else a for name, a in call[1].items()}
    return module(*args, **kwargs)


def _frames(run: Run, xs: Sequence[Tensor], frames: int, scales: tuple[int, ...]) -> list[Broken]:
    if not scales:
        return []
    bus = HiddenStateBus(frames, scales)
    run(xs[0], bus.stage(0))
    try:
        run(xs[1][:, :-1], bus.stage(1))
    except ValueError:
        return []
    except (BusError, RuntimeError) as error:
        return [Broken("frames", "",
                       f"{xs[1].shape[1] - 1} of them raise {type(error).__name__}: {error}")]
    return [Broken("frames", "", f"{xs[1].shape[1] - 1} of them on {frames} key frames are taken")]


def _new_frames(temporal: set[str], run: Run, xs: Sequence[Tensor], frames: int,
                scales: tuple[int, ...]) -> list[Broken]:
    """Stages that run on what they insert. temporal: the modules along the frames, which must see
    key frames too."""
    bus, outputs = _Spy(frames, scales, new_frames=True), []
    try:
        outputs = [run(x, bus.stage(s)) for s, x in enumerate(xs)]
    except (BusError, ValueError, RuntimeError) as error:
        return [Broken("new frames", "", f"fail: {error}")]
    for s, n in enumerate(scales, start=1):
        if not torch.equal(outputs[s][:, ::n], outputs[s - 1]):
            return [Broken("new frames", "",
                           f"change key frames in stage {s}; call stage.inserted, stage.complete")]
    return [Broken("new frames", path, "does not see key frames; call stage.mix")
            for path in sorted(temporal)
            if any(bus.taken[s, path] != 1 for s in range(len(scales)))]


def _reuse(run: Run, xs: Sequence[Tensor], frames: int, scales: tuple[int, ...]) -> list[Broken]:
    """A step after one of the same input. A network that does not call stage.inner passes, and is
    refused --reuse."""
    bus = HiddenStateBus(frames, scales, correction=Correction(kv_operator="S"), reuse=2)
    try:
        first, second = ([run(x, bus.stage(s, step)).clone() for s, x in enumerate(xs)]
                         for step in (0, 1))
    except (BusError, ValueError, RuntimeError) as error:
        return [Broken("reuse", "", f"fails: {error}")]
    if all(torch.equal(a, b) for a, b in zip(first, second)):
        return []
    return [Broken("reuse", "", "changes in place what stage.inner gave, or does more in it than to return a value")]


def _noise(batch: int, frames: int, scales: tuple[int, ...], shape: tuple[int, int, int]) -> Tensor:
    total = Cascade(frames, scales).frames_of(len(scales))
    return torch.randn(batch, total, *shape, generator=torch.Generator().manual_seed(0))


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the deviation of b."""
    return ((a - b).abs().max() / b.std().clamp(min=1e-12)).item()


def check_family(family: Family) -> list[Broken]:
    """What the network of a family breaks, in a small size. ValueError if its config has no such
    sizes."""
    small: dict[str, Any] = {"channels": 64, "channel_mult": (1, 2), "res_blocks": 1,
                             "attention_resolutions": (1, 2), "groups": 8}
    if not isinstance(family.config.unet, SkeletonConfig):
        raise ValueError(f"{family.name}'s network is no `models.unet.Skeleton`: call `conformance.check` yourself")
    config = replace(family.config, unet=replace(family.config.unet, **small))
    torch.manual_seed(0)
    network = family.unet(config.unet).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():  # what starts at zero would do nothing
            torch.nn.init.normal_(p, std=0.1)
    context = torch.randn(1, *config.encoder.context_shape)
    told = family.condition(config, float(config.defaults.fps), config.defaults)

    def run(x: Tensor, stage: Stage | None) -> Tensor:
        b = len(x)
        condition = None if told is None else told.expand(b, *told.shape)
        return network(x, torch.full((b,), 300.0), context.expand(b, -1, -1), condition, stage)

    return check(network, run, config.unet.frames, (config.unet.in_channels, 8, 8))


def main() -> int:
    parser = argparse.ArgumentParser("python -m zerosmooth.conformance",
                                     description=check_family.__doc__)
    parser.add_argument("--family", required=True,
                        help=f"{', '.join(FAMILIES)}, or a file or module that defines one")
    broken = check_family(load_family(parser.parse_args().family, FAMILIES))
    print(report(broken))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
