"""How time and memory grow with frames, size, stages and processes: VideoCrafter2's network at full
size, on the CPU.

    python -m benchmarks.scale              # writes docs/scale.png and docs/scale.json

One line a ratio: what was measured over what growth in proportion to the latents would be. Memory
is that of a process beyond its weights, so every point has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from zerosmooth.bus import HiddenStateBus
from zerosmooth.cascade import Cascade, cascade_step

from .timing import apart, peak_bytes
from .unets import step_of

WINDOW = 16


def point(frames: list[int], size: tuple[int, int], threads: int, repeats: int) -> tuple[float,
                                                                                         int]:
    """Seconds and bytes of one denoising step of stages of `frames`: corrected where there are
    several, in windows."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    run, _, _ = step_of(argparse.Namespace(size=size))
    scales = tuple(b // a for a, b in zip(frames, frames[1:]))
    alone = HiddenStateBus(WINDOW, (max(2, frames[0] // WINDOW),))
    xs = [torch.randn(1, f, 4, *size) for f in frames]
    before, seconds = peak_bytes(), []
    for _ in range(repeats):
        began = time.perf_counter()
        if scales:
            cascade_step(run, xs, Cascade(frames[0], scales).bus(), 0, 0.8)
        else:
            run(0, xs[0], alone.stage(1, strength=0.0))
        seconds.append(time.perf_counter() - began)
    return median(seconds), peak_bytes() - before


def together(processes: int, threads: int, size: tuple[int, int], repeats: int) -> float:
    """Forwards of 16 frames a second, of so many processes at once."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(point, [WINDOW], size, threads, repeats) for _ in range(processes)]
        return sum(1 / job.result()[0] for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128, 256],
                        help="default: 16 to 256")
    parser.add_argument("--size", type=int, nargs=2, default=(8, 16),
                        help="latents, height and width (default: 8 16)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each point (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--outdir", type=Path, default=Path("docs"),
                        help="folder of picture and numbers (default: docs)")
    args = parser.parse_args()
    base = args.size[0], args.size[1]
    measure = partial(apart, point)
    plans: dict[str, dict[str, tuple[list[int], tuple[int, int]]]] = {
        "frames": {str(f): ([f], base) for f in args.frames},
        "size": {f"{k * base[0]}x{k * base[1]}": ([WINDOW], (k * base[0], k * base[1])) for k in (1, 2, 4)},
        "stages": {str(s): ([WINDOW * 2**i for i in range(s)], base) for s in (1, 2, 3, 4)},
    }
    found: dict[str, list[dict[str, object]]] = {}
    for axis, points in plans.items():
        first: tuple[float, float] | None = None
        for name, (frames, size) in points.items():
            seconds, memory = measure(frames, size, args.threads, args.repeats)
            work = sum(frames) * prod(size)
            per = seconds / work, memory / (frames[-1] * prod(size))  # stages run one after the other
            first = first or per
            grown = per[0] / first[0], per[1] / first[1]
            found.setdefault(axis,
                             []).append({axis: name, "latents": work, "seconds": seconds,
                                         "bytes": memory, "time": grown[0], "memory": grown[1]})
            print(f"{axis} {name}  time {grown[0]:.2f}  memory {grown[1]:.2f}  ({seconds:.2f} s)",
                  flush=True)
    one, two = together(1, 2, base, args.repeats), together(2, 1, base, args.repeats)
    print(f"two processes of one thread / one of two, throughput  {two / one:.2f}")
    args.outdir.mkdir(parents=True, exist_ok=True)
    (args.outdir
     / "scale.json").write_text(json.dumps({**found, "two processes": two / one}, indent=1) + "\n")
    draw(found, args.outdir / "scale.png")


def draw(found: dict[str, list[dict[str, object]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(4.2 * len(found), 6),
                                   layout="constrained")
    for column, (axis, points) in zip(axes.T, found.items()):
        x = [point["latents"] for point in points]
        for plot, key, unit, scale in zip(column, ("seconds", "bytes"),
                                          ("s a step", "GB beyond the weights"), (1, 1e9)):
            plot.plot(x, [float(str(point[key])) / scale for point in points], "o-")
            plot.set(xlabel=f"latents, by {axis}", ylabel=unit, xlim=(0, None), ylim=(0, None))
            for point in points:
                plot.annotate(point[axis], (point["latents"], float(str(point[key])) / scale),
                              fontsize="small")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
