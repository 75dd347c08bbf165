"""Pictures of an evaluation: videos of all rows side by side, a page where they play, and what strength does."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from zerosmooth import page
from zerosmooth.video import INK, PAPER, busiest_line, line_over_time, write_picture

from .jobs import TRUTH, Plan
from .rows import CHANGES
from .tables import Key, Results

SHOWN = 10  # consecutive frames of the last stage


def write(folder: Path, results: Results, plan: Plan, shares: Sequence[float]) -> list[Path]:
    """A picture for each subject whose frames were kept, one page of them all, and curves if there are rows of several
    strengths and matplotlib. shares: t/T of each step. Returns their paths."""
    videos: dict[Key, dict[str, np.ndarray]] = defaultdict(dict)
    bases: dict[Key, np.ndarray] = {}
    for row, records in results.rows.items():
        for key, record in records.items():
            if record["frames"]:
                stages = load_file(record["frames"])
                videos[key][row] = stages[str(len(stages) - 1)].numpy()
                if row != TRUTH or key not in bases:
                    bases[key] = stages["0"].numpy()
    paths = []
    for i, (key, rows) in enumerate(videos.items()):
        subject, seed, _ = key
        paths.append(folder / f"side-by-side-{i}.png")
        write_picture(paths[-1], side_by_side(f"{subject}, seed {seed}", rows, bases[key]))
    if paths:
        playing = page.Page(folder)
        playing.write(found(results, plan))
        paths.append(playing.path)
    weights = {r: [plan.settings(r).cascade.strength_at(s) for s in shares] for r in results.rows if r in plan.rows}
    weights = {row: w for row, w in weights.items() if any(w)}
    if len(set(map(tuple, weights.values()))) > 1:
        try:
            import matplotlib
        except ImportError:
            print("curves.png needs matplotlib: pip install '.[plots]'")
        else:
            matplotlib.use("agg")
            paths.append(folder / "curves.png")
            curves(paths[-1], weights, results)
    return paths


def found(results: Results, plan: Plan) -> Iterator[page.Found]:
    """The page's entries: of each subject whose frames were kept the key frames, and the last stage of every row."""
    keys = dict.fromkeys(key for records in results.rows.values() for key in records)
    command = shlex.join(["python", "-m", "evaluation", *sys.argv[1:]])
    for key in keys:
        kept = {row: records[key] for row, records in results.rows.items() if key in records and records[key]["frames"]}
        if kept:
            changed = [record["frames"].stat().st_mtime_ns for record in kept.values()]
            yield f"{key} {changed} {command}", lambda key=key, kept=kept: _entry(key, kept, plan, command)  # type: ignore


def _entry(key: Key, kept: Mapping[str, Mapping[str, Any]], plan: Plan, command: str) -> dict[str, Any]:
    panels: list[tuple[str, str, np.ndarray, float, str | None]] = []
    for row, record in kept.items():
        stages, last = load_file(record["frames"]), record["stages"][-1]
        if not panels:
            panels.append(("key frames", "", stages["0"].numpy(), record["stages"][0]["fps"], None))
        said = f"PSNR {last['PSNR']:.1f}" if isinstance(last.get("PSNR"), (int, float)) else ""
        panels.append((row, said, stages[str(len(stages) - 1)].numpy(), last["fps"], None))
    subject, seed, _ = key
    settings = page.flat(plan.base.as_json())
    decided = {name: value for name, value in settings.items() if name not in CHANGES and name != "preset"}
    shown = page.entry(f"{subject} {seed}", subject, f"seed {seed}", panels)
    return shown | {"settings": decided, "command": command}


def side_by_side(title: str, rows: Mapping[str, np.ndarray], base: np.ndarray) -> np.ndarray:
    """h w 3. rows, base: uint8 f h w 3. Each row: consecutive frames from the middle, and a line of pixels over the
    whole video, the same in all rows, that on which most happens in the base video. The true rendering begins somewhere
    else, so its line is another, in the same direction."""
    first = next(iter(rows.values()))
    size, pad, label = 96, 4, 22
    height, width = (round(size * side / max(first.shape[1:3])) for side in first.shape[1:3])
    shown = min(SHOWN, len(first))
    start = (len(first) - shown) // 2
    line = busiest_line(base)
    over_time = 3 * width
    total = (pad + shown * (width + pad) + over_time + pad, label + len(rows) * (label + height + pad))
    canvas = Image.new("RGB", total, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    draw.text(
        (pad, 3), f"{title}: frames {start} to {start + shown - 1} of {len(first)}, then a line over time", INK, font
    )
    for i, (row, frames) in enumerate(rows.items()):
        y = label + i * (label + height + pad)
        draw.text((pad, y + 3), row, INK, font)
        for j in range(shown):
            frame = Image.fromarray(frames[start + j]).resize((width, height), Image.Resampling.LANCZOS)
            canvas.paste(frame, (pad + j * (width + pad), y + label))
        axis, at = busiest_line(frames, line[:1]) if row == TRUTH else line
        where = f"{'column' if axis == 2 else 'row'} {at}"
        draw.text((total[0] - over_time - pad, y + 3), where, INK, font)
        image = Image.fromarray(line_over_time(frames, axis, at))
        canvas.paste(
            image.resize((over_time, height), Image.Resampling.NEAREST), (total[0] - over_time - pad, y + label)
        )
    return np.asarray(canvas)


def curves(path: Path, weights: Mapping[str, Sequence[float]], results: Results) -> None:
    """Strength over the steps, a line a row, and beside it what each row measured in the last stage."""
    from matplotlib import pyplot

    last = results.stages - 1
    panels = [m for m in ("PSNR", "redrawn", "area") if all(results.value(row, last, m) for row in weights)]
    figure, grid = pyplot.subplots(
        1, 1 + len(panels), figsize=(4 * (1 + len(panels)), 3.4), layout="constrained", squeeze=False
    )
    schedule, *others = grid.flat
    for row, w in weights.items():
        schedule.plot(w, label=row)
    schedule.set(xlabel="step", ylabel="strength $w_t$", ylim=(0, 1.05))
    schedule.legend(fontsize="small")
    for axis, measure in zip(others, panels):
        means, errors = zip(*(results.value(row, last, measure) for row in weights))
        bars = [e or 0.0 for e in errors]  # a single video has no error
        axis.errorbar(range(len(weights)), means, bars, fmt="o", capsize=3)
        axis.set_xticks(range(len(weights)), list(weights), rotation=30, ha="right", fontsize="small")
        axis.set_title(f"{measure}, last stage")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
