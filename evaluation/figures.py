"""Pictures of an evaluation: videos of all rows side by side, and a page that plays them."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from zerosmooth.video import INK, PAPER, busiest_line, line_over_time, write_picture
from zerosmooth_cli import page

from .jobs import TRUTH, Plan
from .rows import CHANGES
from .tables import Key, Results

SHOWN = 10  # consecutive frames of the last stage
SIDE, PAD, LABEL = 96, 4, 22  # pixels: a frame's longer side, a gap, the height of a line of text


def write(folder: Path, results: Results, plan: Plan) -> list[Path]:
    """Write a picture for each subject whose frames were kept, and one page of them all. Returns
    their paths."""
    kept: dict[Key, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row, of_row in results.rows.items():
        for key, record in of_row.items():
            if record["frames"]:
                kept[key][row] = record
    paths = []
    for i, (key, records) in enumerate(kept.items()):
        stages = {row: load_file(record["frames"]) for row, record in records.items()}
        dense = {row: x[str(len(x) - 1)].numpy() for row, x in stages.items()}
        bases = [x["0"].numpy() for row, x in stages.items() if row != TRUTH or len(stages) == 1]
        paths.append(folder / f"side-by-side-{i}.png")
        write_picture(paths[-1], side_by_side(f"{key[0]}, seed {key[1]}", dense, bases[-1]))
    if paths:
        command = shlex.join(["python", "-m", "evaluation", *sys.argv[1:]])
        changed = {key: [record["frames"].stat().st_mtime_ns for record in records.values()]
                   for key, records in kept.items()}
        playing = page.Page(folder)
        playing.write((f"{key} {changed[key]} {command}",
                       partial(_entry, key, records, plan, command))
                      for key, records in kept.items())
        paths.append(playing.path)
    return paths


def _entry(key: Key, records: Mapping[str, Mapping[str, Any]], plan: Plan,
           command: str) -> dict[str, Any]:
    panels: list[tuple[str, str, np.ndarray, float, str | None]] = []
    for row, record in records.items():
        stages, last = load_file(record["frames"]), record["stages"][-1]
        if not panels:
            base = stages["0"].numpy()
            panels.append(("key frames", "", base, record["stages"][0]["fps"], None))
        said = f"PSNR {last['PSNR']:.1f}" if "PSNR" in last else ""
        panels.append((row, said, stages[str(len(stages) - 1)].numpy(), last["fps"], None))
    subject, seed, _ = key
    decided = {k: v for k, v in asdict(plan.base).items() if k not in {*CHANGES, "preset"}}
    shown = page.entry(f"{subject} {seed}", subject, f"seed {seed}", panels)
    return shown | {"settings": decided, "command": command}


def side_by_side(title: str, rows: Mapping[str, np.ndarray], base: np.ndarray) -> np.ndarray:
    """A picture of all rows: h w 3. rows, base: uint8 f h w 3.

    For each row consecutive frames from the middle, and one line of pixels over the whole video: in
    all rows the line on which most happens in the base video. The true rendering starts elsewhere,
    so it gets a line of its own in the same direction.
    """
    first = next(iter(rows.values()))
    height, width = (round(side * SIDE / max(first.shape[1:3])) for side in first.shape[1:3])
    shown, over_time, each = min(SHOWN, len(first)), 3 * width, LABEL + height + PAD
    start = (len(first) - shown) // 2
    line = busiest_line(base)
    right = PAD + shown * (width + PAD)
    canvas = Image.new("RGB", (right + over_time + PAD, LABEL + len(rows) * each), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    said = f"frames {start} to {start + shown - 1} of {len(first)}, then a line over time"
    draw.text((PAD, 3), f"{title}: {said}", INK, font)
    for i, (row, frames) in enumerate(rows.items()):
        y = LABEL + i * each
        draw.text((PAD, y + 3), row, INK, font)
        for j, frame in enumerate(frames[start : start + shown]):
            image = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(image, (PAD + j * (width + PAD), y + LABEL))
        axis, at = busiest_line(frames, line[:1]) if row == TRUTH else line
        draw.text((right, y + 3), f"{'column' if axis == 2 else 'row'} {at}", INK, font)
        image = Image.fromarray(line_over_time(frames, axis, at))
        image = image.resize((over_time, height), Image.Resampling.NEAREST)
        canvas.paste(image, (right, y + LABEL))
    return np.asarray(canvas)
