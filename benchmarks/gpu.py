"""Whether results on a GPU are right, then how fast whole sampling steps are, in how much memory.

    python -m benchmarks.gpu --out gpu.json                         # some minutes
    python -m benchmarks.gpu --parts golden steps
    python -m benchmarks.gpu --device cpu --tiny                    # to try the script

Networks have the published size, noise for weights, float16, and guidance. Every figure is printed
and written to the JSON file as soon as it is known. Exit status 1 if a check failed. Asked: 45% of
the rate that the card reaches on large square matrices; 64 frames of VideoCrafter2 in 12 GB and 56
of Stable Video Diffusion in 24 GB with all memory settings; offloading in at most 1.10 of the time,
correction at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from zerosmooth.bus import Stage
from zerosmooth.cascade import sample_cascade
from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.layers import frame_chunks
from zerosmooth.settings import Running, Settings, settings_for
from zerosmooth_cli.estimate import matrix_rate, needs

from . import gpu_checks
from .unets import filled

COUNTED = 0.03  # how far what `needs` counts may be from what is measured
RUNNINGS = {  # settings that save memory
    "plain": Running(),
    "all": Running(offload=True, sequential_guidance=True, frame_chunk=4),
    "offload": Running(offload=True),
    "sequential guidance": Running(sequential_guidance=True),
    "4 frames at a time": Running(frame_chunk=4),
}
PRICES = {"offload": 1.1}  # seconds over those of the plain run, asked
GIGABYTES = {"vc2": 12.0, "svd": 24.0}  # asked of all settings together
TINY: dict[str, Any] = {"channels": 64, "channel_mult": (1, 2), "res_blocks": 1,
                        "attention_resolutions": (1, 2)}


class Report:
    """What was measured, on the screen and in a file that is whole after every line."""

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self.path, self.facts, self.lines = path, facts, list[dict[str, Any]]()
        self.failed = False

    def add(self, part: str, name: str, value: float, unit: str = "",
            at_most: float | None = None) -> None:
        """at_most: a bound; a value above it is a failure without a unit, a missed target with
        one."""
        missed = at_most is not None and not value <= at_most
        self.failed |= missed and not unit
        self.lines.append({"part": part, "name": name, "value": value, "unit": unit,
                           "at_most": at_most})
        bound = "" if at_most is None else f", at most {at_most:.3g}{' MISSED' * missed}"
        print(f"{part}  {name}  {value:.3g} {unit}{bound}", flush=True)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps({**self.facts, "results": self.lines}, indent=1) + "\n")


class Bench:
    """Networks of the published size on the device, and what is run on them."""

    def __init__(self, args: argparse.Namespace, report: Report) -> None:
        self.args, self.report, self.device = args, report, torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.float16 if self.cuda else torch.float32
        self.network = cache(self._network)

    def config(self, family: str) -> ModelConfig:
        config = FAMILIES[family].config
        if not self.args.tiny:
            return config
        return replace(config, unet=replace(config.unet, **TINY),
                       vae=replace(config.vae, channels=32))

    def settings(self, family: str, **asked: Any) -> Settings:
        size: dict[str, Any] = {"height": 64, "width": 64} if self.args.tiny else {}
        dtype = str(self.dtype).removeprefix("torch.")
        return settings_for(FAMILIES[family], self.config(family), dtype=dtype, **size, **asked)

    def _network(self, family: str) -> Any:
        make = partial(FAMILIES[family].unet, self.config(family).unet)
        return filled(make, self.device, self.dtype)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def step(self, family: str, running: Running, **asked: Any) -> tuple[float, int]:
        """Seconds of a step of all stages, and peak bytes on the device beside what was there."""
        config, network, settings = (self.config(family), self.network(family),
                                     self.settings(family, **asked))
        cascade, channels, factor = settings.cascade, config.vae.latent_channels, config.vae.factor
        size = settings.height // factor, settings.width // factor
        image = config.unet.in_channels > config.unet.out_channels
        branches = [Branch(self.randn(1, *config.encoder.context_shape),
                           self.randn(1, channels, *size) if image else None)] * 2
        guided = Guidance(network, branches, settings, running.sequential_guidance)
        told = [FAMILIES[family].condition(config, settings.fps_of(s), settings)
                for s in range(cascade.stages)]
        told = [x if x is None else x.to(self.device) for x in told]
        sampler = config.sampler.sampler(self.args.steps, 0.0)
        noise = self.randn(1, cascade.frames_of(cascade.stages - 1), channels, *size).float()
        began: list[float] = []

        def run(i: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
            if index == 0:
                self.synchronize()
                began.append(time.perf_counter())
            return guided(x, sampler.timestep(i), told[index], stage)

        before = peak = 0
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        with frame_chunks(network, running.frame_chunk):
            bus = settings.bus("cpu" if running.offload else None)
            sample_cascade(run, sampler, cascade, lambda step: noise, bus)
        self.synchronize()
        began.append(time.perf_counter())
        if self.cuda:
            peak = torch.cuda.max_memory_allocated()
        seconds = [b - a for a, b in zip(began, began[1:])]
        return median(seconds[1:] or seconds), peak - before


def checks(name: str, bench: Bench) -> None:
    """Correctness, see `gpu_checks`; TF32 is off there."""
    with gpu_checks.exact():
        for line, error, bound in gpu_checks.CHECKS[name](bench.device):
            bench.report.add(name, line, error, at_most=bound)


def steps(bench: Bench) -> None:
    """A step of all stages with each memory setting: seconds, share of the matrix rate, and memory,
    which is compared with what `needs` counts."""
    add = partial(bench.report.add, "steps")
    rate = matrix_rate(bench.device, bench.dtype)
    add("large square matrices", rate / 1e12, "TFLOP/s")
    for family in bench.args.families:
        config, settings = bench.config(family), bench.settings(family)
        plain: float | None = None
        for name, running in RUNNINGS.items():
            try:
                seconds, peak = bench.step(family, running)
            except torch.OutOfMemoryError:
                add(f"{family} {name} does not fit into this card's memory", float("inf"), "GB")
                continue
            plain = plain or seconds
            count = needs(FAMILIES[family], config, settings, running)
            add(f"{family} {name}", seconds, "s a step")
            add(f"{family} {name} of the matrix rate", count.flops / seconds / rate, "(0.45 asked)")
            add(f"{family} {name} / plain", seconds / plain, "times", PRICES.get(name))
            if bench.cuda:
                asked = GIGABYTES[family] if name == "all" else None
                add(f"{family} {name} weights and step", (count.weights + peak) / 1e9, "GB", asked)
                add(f"{family} {name} measured / counted", peak / count.step, "times", 1 + COUNTED)


def overhead(bench: Bench) -> None:
    """A corrected step against the same stages in windows without correction."""
    for family in bench.args.families:
        corrected, windowed = (bench.step(family, Running(), method=method)[0]
                               for method in ("zerosmooth", "windowed"))
        bench.report.add("overhead", f"{family} corrected / windowed", corrected / windowed,
                         "times", 1.15)


PARTS: dict[str, Callable[[Bench], None]] = {  # in the order in which they matter
    **{name: partial(checks, name) for name in gpu_checks.CHECKS},
    "steps": steps, "overhead": overhead,
}


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--families", nargs="+", choices=GIGABYTES, default=list(GIGABYTES), help="default: all")
    add("--steps", type=int, default=3, help="of each run; the first does not count (default: 3)")
    add("--out", type=Path, metavar="FILE", help="JSON of all results, written after each")
    add("--device", default="cuda", help="default: cuda")
    add("--tiny", action="store_true", help="networks of a few channels, to try the script")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device; --device cpu --tiny tries the script")
        return 1
    device = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    report = Report(args.out, {"device": device, "torch": torch.__version__,
                               "cuda": torch.version.cuda, "command": sys.argv[1:]})
    print(report.facts, flush=True)
    bench = Bench(args, report)
    for part in args.parts:
        try:
            PARTS[part](bench)
        except Exception as error:  # whatever a part meets, the others are still measured
            report.failed = True
            report.facts.setdefault("errors", {})[part] = f"{type(error).__name__}: {error}"
            print(f"{part}  failed: {type(error).__name__}: {error}", flush=True)
    report.write()
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
