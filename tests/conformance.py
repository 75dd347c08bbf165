"""Does a network do what the method needs of it? Seconds on a CPU, with random weights.

    python -m tests.conformance --family my_family.py        # a family's network, in a small size

    from tests.conformance import check, report
    print(report(check(network, run, frames=16, shape=(4, 8, 8))))

Each finding names the rule that is broken and the attention module that breaks it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zerosmooth.attention import Attention, fusion_matrix, windows
from zerosmooth.bus import BusError, Correction, HiddenStateBus, Stage, State
from zerosmooth.cascade import Cascade, by_stage
from zerosmooth.extensions.reuse import reusing
from zerosmooth.families import FAMILIES
from zerosmooth.family import Family, load_family
from zerosmooth.fields import UserError
from zerosmooth.models.unet import SkeletonConfig
from zerosmooth.operators import Operator, S

Run = Callable[[Tensor, "Stage | None"], Tensor]
Positions = Callable[[int, "Stage | None"], Tensor]

RULES = {
    "plain": "on the bus, stage 0 is the plain network, bitwise",
    "hand-over": "every Attention publishes its states once in a stage, and reads the last stage's",
    "unchanged": "published states are not changed in place",
    "axes": "states have their frames on axis 1",
    "operators": "temporal states and queries take S, keys and values the module's own A1 or A2",
    "measures back": "corrected states measure to those they were corrected with (Eq. 6)",
    "blend": "outputs go linearly from plain to corrected with the strength (Eq. 15), and differ",
    "windows": "temporal attention on more frames is that of its windows, fused (Eq. 18-22)",
    "off": "at strength 0 the network is that without correction, bitwise, and publishes nothing",
    "positions": "key frames keep their positions (Eq. 16-17), if positions were passed",
    "noise": "key frames see the same noise in every stage (Eq. 23), if noise was passed",
    "batch": "videos in a batch do not see each other",
    "reuse": "with around_deep, reused deep features give the same input the same output",
    "freed": "nothing waits on the bus when the last stage has run",
    "frames": "frames that are not n times the key frames are refused with a ValueError",
}


@dataclass(frozen=True)
class Broken:
    rule: str  # of RULES
    module: str  # its path in the network; empty where no single one is to blame
    what: str
    ends: bool = False  # because of it, the rules without a finding were not checked


Findings = Iterator[Broken]


@torch.inference_mode()
def check(network: nn.Module, run: Run, frames: int, shape: tuple[int, int, int],
          scales: tuple[int, ...] = (2, 2), positions: Positions | None = None,
          noise: Callable[[int], Tensor] | None = None, tolerance: float = 1e-4) -> list[Broken]:
    """What a network breaks; empty if it conforms.

    network: in evaluation mode; all its attention modules derive from `attention.Attention` and
    are named by `name_modules`. run: (x, stage) -> the network's output for noisy latents x (b f c
    h w), with all other inputs fixed, and the same for all frames. frames: t0, that it was trained
    on. shape: c h w of x. positions: (f, stage) -> the positions of f frames, if the network adds
    absolute ones. noise: stage index -> its starting noise, b f c h w, if that does not come from
    `cascade.sample_cascade`. tolerance: relative, for what is not bitwise.
    """
    total = Cascade(frames, scales).frames_of(len(scales))
    x = torch.randn(2, total, *shape, generator=torch.Generator().manual_seed(0))
    case = _Case(network, run, by_stage(x, scales), _Spy(frames, scales))
    if broken := list(_names(case)) or list(_cascade(case)):
        return [replace(b, ends=True) for b in broken]
    return [*_plain(case), *_states(case.bus), *_off(case), *_modules(case, tolerance),
            *_batch(case, tolerance), *_frames(case),
            *(_reuse(case) if hasattr(network, "around_deep") else ()),
            *(_noise(case, noise) if noise is not None else ()),
            *(_positions(case, positions) if positions is not None else ())]


def report(broken: Sequence[Broken]) -> str:
    """A line for each rule ("?" where it was not checked), and one for each finding."""
    lines = []
    otherwise = "?     " if any(b.ends for b in broken) else "ok    "
    for rule, text in RULES.items():
        found = [b for b in broken if b.rule == rule]
        lines.append(f"{'BROKEN' if found else otherwise}  {rule}: {text}")
        lines += [f"        {b.module or 'the network'}: {b.what}" for b in found]
    return "\n".join(lines)


Call = tuple[tuple, dict[str, Any]]  # arguments of a module
Exchanged = dict[str, tuple[Tensor, Operator]]


class _Spy(HiddenStateBus):
    """A bus that remembers what is handed over."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.published, self.taken = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
        self.copies: dict[tuple[int, str], State] = {}
        self.changed: list[str] = []  # modules whose states were changed in place
        self.exchanges: list[tuple[Stage, str, str, Exchanged, State, State | None]] = []

    def stage(self, index: int, step: int = 0, strength: float = 1.0) -> Stage:
        stage = super().stage(index, step, strength)
        return _SpyStage(**{name: getattr(stage, name) for name in stage.__dataclass_fields__})

    def publish(self, stage: int, module: str, states: State, branch: int = 0) -> None:
        self.published[stage, module] += 1
        self.copies[stage, module] = {name: x.clone() for name, x in states.items()}
        super().publish(stage, module, states, branch)

    def take(self, stage: int, module: str, branch: int = 0) -> State:
        self.taken[stage, module] += 1
        self.keys = super().take(stage, module, branch)
        same = (torch.equal(x, self.keys[name]) for name, x in self.copies[stage, module].items())
        self.changed += [] if all(same) or module in self.changed else [module]
        return self.keys


class _SpyStage(Stage):
    bus: _Spy

    def exchange(self, module: str, part: str, **states: Any) -> State | None:
        self.bus.keys = {}
        corrected = super().exchange(module, part, **states)
        self.bus.exchanges.append((self, module, part, states, self.bus.keys, corrected))
        return corrected


@dataclass
class _Case:
    """A network, the latents of all stages, and what its cascade did."""

    network: nn.Module
    run: Run
    xs: list[Tensor]
    bus: _Spy
    outputs: list[Tensor] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)  # of the modules in stage 1

    @property
    def modules(self) -> dict[str, Attention]:
        return {path: m for path, m in self.network.named_modules() if isinstance(m, Attention)}

    def new_bus(self, **settings: Any) -> _Spy:
        return _Spy(self.bus.frames, self.bus.scales, **settings)


def _names(case: _Case) -> Findings:
    if not case.modules:
        yield Broken("hand-over", "", "has no module derived from attention.Attention")
    for path, module in case.modules.items():
        if module.name != path:
            yield Broken("hand-over", path, f"is named {module.name!r}; call name_modules")


def _cascade(case: _Case) -> Findings:
    """All stages at strength 1 on the spying bus."""
    bus, modules, outputs = case.bus, case.modules, case.outputs

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if len(outputs) == 1:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            case.calls[str(module.name)] = bound.args, bound.kwargs  # the states come first

    handles = [m.register_forward_pre_hook(remember, with_kwargs=True) for m in modules.values()]
    error: Exception | None = None
    try:
        for s, x in enumerate(case.xs):
            outputs.append(case.run(x, bus.stage(s)))
    except (ValueError, RuntimeError) as raised:
        error = raised
    for handle in handles:
        handle.remove()
    found = list(_states(bus) if error and not isinstance(error, BusError) else _hand_over(case))
    if error and not found:
        rule = "hand-over" if isinstance(error, BusError) else "frames"
        found = [Broken(rule, "", f"{case.xs[len(outputs)].shape[1]} frames fail: {error}")]
    yield from found


def _hand_over(case: _Case) -> Findings:
    bus, read = case.bus, range(min(len(case.outputs), len(case.xs) - 1))  # stages, by the next
    for path in case.modules:
        for s in read:
            published, taken = bus.published[s, path], bus.taken[s, path]
            if (published, taken) != (1, 1):
                yield Broken("hand-over", path, f"published {published} times in stage {s}, and "
                                                f"was read {taken} times in the next")
                break


def _plain(case: _Case) -> Findings:
    plain = case.run(case.xs[0], None)
    if not torch.equal(case.outputs[0], plain):
        yield Broken("plain", "", f"differs by up to {_gap(case.outputs[0], plain):.1e}")
    for path in case.bus.changed:
        yield Broken("unchanged", path, "its states were changed after it published them")
    if case.bus.held_bytes:
        yield Broken("freed", "", f"{case.bus.held_bytes} bytes still wait")


def _states(bus: _Spy) -> Findings:
    """Axes, operators and back-projection of all that was exchanged: one finding for a rule and
    module."""
    found: dict[tuple[str, str], str] = {}
    for stage, path, part, states, keys, corrected in bus.exchanges:
        frames = Cascade(bus.frames, bus.scales).frames_of(stage.index)
        for name, (x, M) in states.items():
            if x.ndim != 4 or x.shape[1] != frames:
                text = f"{name} is {tuple(x.shape)} in a stage of {frames} frames"
                found.setdefault(("axes", path), text)
                continue
            spatial = part == "spatial" and name in ("k", "v")
            right = stage.kv_operator(path) if spatial else S(stage.n)
            if M != right or type(M) is not type(right):
                found.setdefault(("operators", path), f"{name} takes {M}, not {right}")
            elif corrected is not None and _gap(M.measure(corrected[name]), keys[name]) > 1e-4:
                found.setdefault(("measures back", path), f"{name} does not")
    return (Broken(rule, path, text) for (rule, path), text in found.items())


def _off(case: _Case) -> Findings:
    """Strength 0 against the parts switched off."""
    zero = case.new_bus()
    without = case.new_bus(correction=Correction(spatial=False, temporal=False))
    try:
        for s, x in enumerate(case.xs):
            plain = case.run(x, without.stage(s))
            if not torch.equal(case.run(x, zero.stage(s, strength=0.0)), plain):
                yield Broken("off", "", f"{x.shape[1]} frames differ")
    except BusError as error:
        yield Broken("off", "", f"still takes states: {error}")
    for path in {path for _, path in zero.published}:
        yield Broken("off", path, "publishes at strength 0")


def _modules(case: _Case, tolerance: float) -> Findings:
    """Blending and windows of each module, called again with the arguments it got in stage 1."""
    bus = case.bus
    kept = {path: (part, keys) for stage, path, part, _, keys, _ in bus.exchanges
            if stage.index == 1}
    for path, module in case.modules.items():
        part, keys = kept[path]
        (h, *others), named = call = case.calls[path]

        def output(strength: float, overlap: int | None = None) -> Tensor:
            own = HiddenStateBus(bus.frames, bus.scales[:1], overlap)
            if strength:
                own.publish(0, path, {name: y + 0.5 for name, y in keys.items()})  # other states
            return _call(module, call, own.stage(1, strength=strength))

        plain, half, full = (output(w) for w in (0.0, 0.5, 1.0))
        if _gap(full, plain) < tolerance:
            yield Broken("blend", path, "the last stage's states do not change its output")
        elif (gap := _gap(half, (plain + full) / 2)) > tolerance:
            yield Broken("blend", path, f"at half the strength it is {gap:.1e} off the middle")
        for overlap in (0, bus.frames // 2) if part == "temporal" else ():
            fused, spans = torch.zeros_like(plain), windows(h.shape[1], bus.frames, overlap)
            for (start, end), share in zip(spans, fusion_matrix(spans)):
                alone = _call(module, ((h[:, start:end], *others), named), None)
                fused[:, start:end] += share[:, None, None] * alone
            if (gap := _gap(output(0.0, overlap), fused)) > tolerance:
                yield Broken("windows", path, f"sharing {overlap} frames they are {gap:.1e} off")
                break


def _call(module: Attention, call: Call, stage: Stage | None) -> Tensor:
    """The module with the arguments it got, but another stage."""
    args, kwargs = call
    args = tuple(stage if isinstance(a, Stage) else a for a in args)
    return module(*args, **{k: stage if isinstance(a, Stage) else a for k, a in kwargs.items()})


def _batch(case: _Case, tolerance: float) -> Findings:
    for x in case.xs:
        if (gap := _gap(case.run(x[:1], None), case.run(x, None)[:1])) > tolerance:
            yield Broken("batch", "", f"of two, one of {x.shape[1]} frames differs by {gap:.1e}")
            break


def _frames(case: _Case) -> Findings:
    bus, x = case.new_bus(), case.xs[1][:, :-1]
    case.run(case.xs[0], bus.stage(0))
    try:
        case.run(x, bus.stage(1))
        yield Broken("frames", "", f"{x.shape[1]} on {bus.frames} key frames are accepted")
    except RuntimeError as error:
        yield Broken("frames", "", f"{x.shape[1]} raise {type(error).__name__}: {error}")
    except ValueError:
        pass


def _reuse(case: _Case) -> Findings:
    """A step that reuses deep features, after one of the same input."""
    bus = case.new_bus(correction=Correction(kv_operator="S"))
    with reusing(case.network, 2, bus.memory):
        first, second = ([case.run(x, bus.stage(s, step)).clone() for s, x in enumerate(case.xs)]
                         for step in (0, 1))
    if not all(torch.equal(a, b) for a, b in zip(first, second)):
        yield Broken("reuse", "", "changes deep features in place, or computes more than them")


def _noise(case: _Case, noise: Callable[[int], Tensor]) -> Findings:
    for s, n in enumerate(case.bus.scales, start=1):
        if not torch.equal(noise(s)[:, ::n], noise(s - 1)):
            yield Broken("noise", "", f"of key frames in stage {s} is not that of stage {s - 1}")


def _positions(case: _Case, positions: Positions) -> Findings:
    for s, x in enumerate(case.xs):
        f, t0 = x.shape[1], case.bus.frames
        ours = positions(f, case.bus.stage(s))[:: f // t0].float()
        if not torch.allclose(ours, positions(t0, None).float(), atol=1e-4):
            yield Broken("positions", "", f"of key frames among {f} are not those among {t0}")


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the deviation of b."""
    return ((a - b).abs().max() / b.std().clamp(min=1e-12)).item()


def check_family(family: Family) -> list[Broken]:
    """What the network of a family breaks, in a small size: its `small` config, or a Skeleton of
    few channels. UserError if it has no such size."""
    if hasattr(family, "small"):
        unet = family.small(family.config.unet)
    elif isinstance(family.config.unet, SkeletonConfig):
        unet = replace(family.config.unet, channels=64, channel_mult=(1, 2), res_blocks=1,
                       attention_resolutions=(1, 2), groups=8)
    else:
        raise UserError(f"{family.name}'s network is no models.unet.Skeleton: let its family have "
                        "`small`, which makes a config small, or call check yourself")
    config = replace(family.config, unet=unet)
    torch.manual_seed(0)
    network = family.unet(unet).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():  # what starts at zero would do nothing
            torch.nn.init.normal_(p, std=0.1)
    context = torch.randn(1, *config.encoder.context_shape)
    told = family.condition(config, float(config.defaults.fps), config.defaults)

    def run(x: Tensor, stage: Stage | None) -> Tensor:
        b = len(x)
        condition = None if told is None else told.expand(b, *told.shape)
        return network(x, torch.full((b,), 300.0), context.expand(b, -1, -1), condition, stage)

    return check(network, run, unet.frames, (unet.in_channels, 4, 4),
                 positions=getattr(network, "positions", None))


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.conformance",
                                     description=check_family.__doc__)
    parser.add_argument("--family", required=True,
                        help=f"{', '.join(FAMILIES)}, or a file or module that defines one")
    broken = check_family(load_family(parser.parse_args().family, FAMILIES))
    print(report(broken))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
