"""Reads a video of the far world by its law: what a scene's key frames say, and what must then be
seen between them.

`fit` finds the scene whose law the key frames follow (nothing else is looked at: neither the prompt
nor the frames between), `measure` compares every frame with what it predicts. Law and key frames
may differ a little, as a model's key frames do: the prediction goes through the key frames, by the
law in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics import lift

from .draw import COLORS
from .far import (
    CORNERS,
    FPS,
    GREYS,
    KINDS,
    SIDES,
    SPEEDS,
    SPINS,
    Scene,
    behind,
    coverage,
    partner,
    picture,
    reflected,
)

PLACES = 513  # along a side, at which `along` looks for a shape
NEAR = 1  # pixels beside the predicted outline that are no ghost's yet


@dataclass(frozen=True)
class Fit:
    """scene: that the key frames follow. law: root mean square of how far they are from it, in
    pixels, or in degrees where the shape spins. path: k 2 and angles: k, what they show; of a pan,
    the view's corner."""

    scene: Scene
    law: float
    path: Tensor
    angles: Tensor


def recognised(keys: Tensor) -> tuple[str, str]:
    """Kind and colour of a video, by its pixels. keys: k h w 3, 0 to 1. ValueError if nothing
    coloured is seen."""
    chroma = keys.amax(-1) - keys.amin(-1)
    if chroma.amax() < 0.3:
        raise ValueError("nothing coloured is seen")
    hue = keys[chroma > 0.6 * chroma.amax()]
    names = list(COLORS)
    known = torch.tensor(list(COLORS.values()))
    nearest = torch.cdist(hue / hue.amax(-1, keepdim=True),
                          known / known.amax(-1, keepdim=True)).argmin(-1)
    votes = {name: (nearest == i).float().mean().item() for i, name in enumerate(names)}
    if (chroma > 0.12).float().mean() > 0.5:
        return "pan", max(names, key=votes.__getitem__)
    halves = {name: min(votes[name], votes[partner(name)]) for name in names}
    if max(halves.values()) > 0.2:
        return "spin", max(names, key=halves.__getitem__)
    grey = keys.mean(-1)
    striped = ((grey.flatten(0, 1).median(0).values - grey.median()).abs() > 0.15).float().mean()
    return "hide" if striped > 0.1 else "bounce", max(names, key=votes.__getitem__)


def cover_of(frames: Tensor, kind: str, color: str) -> Tensor:
    """How much of each pixel is of the shape's colour, or of each of its two. frames: f h w 3, 0 to
    1; f 1|2 h w."""
    known = [COLORS[color], *([COLORS[partner(color)]] if kind == "spin" else [])]
    basis = torch.tensor([(1.0, 1.0, 1.0), *known])  # any pixel is some grey and some of them
    cover = (frames @ torch.linalg.pinv(basis))[..., 1:].permute(0, 3, 1, 2)
    return torch.where(cover < 0.12, 0.0, cover.clamp(max=1))


def center(cover: Tensor) -> Tensor:
    """Of mass. cover: f h w; returns f 2 in sides, NaN where there is none."""
    grid = (torch.arange(cover.shape[-1]) + 0.5) / cover.shape[-1]
    mass = cover.sum((1, 2))
    return torch.stack([(cover.sum(1) * grid).sum(1),
                        (cover.sum(2) * grid).sum(1)], 1) / mass[:, None]


def angles_of(cover: Tensor) -> Tensor:
    """Of a marked shape, from its one half to the other. cover: f 2 h w; returns f degrees."""
    x, y = (center(cover[:, 1]) - center(cover[:, 0])).unbind(1)
    return torch.atan2(y, x).rad2deg()


def around(degrees: Tensor) -> Tensor:
    """The same angles within -180 to 180."""
    return (degrees + 180) % 360 - 180


def fit(keys: Tensor, kind: str, color: str) -> Fit:
    """keys: k h w 3, 0 to 1, at FPS frames a second. A key frame that shows no shape has no place:
    NaN."""
    times, size = torch.arange(len(keys)) / FPS, keys.shape[1]
    if kind == "pan":
        return fit_pan(keys, color)
    cover = cover_of(keys, kind, color)
    whole, area = cover.sum(1), cover.sum((1, 2, 3)) / size**2
    full = area.amax() if kind == "hide" else area.median()
    radius = min((full / math.pi).sqrt().item(), 0.3)  # whatever a model may have made
    path, angles = center(whole), angles_of(cover) if kind == "spin" else torch.zeros(len(keys))
    median = keys.mean(-1).median().item()
    background = min(GREYS, key=lambda name: abs(GREYS[name] - median))
    # all frames that show it whole
    clear, likeness = (area >= 0.9 * full) & ~angles.isnan(), {}
    shown = whole[clear].clamp(max=1)
    for shape in KINDS[kind][1]:
        outline = coverage(shape, path[clear], angles[clear], radius, size)[0]
        likeness[shape] = (torch.minimum(outline, shown).sum((1, 2)) /
                           torch.maximum(outline, shown).sum((1, 2))).mean().item()
    shape = max(likeness, key=likeness.__getitem__)
    scene = Scene(kind, color, "", "", shape, background, radius)
    if kind == "hide":
        column = (keys.mean(-1) * (whole < 0.12)).sum((0, 1)) / (whole < 0.12).sum((0, 1))
        share = (column - median).abs()
        share = (share / share.amax() - 0.2).relu()
        scene = replace(scene,
                        pillar=((torch.arange(size) + 0.5) / size @ share / share.sum()).item())
    at = torch.linspace(0, 1, PLACES)
    cost = [(path[:, i, None] - at).square().nan_to_num(0.0) for i in range(2)]
    if kind == "hide":  # by what is seen of it in each column
        y = ((path[:, 1] * area).nansum() / area.sum()).item()
        mid = torch.stack([at, at.new_full((PLACES,), y)], 1)
        seen = coverage(shape, mid, torch.zeros(PLACES), radius,
                        size)[0] * (1 - behind(scene, size))
        cost = [
            torch.cdist(whole.sum(1), seen.sum(1)).square(),
            (y - at).square().expand(len(keys), -1)
        ]
    (x, vx), (y, vy) = (along(c, times, *wall) for c, wall in zip(cost, scene.walls()))
    scene = replace(scene, start=(x, y), velocity=(vx, vy))
    if kind == "spin":
        spins, seen = torch.arange(-1200, 1200, 0.1 * FPS), ~angles.isnan()
        turned = torch.polar(torch.ones(()),
                             (angles - spins[:, None] * times)[:, seen].deg2rad()).sum(1)
        i = int(turned.abs().argmax())
        scene = replace(scene, angle=math.degrees(turned[i].angle().item()), spin=spins[i].item())
        off = around(angles - scene.angles(times))[seen]
    else:
        off = (path - scene.path(times)).norm(dim=1) * size
        if kind == "hide":
            off = off[area > 0.95 * full]
    return Fit(named(scene), off.square().mean().sqrt().item(), path, angles)


def along(cost: Tensor, times: Tensor, low: float, high: float) -> tuple[float, float]:
    """Place at time 0 and velocity, on one axis, of what is thrown back at low and high: where cost
    is least over all times. cost: k p, of being at p places along the frame's side."""
    x, v, dx, dv = torch.linspace(low, high, 65), torch.linspace(-2.6, 2.6,
                                                                 261), (high - low) / 64, 0.02
    for _ in range(3):
        at = reflected(x[:, None, None] + v[:, None] * times, torch.tensor(low), torch.tensor(high))
        index = (at * (cost.shape[1] - 1)).clamp(0, cost.shape[1] - 1.001)
        whole, part = index.long(), index % 1
        k = torch.arange(len(times))
        total = torch.lerp(cost[k, whole], cost[k, whole + 1], part).sum(-1)
        i, j = divmod(int(total.argmin()), len(v))
        best = x[i].item(), v[j].item()
        x, v = best[0] + torch.linspace(-dx, dx, 21), best[1] + torch.linspace(-dv, dv, 21)
        dx, dv = dx / 10, dv / 10
    return best


def shifted(frames: Tensor, by: Tensor, mode: str = "bicubic") -> tuple[Tensor, Tensor]:
    """What a view shows after it moved, and where that was in sight before. frames: f h w 3; by: f
    2, sides."""
    grid = (torch.arange(frames.shape[1]) + 0.5) / frames.shape[1]
    at = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1) + by[:, None, None]
    x = F.grid_sample(frames.movedim(-1, 1), 2 * at - 1, mode, "border", align_corners=False)
    return x.movedim(1, -1), ((at > 0) & (at < 1)).all(-1)


def alike(a: Tensor, b: Tensor, by: Tensor) -> Tensor:
    """Correlation of b with a after a move, where both are in sight. a, b: f h w 3; by: f 2, sides;
    returns f."""
    a, inside = shifted(a, by, "bilinear")
    m = inside[..., None] / inside.sum((1, 2))[:, None, None, None]
    a, b = (x - (x * m).sum((1, 2), keepdim=True) for x in (a, b))
    aa, bb, ab = ((x * m).sum((1, 2, 3)) for x in (a * a, b * b, a * b))
    return ab / (aa * bb).sqrt().clamp(min=1e-8)


def moved(a: Tensor, b: Tensor, start: Tensor, reach: float, together: bool = False) -> Tensor:
    """How far the view moves from frames a to frames b, looked for up to `reach` pixels around
    `start`.

    a, b: f h w 3; start: f 2, sides; together: one move for all. Returns f 2, sides."""
    a, b, best = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True), start
    steps = torch.cartesian_prod(*[torch.linspace(-1, 1, 9)] * 2)[:, None]
    while reach > 0.1:
        tried = best + steps * reach / a.shape[1]
        value = torch.stack([alike(a, b, by) for by in tried])
        value = value.mean(1, keepdim=True).expand_as(value) if together else value
        best, reach = tried[value.argmax(0), torch.arange(len(a))], reach / 4
    return best


def fit_pan(keys: Tensor, color: str) -> Fit:
    mean = moved(keys[:-1], keys[1:], torch.zeros(len(keys) - 1, 2), 20, together=True)
    steps = moved(keys[:-1], keys[1:], mean, 2)
    vx, vy = (steps.mean(0) * FPS).tolist()
    law = (steps - steps.mean(0)).norm(dim=1).square().mean().sqrt().item() * keys.shape[1]
    scene = named(Scene("pan", color, "", "", velocity=(vx, vy)))
    return Fit(scene, law, F.pad(steps.cumsum(0), (0, 0, 1, 0)), torch.zeros(len(keys)))


def pace(scene: Scene) -> tuple[float, dict[str, float]]:
    """How fast it moves, or turns, and how fast it would if a prompt said so: sides, or degrees, a
    second."""
    return (abs(scene.spin), SPINS) if scene.kind == "spin" else (math.hypot(*scene.velocity),
                                                                  SPEEDS)


def named(scene: Scene) -> Scene:
    """With direction and speed as a prompt says them, by the scene's numbers."""
    (vx, vy), ways, (rate, rates) = scene.velocity, SIDES | CORNERS, pace(scene)
    speed = min(rates, key=lambda name: abs(math.log(rates[name] / max(rate, 1e-3))))
    if scene.kind == "spin":
        return replace(scene,
                       direction="clockwise" if scene.spin > 0 else "counterclockwise",
                       speed=speed)
    direction = max(KINDS[scene.kind][0], key=lambda d: ways[d][0] * vx + ways[d][1] * vy)
    return replace(scene, direction=direction, speed=speed)


def predicted(found: Fit, n: int) -> tuple[Tensor, Tensor]:
    """Places and angles in every frame up to the last key frame: by the law between key frames, and
    through those of these that show the shape."""
    scene, last = found.scene, (len(found.path) - 1) * n
    times = torch.arange(last + 1) / FPS / n
    path, angles = scene.path(times), scene.angles(times)
    turned = around(found.angles - angles[::n]).nan_to_num(0.0)
    if scene.kind != "hide":  # where key frames do not tell the place
        path = path + lift((found.path - path[::n]).nan_to_num(0.0), n)[: last + 1]
    return path, angles + lift(turned, n)[: last + 1]


def measure(
    frames: Tensor,
    kind: str,
    n: int,
    through: Callable[[Tensor], Tensor] = lambda x: x.movedim(1, -1)
) -> tuple[Fit, dict[str, Tensor]]:
    """What the key frames say, and measures of every frame up to the last key frame; NaN where one
    says nothing.

    psnr: against the law's picture after an autoencoder (`through`, f 3 h w to f h w 3, 0 to 1).
    place: pixels, and angle: degrees, from where the shape should be. ghost: colour farther than
    NEAR pixels from its outline, as a share of the shape; of a pan, share of the frame's variance
    that is not that of the ground. missing: share of the shape that should be seen and is not.
    hidden: how wrong the share behind the pillar is. frames: uint8 f h w 3, n of them for one key
    frame.
    """
    x = frames.float() / 255
    keys = x[::n]
    found = fit(keys, kind, recognised(keys)[1])
    return found, (measure_pan if kind == "pan" else measure_shape)(x[:(len(keys) - 1) * n + 1],
                                                                    found, n, through)


def measure_shape(x: Tensor, found: Fit, n: int, through: Callable[[Tensor],
                                                                   Tensor]) -> dict[str, Tensor]:
    scene, size = found.scene, x.shape[1]
    path, angles = predicted(found, n)
    cover = cover_of(x, scene.kind, scene.color)
    outline, half = coverage(scene.shape, path, angles, scene.radius, size)
    parts, whole = outline[:, None], outline.sum((1, 2))
    if scene.kind == "spin":
        parts = torch.stack([outline * (1 - half), outline * half], 1)
    if scene.kind == "hide":
        parts = parts * (1 - behind(scene, size))
    near = F.max_pool2d(parts, 2 * NEAR + 1, 1, NEAR) > 0.05
    mass, due, inside = (y.sum((1, 2, 3)) / whole for y in (cover, parts, cover * near))
    place = (center(cover.sum(1)) - center(parts.sum(1))).norm(dim=1) * size
    nothing = torch.full_like(mass, math.nan)
    return {
        "psnr": psnrs(x, through(picture(scene, path, angles, size))),
        "place": torch.where(due > 0.3, place, nothing),
        "angle": around(angles_of(cover) - angles).abs() if scene.kind == "spin" else nothing,
        "ghost": mass - inside,
        "missing": (due - inside).relu(),
        "hidden": (due - mass).abs() if scene.kind == "hide" else nothing,
    }


def measure_pan(x: Tensor, found: Fit, n: int, through: Callable[[Tensor],
                                                                 Tensor]) -> dict[str, Tensor]:
    """Against the ground that the key frames on both sides show, moved as the law says."""
    i = torch.arange(len(x))
    before = (i // n).clamp(max=len(found.path) - 2)
    share = (i / n - before)[:, None]
    step = found.path[before + 1] - found.path[before]
    (a, seen_a), (b, seen_b) = shifted(x[before * n],
                                       share * step), shifted(x[before * n + n], (share - 1) * step)
    weight = torch.where(seen_a & seen_b, share[..., None], seen_b.float())[..., None]
    truth = torch.lerp(a, b, weight)
    off = moved(truth, x, torch.zeros(len(x), 2), 6)
    nothing = torch.full((len(x),), math.nan)
    return {
        "psnr": psnrs(x, truth),
        "place": off.norm(dim=1) * x.shape[1],
        "angle": nothing,
        "ghost": 1 - alike(truth, x, off).clamp(min=0).square(),
        "missing": nothing,
        "hidden": nothing,
    }


def psnrs(a: Tensor, b: Tensor) -> Tensor:
    """Of each frame, in dB. f h w 3, 0 to 1."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def by_phase(measures: dict[str, Tensor], n: int) -> dict[str, list[float]]:
    """Means over all frames that are 0, 1, .. n - 1 frames behind a key frame; the first are the
    key frames' own."""
    return {name: [x[i::n].nanmean().item() for i in range(n)] for name, x in measures.items()}
