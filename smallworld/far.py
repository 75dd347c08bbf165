"""A world in which nothing between two key frames can be had by blending them, nor by straight
lines.

Four kinds of scenes of a second, 8 key frames: a shape that bounces off the frame's edges, one that
spins, one that passes behind a pillar, and a camera that pans over a ground. From key frame to key
frame they go 4, 8 or 16 of 64 pixels, or turn by 30, 50 or 80 degrees. Each follows a law, a
function of time, so that the truth is known at any frame rate. A prompt tells most of it: starts,
slopes and sizes vary a little, and there is one ground, so that a small network can learn it.
Lengths are fractions of the frame's side, angles degrees clockwise; x goes to the right, y down.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .draw import COLORS, frame_times

__all__ = ["SECONDS", "WORDS", "Scene", "frame_times", "parse", "random_scene", "render"]

SECONDS, FPS = 1.0, 8
GREYS = {"black": 0.06, "gray": 0.45, "white": 0.94}
PILLARS = {"black": 0.5, "gray": 0.12, "white": 0.5}  # grey of the pillar, by the ground
PILLAR = 0.32  # its width
# sides a second
SPEEDS = {"slowly": 4 / 64 * FPS, "steadily": 8 / 64 * FPS, "quickly": 16 / 64 * FPS}
SPINS = {"slowly": 30.0 * FPS, "steadily": 50.0 * FPS, "quickly": 80.0 * FPS}  # degrees a second
SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CORNERS = {
    f"{a} and {b}": (x, y)
    for a, (x, _) in list(SIDES.items())[:2]
    for b, (_, y) in list(SIDES.items())[2:]
}
TURNS = {"clockwise": 1, "counterclockwise": -1}
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # directions and shapes
    "bounce": (tuple(CORNERS), ("circle", "square", "triangle")),
    "spin": (tuple(TURNS), ("square", "triangle", "bar")),
    "hide": (("left", "right"), ("circle", "square", "triangle")),
    "pan": (tuple(SIDES), ("",)),
}
SHAPES = ("circle", "square", "triangle", "bar")
TEXTS = {
    "bounce": "a {color} {shape} bouncing {direction}{speed}{background}",
    "spin": "a {color} {shape} spinning {direction}{speed}{background}",
    "hide": "a {color} {shape} passing {direction}{speed} behind a pillar{background}",
    "pan": "a camera panning {direction}{speed} over {color} ground",
}
WORDS = {  # of a prompt
    "kind": tuple(KINDS),
    "color": tuple(COLORS),
    "shape": SHAPES,
    "direction": (*CORNERS, *TURNS, *SIDES),
    "speed": tuple(SPEEDS),
    "background": tuple(GREYS),
}
WAVES = 8  # of a ground
SHARES = {"bounce": 0.3, "spin": 0.25, "hide": 0.3, "pan": 0.15}  # of scenes


@dataclass(frozen=True)
class Scene:
    kind: str
    color: str
    direction: str
    speed: str
    shape: str = ""
    background: str = ""
    radius: float = 0.0  # of the circle with the shape's area
    # the shape's centre at time 0; of a pan, the view's upper left corner
    start: tuple[float, float] = (0.0, 0.0)
    velocity: tuple[float, float] = (0.0, 0.0)  # then, sides a second
    angle: float = 0.0  # then
    spin: float = 0.0  # degrees a second
    pillar: float = 0.5  # x of its middle

    def walls(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Least and largest x, and y, of the centre of a shape that touches the frame's edges."""
        left, up, down = EXTENTS["turning" if self.kind == "spin" else self.shape]
        r = self.radius
        return (left * r, 1 - left * r), (up * r, 1 - down * r)

    def path(self, times: Tensor) -> Tensor:
        """Centre of the shape, or corner of the view, at seconds. times: f; returns f 2."""
        straight = torch.tensor(self.start) + times[:, None] * torch.tensor(self.velocity)
        if self.kind == "pan":
            return straight
        low, high = torch.tensor(self.walls()).T
        return reflected(straight, low, high)

    def angles(self, times: Tensor) -> Tensor:
        return self.angle + self.spin * times

    def prompt(self, speed: bool = True, background: bool = True) -> str:
        told = {
            "color": self.color,
            "shape": self.shape,
            "direction": self.direction,
            "speed": f" {self.speed}" if speed else "",
            "background": f" on a {self.background} background" if background else "",
        }
        return TEXTS[self.kind].format(**told)


EXTENTS = {  # of a shape of radius 1: to the left and right, up and down of its centre
    "circle": (1.0, 1.0, 1.0),
    "square": (0.8862, 0.8862, 0.8862),
    "triangle": (1.3468, 1.5552, 0.7776),
    "turning": (1.56, 1.56, 1.56),
}


def reflected(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where what goes straight to x is if it is thrown back at low and at high, however often."""
    span = high - low
    return low + span - ((x - low) % (2 * span) - span).abs()


def random_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """Any scene, or one of a kind."""
    kind = kind or rng.choices(list(SHARES), list(SHARES.values()))[0]
    color, direction, shape = rng.choice(list(COLORS)), rng.choice(KINDS[kind][0]), rng.choice(
        KINDS[kind][1])
    speed, background = rng.choice(list(SPEEDS)), "" if kind == "pan" else rng.choice(list(GREYS))
    words, v, spin, x, y = (kind, color, direction, speed, shape,
                            background), SPEEDS[speed], 0.0, 0.0, 0.0
    if kind == "pan":
        x, y = SIDES[direction]
        start = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)
        return Scene(*words, start=start, velocity=(v * x, v * y))
    if kind == "spin":
        v, heading, spin = rng.uniform(0, 0.01) * FPS, rng.uniform(
            0, 2 * math.pi), SPINS[speed] * TURNS[direction]
        x, y, radius = math.cos(heading), math.sin(heading), rng.uniform(0.2, 0.22)
        start = rng.uniform(0.47, 0.53), rng.uniform(0.47, 0.53)
    elif kind == "hide":
        (x, y), radius = SIDES[direction], rng.uniform(0.1, 0.12)
        start = 0.5 - x * rng.uniform(0.32, 0.34), rng.uniform(0.4, 0.6)
    else:
        (x, y), slope, radius = CORNERS[direction], math.radians(rng.uniform(40, 50)), rng.uniform(
            0.15, 0.17)
        start = 0.5 - x * rng.uniform(0.04, 0.1), 0.5 - y * rng.uniform(0.04, 0.1)
        x, y = x * math.cos(slope), y * math.sin(slope)
    pillar, angle = rng.uniform(0.46, 0.54), rng.uniform(-20, 20) if spin else 0.0
    return Scene(*words, radius, start, (v * x, v * y), angle, spin, pillar)


def others(scene: Scene) -> list[Scene]:
    """What a wrong word or a small error shows instead: the other shapes, another place to the
    right and down, another angle. As many for all scenes; the same scene where there is none."""
    shapes = [shape for shape in KINDS[scene.kind][1] if shape != scene.shape] or [scene.shape] * 2
    x, y = scene.start
    return [*(replace(scene, shape=shape) for shape in shapes),
            replace(scene, start=(x + 1 / 32, y)), replace(scene, start=(x, y + 1 / 32)),
            replace(scene, angle=scene.angle + 20)]


def law(scene: Scene, times: Tensor) -> tuple[Tensor, Tensor]:
    """What is where at seconds: a shape's place from the middle, x and y, and its angle's cosine
    and sine, f 4; cosines and sines of the ground's waves at a view's corner, f 2 WAVES. NaN for
    what its kind does not have."""
    nothing = torch.full((len(times), 2), math.nan)
    path, angles = scene.path(times), scene.angles(times).deg2rad()
    turned = torch.stack([angles.cos(), angles.sin()], dim=1) if scene.spin else nothing
    if scene.kind == "pan":
        right, down, phase = waves()
        at = path[:, :1] * right + path[:, 1:] * down + phase
        return torch.cat([nothing, turned], dim=1), torch.cat([at.cos(), at.sin()], dim=1)
    return torch.cat([2 * path - 1, turned], dim=1), nothing.repeat(1, WAVES)


def parse(prompt: str) -> dict[str, str]:
    """What a prompt asks for: kind, color, direction, and shape, speed and background where it
    names them.

    ValueError if it is not a prompt of this world.
    """
    told = {
        "speed": f"(?: (?P<speed>{'|'.join(SPEEDS)}))?",
        "color": f"(?P<color>{'|'.join(COLORS)})"
    }
    told["background"] = f"(?: on a (?P<background>{'|'.join(GREYS)}) background)?"
    for kind, (directions, shapes) in KINDS.items():
        own = {
            "direction": f"(?P<direction>{'|'.join(directions)})",
            "shape": f"(?P<shape>{'|'.join(shapes)})"
        }
        if found := re.fullmatch(TEXTS[kind].format(**told, **own), prompt):
            return {
                "kind": kind
            } | {
                key: value
                for key, value in found.groupdict().items() if value
            }
    raise ValueError(
        f"{prompt!r} is not a prompt of the far world, such as "
        f"{random_scene(random.Random(0)).prompt()!r}"
    )


def partner(color: str) -> str:
    """Of the other half of a shape that spins."""
    names = list(COLORS)
    return names[(names.index(color) + 2) % len(names)]


def render(scenes: Sequence[Scene], times: Tensor, size: int = 64) -> Tensor:
    """Frames of scenes, anti-aliased. times: b f seconds, a row a scene. Returns b f 3 h w, 0 to
    1."""
    return torch.stack([picture(s, s.path(t), s.angles(t), size) for s, t in zip(scenes, times)])


def picture(scene: Scene, path: Tensor, angles: Tensor, size: int) -> Tensor:
    """A scene's frames with its shape, or its view, at given places. path: f 2; angles: f. Returns
    f 3 h w."""
    color = torch.tensor(COLORS[scene.color])[:, None, None]
    if scene.kind == "pan":
        return color * (0.3 + 0.7 * ground(path, size))[:, None]
    cover, half = coverage(scene.shape, path, angles, scene.radius, size)
    if scene.kind == "spin":
        color = torch.lerp(color,
                           torch.tensor(COLORS[partner(scene.color)])[:, None, None], half[:, None])
    image = torch.lerp(torch.full((3, size, size), GREYS[scene.background]), color, cover[:, None])
    if scene.kind == "hide":
        image = torch.lerp(image, torch.full_like(image, PILLARS[scene.background]),
                           behind(scene, size))
    return image


def coverage(shape: str, path: Tensor, angles: Tensor, radius: float,
             size: int) -> tuple[Tensor, Tensor]:
    """How much of each pixel a shape covers, and how much of that is its marked half. path: f 2
    centroids; angles: f; both returned f h w."""
    grid = (torch.arange(size) + 0.5) / size
    dx, dy = (grid - path[:, 0, None])[:, None, :], (grid - path[:, 1, None])[:, :, None]
    turn = angles.deg2rad()[:, None, None]
    x, y = turn.cos() * dx + turn.sin() * dy, turn.cos() * dy - turn.sin() * dx
    if shape == "circle":
        distance = (x**2 + y**2).sqrt() - radius
    elif shape == "triangle":  # equilateral, point up
        distance = torch.maximum(y, 0.8660 * x.abs() - 0.5 * y) - 0.7776 * radius
    else:
        long, short = (1.4, 0.561) if shape == "bar" else (0.8862, 0.8862)
        distance = torch.maximum(x.abs() - long * radius, y.abs() - short * radius)
    return (0.5 - distance * size).clamp(0, 1), (0.5 + x * size).clamp(0, 1)


def behind(scene: Scene, size: int) -> Tensor:
    """How much of each column of pixels the pillar covers: w."""
    grid = (torch.arange(size) + 0.5) / size
    return (0.5 - ((grid - scene.pillar).abs() - PILLAR / 2) * size).clamp(0, 1)


def hidden(scene: Scene, path: Tensor, size: int = 64) -> Tensor:
    """Share of the shape that is behind the pillar. path: f 2; returns f."""
    cover, _ = coverage(scene.shape, path, torch.zeros(len(path)), scene.radius, size)
    return (cover * behind(scene, size)).sum((1, 2)) / cover.sum((1, 2))


def waves() -> Tensor:
    """The ground's, 18 to 45 of 64 pixels long: radians a side to the right and down, and at the
    world's corner: 3 WAVES."""
    rng, rows = random.Random("ground/0"), []
    for i in range(WAVES):
        heading, length = math.pi * (i + rng.random()) / WAVES, rng.uniform(0.28, 0.7)
        rows.append((math.cos(heading) / length, math.sin(heading) / length, rng.random()))
    return 2 * math.pi * torch.tensor(rows).T


def ground(corner: Tensor, size: int) -> Tensor:
    """Brightness of a pan's ground. corner: f 2; returns f h w, 0 to 1."""
    grid = (torch.arange(size) + 0.5) / size
    x, y = (corner[:, 0, None] + grid)[:, None, :], (corner[:, 1, None] + grid)[:, :, None]
    total = torch.zeros(len(corner), size, size)
    for right, down, phase in waves().T:
        total += (x * right + y * down + phase).cos()
    return 0.5 + 0.5 * (1.2 * total / math.sqrt(WAVES / 2)).tanh()
