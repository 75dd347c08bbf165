"""Scenes, their prompts and their frames.

    python -m smallworld.draw --n 5 --seed 3 --outdir examples/first_frames   # for image to video

A scene is one shape on a plain or graded grey background that moves in a straight line for SECONDS.
The prompt nearly fixes the path: a shape that moves left starts near the right edge, however fast
it is. Where a picture must tell the path, the shape has a tail, a grey line behind it; how fast it
goes is then told by a number. Lengths are fractions of the frame's side.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import imageio.v3 as iio
import torch
from torch import Tensor

SECONDS = 2.0
TAIL, TAIL_WIDTH = 0.12, 0.04  # behind the edge of the shape
COLORS = {  # RGB, 0 to 1
    "red": (0.90, 0.12, 0.12),
    "yellow": (0.95, 0.85, 0.10),
    "green": (0.10, 0.70, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.15, 0.25, 0.90),
    "purple": (0.65, 0.15, 0.80),
}
SHAPES = ("circle", "square", "triangle")
# x to the right, y down
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.11, "quickly": 0.26}  # sides a second
# motion buckets of image to video: how far a shape goes from frame to frame,
MOTION = {"slowly": 76, "quickly": 180}
# so a clip of half the way in as many frames has half the bucket, whatever its frames a second
GREYS = {"black": 0.06, "gray": 0.45, "white": 0.94}
WORDS = {  # of a prompt, by kind
    "color": COLORS,
    "shape": SHAPES,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "background": (*GREYS, "gradient"),
}


@dataclass(frozen=True)
class Scene:
    color: str
    shape: str
    direction: str
    speed: str
    background: str  # a grey, or "gradient" between two
    top: float  # grey of the first and of the last row, 0 to 1
    bottom: float
    radius: float  # of the circle with the shape's area
    center: tuple[float, float]  # half-way through
    tail: bool = False

    def position(self, time: float) -> tuple[float, float]:
        """Centre of the shape at `time` seconds, x and y."""
        along = SPEEDS[self.speed] * (time - SECONDS / 2)
        dx, dy = DIRECTIONS[self.direction]
        return self.center[0] + along * dx, self.center[1] + along * dy

    def prompt(self, speed: bool = True, background: bool = True) -> str:
        text = f"a {self.color} {self.shape} moving {self.direction}"
        if speed:
            text += f" {self.speed}"
        return text + f" on a {self.background} background" if background else text


def random_scene(rng: random.Random, tail: bool = False) -> Scene:
    """Any scene; the shape's path stays inside the frame."""
    background = rng.choice([*GREYS, "gradient"])
    if background == "gradient":
        top, bottom = rng.sample(list(GREYS.values()), 2)
    else:
        top = bottom = GREYS[background]
    direction = rng.choice(list(DIRECTIONS))
    along, across = rng.uniform(-0.04, 0.04), rng.uniform(-0.2, 0.2)
    color, shape, speed = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(SPEEDS))
    dx, dy = DIRECTIONS[direction]
    along += (SPEEDS[speed] - SPEEDS["quickly"]) * SECONDS / 2 * (dx + dy)  # slow ones end half-way
    x, y = (along, across) if dx else (across, along)
    return Scene(
        color=color,
        shape=shape,
        direction=direction,
        speed=speed,
        background=background,
        top=top,
        bottom=bottom,
        radius=rng.uniform(0.13, 0.17),
        center=(0.5 + x, 0.5 + y),
        tail=tail,
    )


def others(scene: Scene) -> list[Scene]:
    """As in `far`: the other shapes, another place to the right and down."""
    x, y = scene.center
    return [*(replace(scene, shape=shape) for shape in SHAPES if shape != scene.shape),
            replace(scene, center=(x + 1 / 32, y)), replace(scene, center=(x, y + 1 / 32))]


def law(scene: Scene, times: Tensor) -> tuple[Tensor]:
    """A shape's place from the middle, x and y, at seconds: f 2."""
    return (2 * torch.tensor([scene.position(t) for t in times.tolist()]) - 1,)


def parse(prompt: str) -> dict[str, str]:
    """What a prompt asks for: color, shape, direction, and speed and background where it names
    them.

    ValueError if it is not a prompt of this world.
    """
    one = {key: f"(?P<{key}>{'|'.join(values)})" for key, values in WORDS.items()}
    pattern = ("a {color} {shape} moving {direction}(?: {speed})?"
               "(?: on a {background} background)?").format(
        **one)
    found = re.fullmatch(pattern, prompt)
    if found is None:
        raise ValueError(
            f"{prompt!r} is not a prompt of the small world, such as "
            "'a red circle moving left slowly'"
        )
    return {key: value for key, value in found.groupdict().items() if value}


def render(scenes: Sequence[Scene], times: Tensor, size: int = 64) -> Tensor:
    """Frames of scenes, anti-aliased. times: b f seconds, a row a scene. Returns b f 3 h w, 0 to
    1."""
    grid = (torch.arange(size) + 0.5) / size
    # b f 2
    path = torch.tensor([[s.position(t) for t in row] for s, row in zip(scenes, times.tolist())])
    radius = torch.tensor([s.radius for s in scenes])
    cover = coverage([s.shape for s in scenes], path, radius, size)[:, :, None]  # b f 1 h w
    color = torch.tensor([COLORS[s.color] for s in scenes])[:, None, :, None, None]
    top = torch.tensor([s.top for s in scenes])[:, None, None, None, None]
    bottom = torch.tensor([s.bottom for s in scenes])[:, None, None, None, None]
    ground = top + (bottom - top) * grid[:, None]
    if any(s.tail for s in scenes):
        behind = tails(scenes, path, size)[:, :, None]
        grey = torch.tensor([tail_color(s) for s in scenes])[:, None, None, None, None]
        ground = ground + behind * (grey - ground)
    return ground + cover * (color - ground)


def first_frame(scene: Scene, size: int) -> Tensor:
    """Of a scene, as image to video takes it: uint8 h w 3."""
    return (render([scene], torch.zeros(1, 1), size)[0, 0].permute(1, 2, 0) * 255).round().byte()


def coverage(shapes: Sequence[str], path: Tensor, radius: Tensor, size: int) -> Tensor:
    """How much of each pixel a shape covers, 0 to 1. path: b f 2 centroids; radius: b. Returns b f
    h w.

    All shapes of one radius have the area of a circle of it.
    """
    grid = (torch.arange(size) + 0.5) / size
    x = (grid - path[..., 0, None])[:, :, None, :]  # b f 1 w
    y = (grid - path[..., 1, None])[:, :, :, None]  # b f h 1
    radius = radius[:, None, None, None]
    index = torch.tensor([SHAPES.index(shape) for shape in shapes])[:, None, None, None]
    circle = (x**2 + y**2).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.8862 * radius
    # equilateral, point up
    triangle = torch.maximum(y, 0.8660 * x.abs() - 0.5 * y) - 0.7776 * radius
    distance = torch.where(index == 0, circle, torch.where(index == 1, square, triangle))
    return (0.5 - distance * size).clamp(0, 1)


def tails(scenes: Sequence[Scene], path: Tensor, size: int) -> Tensor:
    """How much of each pixel a shape's tail covers. path: b f 2 centroids. Returns b f h w."""
    grid = (torch.arange(size) + 0.5) / size
    # b f h w 2
    offset = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1) - path[:, :, None, None]
    ahead = torch.tensor([DIRECTIONS[s.direction] for s in scenes]).float()[:, None, None, None]
    start = torch.tensor([s.radius for s in scenes])[:, None, None, None]
    length = torch.tensor([TAIL * s.tail for s in scenes])[:, None, None, None]
    along, across = -(offset * ahead).sum(-1), (offset * ahead.flip(-1)).sum(-1).abs()
    distance = torch.maximum((along - start - length / 2).abs() - length / 2,
                             across - TAIL_WIDTH / 2)
    return (0.5 - distance * size).clamp(0, 1) * (length > 0)


def tail_color(scene: Scene) -> float:
    """Grey of its tail, 0 to 1: far from that of the ground."""
    return GREYS["white" if scene.top + scene.bottom < 1 else "black"]


def frame_times(frames: int, fps: float, start: float = 0.0) -> Tensor:
    """Seconds at which a clip's frames are taken: f."""
    return start + torch.arange(frames) / fps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4, help="scenes (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    parser.add_argument("--size", type=int, default=64, help="pixels, both sides (default: 64)")
    parser.add_argument("--outdir",
                        type=Path,
                        default=Path("first_frames"),
                        help="folder (default: first_frames)")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"draw/{args.seed}")
    for _ in range(args.n):
        scene = random_scene(rng, tail=True)
        path = args.outdir / (scene.prompt(speed=False).replace(" ", "-") + ".png")
        iio.imwrite(path, first_frame(scene, args.size).numpy())
        print(path)


if __name__ == "__main__":
    main()
