"""All that a GPU is asked, in one command: whether results are right there, then how fast, and in
how much memory.

    python -m benchmarks.gpu --out gpu.json                         # about six minutes on an H100
    python -m benchmarks.gpu --parts golden steps --budget 120      # what matters first, and no longer than that
    python -m benchmarks.gpu --device cpu --tiny                    # that it runs through

Networks have the published size and noise for weights, float16, and are guided. Every figure is
printed and written to the JSON file as soon as it is known, so a run that is cut short keeps what
it has. Exit status 1 if a check failed. Asked: 45% of the rate that the card reaches on large
square matrices; 64 frames of VideoCrafter2 in 12 GB and 56 of Stable Video Diffusion in 24 GB with
all memory settings; offloading at most 1.10 of the time, correction at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from threading import Timer
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zerosmooth import kernels
from zerosmooth.bus import Stage
from zerosmooth.cascade import sample_cascade
from zerosmooth.config import ModelConfig
from zerosmooth.estimate import Needs, matrix_rate, needs
from zerosmooth.families import FAMILIES
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.models.layers import Upsample, frame_chunks
from zerosmooth.models.unet import Skeleton
from zerosmooth.settings import Running, Settings, settings_for

from . import gpu_checks

COUNTED = 0.03  # of what is counted without running, how far the truth may be


RUNNINGS = {  # settings that save memory
    "plain": Running(),
    "all": Running(offload=True, sequential_guidance=True, frame_chunk=4),
    "offload": Running(offload=True),
    "sequential guidance": Running(sequential_guidance=True),
    "4 frames at a time": Running(frame_chunk=4),
}
PRICES = {"offload": 1.1}  # of the plain run's seconds, asked
GIGABYTES = {"vc2": 12.0, "svd": 24.0}  # asked of all settings together
TINY: dict[str, Any] = {"channels": 64, "channel_mult": (1, 2), "res_blocks": 1,
                        "attention_resolutions": (1, 2)}


class Report:
    """What was measured, on the screen and in a file that is whole after every line."""

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.lines: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self.failed = False

    def add(self, part: str, name: str, value: float, unit: str = "", at_most: float | None = None,
            **more: Any) -> None:
        """at_most: a bound; a line above it is a failure where it has no unit, and only missed
        where it has one."""
        line = {"part": part, "name": name, "value": value, "unit": unit, "at_most": at_most,
                **more}
        line = {key: entry for key, entry in line.items() if entry not in (None, "")}
        missed = at_most is not None and not value <= at_most
        self.failed |= missed and not unit
        self.lines.append(line)
        shown = f"{value:.1e}" if not unit else f"{value:.3g} {unit}"
        if at_most is not None:
            shown += f", at most {at_most:.3g}" + (" MISSED" if missed else "")
        print(f"{time.perf_counter() - self.began:6.1f}  {part}  {name}  {shown}", flush=True)
        self.write()

    def write(self, **end: Any) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps({**self.facts, **end, "results": self.lines}, indent=1)
                                 + "\n")


class Bench:
    """Networks of the published size on the device, and what is run on them."""

    def __init__(self, args: argparse.Namespace, report: Report,
                 counting: ProcessPoolExecutor) -> None:
        self.args, self.report, self.counting = args, report, counting
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.float16 if self.cuda else torch.float32
        self.network, self.rate = cache(self._network), cache(lambda: matrix_rate(self.device,
                                                                                  self.dtype))
        self.count = cache(self._count)

    def config(self, family: str) -> ModelConfig:
        config = FAMILIES[family].config
        if not self.args.tiny:
            return config
        return replace(config, unet=replace(config.unet, **TINY),
                       vae=replace(config.vae, channels=32))

    def settings(self, family: str, **asked: Any) -> Settings:
        asked = {"dtype": str(self.dtype).removeprefix("torch."), **asked}
        if self.args.tiny:
            asked |= {"height": 64, "width": 64}
        return settings_for(FAMILIES[family], self.config(family), **asked)

    def condition(self, family: str, fps: float, settings: Settings) -> Tensor | None:
        told = FAMILIES[family].condition(self.config(family), fps, settings)
        return None if told is None else told.to(self.device)

    def latents(self, family: str, frames: int, channels: int | None = None,
                batch: int = 1) -> Tensor:
        settings, config = self.settings(family), self.config(family)
        height, width = settings.height, settings.width
        shape = (batch, frames, channels or config.unet.in_channels, height // config.vae.factor,
                 width // config.vae.factor)
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def context(self, family: str, batch: int = 1) -> Tensor:
        return torch.randn(batch, *self.config(family).encoder.context_shape, device=self.device,
                           dtype=self.dtype)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """Median seconds of some work, after one run that does not count."""
        times = []
        for _ in range(repeats + 1):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - began)
        return median(times[1:])

    def _network(self, family: str) -> Skeleton:
        return noisy(lambda: FAMILIES[family].unet(self.config(family).unet), self.device,
                     self.dtype)

    def evaluation(self, family: str, network: Callable[..., object] | None = None) -> Callable[[], object]:
        """One evaluation of the plain network, both branches of guidance, of the frames it was
        trained on."""
        config, network = self.config(family), self.network(family) if network is None else network
        x, context = self.latents(family, config.unet.frames, batch=2), self.context(family, 2)
        told, t = self.condition(family, 8.0, self.settings(family)), torch.full((2,), 1.0,
                                                                                 device=self.device)
        numbers = None if told is None else told.expand(2, *told.shape)
        return partial(network, x, t, context, numbers)

    def step(self, family: str, running: Running, steps: int, **asked: Any) -> tuple[float, int,
                                                                                     int]:
        """Seconds a step of all stages, and bytes on the device at most: beside what was there
        before, and reserved."""
        config, network, settings = self.config(family), self.network(family), self.settings(family, **asked)
        cascade = settings.cascade
        z = self.latents(family, 1, 4)[:, 0] if config.unet.in_channels > config.unet.out_channels else None
        branches = [Branch(self.context(family), z)] * 2
        guided = Guidance(network, branches, settings, running.sequential_guidance)
        told = [self.condition(family, settings.fps_of(stage), settings)
                for stage in range(cascade.stages)]
        sampler = config.sampler.sampler(steps, 0.0)
        noise = self.latents(family, cascade.frames_of(cascade.stages - 1), 4).float()
        began: list[float] = []

        def run(i: int, stage: int, x: Tensor, view: Stage | None) -> Tensor:
            if stage == 0:
                self.synchronize()
                began.append(time.perf_counter())
            return guided(x, sampler.timestep(i), told[stage], view)

        before = 0
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        with frame_chunks(network, running.frame_chunk):
            sample_cascade(run, sampler, cascade, lambda step: noise,
                           cascade.bus("cpu" if running.offload else None))
        self.synchronize()
        began.append(time.perf_counter())
        seconds = [b - a for a, b in zip(began, began[1:])]
        peak, reserved = (torch.cuda.max_memory_allocated(),
                          torch.cuda.max_memory_reserved()) if self.cuda else (0, 0)
        return median(seconds[1:] or seconds), peak - before, reserved

    def _count(self, family: str, running: Running) -> Future[Needs]:
        """What `needs` says, in another process beside the card's work."""
        return self.counting.submit(counted, family, self.config(family), self.settings(family),
                                    running)


def counted(family: str, config: ModelConfig, settings: Settings, running: Running) -> Needs:
    return needs(FAMILIES[family], config, settings, running)


def noisy(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> Any:
    """A network on the device, without a way through the CPU; its weights are small noise."""
    with torch.device("meta"):
        network = make()
    network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for p in network.parameters():
        p.uniform_(-0.03, 0.03)
    return network


def checks(name: str, bench: Bench) -> None:
    """Correctness, see `gpu_checks`; TF32 is off there."""
    with gpu_checks.exact():
        for line, error, bound in gpu_checks.CHECKS[name](bench.device):
            bench.report.add(name, line, error, at_most=bound)


def steps(bench: Bench) -> None:
    """A step of all stages with each memory setting: seconds, share of the matrix rate, memory,
    also as counted."""
    futures = {key: bench.count(*key) for f in bench.args.families
               for key in [(f, r) for r in RUNNINGS.values()]}
    bench.report.add("steps", "large square matrices", bench.rate() / 1e12, "TFLOP/s")
    for family in bench.args.families:
        plain: float | None = None
        for name, running in RUNNINGS.items():
            try:
                seconds, peak, reserved = bench.step(family, running, bench.args.steps)
            except torch.OutOfMemoryError:
                bench.report.add("steps", f"{family} {name} does not fit into this card's memory",
                                 float("inf"), "GB")
                continue
            count = futures[family, running].result()
            plain = plain or seconds
            add = partial(bench.report.add, "steps")
            add(f"{family} {name}", seconds, "s a step", tflop=count.flops / 1e12)
            add(f"{family} {name} of the matrix rate", count.flops / seconds / bench.rate(),
                "(0.45 is asked)")
            if name != "plain":
                add(f"{family} {name} / plain, seconds", seconds / plain, "times", PRICES.get(name))
            if bench.cuda:
                whole = (count.weights + peak) / 1e9
                add(f"{family} {name} weights and step", whole, "GB", GIGABYTES[family] if name
                    == "all" else None)
                add(f"{family} {name} step, measured / counted", peak / count.step, "times", 1
                    + COUNTED)
                add(f"{family} {name} reserved", reserved / 1e9, "GB")


def overhead(bench: Bench) -> None:
    """A corrected step against the same stages in windows without correction."""
    for family in bench.args.families:
        corrected, windowed = (bench.step(family, Running(), bench.args.steps, method=method)[0]
                               for method in ("zerosmooth", "windowed"))
        bench.report.add("overhead", f"{family} corrected / windowed", corrected / windowed,
                         "times", 1.15)


def profile(bench: Bench) -> None:
    """Where the time of a step goes, by kernel."""
    from torch.profiler import ProfilerActivity

    activity = [ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]
    for family in bench.args.families:
        bench.step(family, Running(), 1)
        with torch.profiler.profile(activities=activity) as profiler:
            seconds = bench.step(family, Running(), 1)[0]
        spent = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
        kinds = {entry.key: (getattr(entry, spent) / 1e6, entry.count)
                 for entry in profiler.key_averages()}
        busy = sum(t for t, _ in kinds.values())
        bench.report.add("profile", f"{family} step", seconds, "s", busy=busy)
        for kind, (t, count) in sorted(kinds.items(), key=lambda item: -item[1][0])[:25]:
            bench.report.add("profile", f"{family} {kind[:110]}", t, "s", count=count)


def layouts(bench: Bench) -> None:
    """Memory layouts of images and of convolutions' kernels: one evaluation of the plain
    network."""
    kept = dict(kernels.LAYOUTS)
    try:
        for family in bench.args.families:
            network, work = bench.network(family), bench.evaluation(family)
            for images, weights in (("contiguous", "contiguous"), ("channels_last", "contiguous"),
                                    ("channels_last", "channels_last")):
                kernels.LAYOUTS[bench.device.type] = FORMATS[images][0]
                for p in network.parameters():
                    if p.ndim >= 4:
                        p.data = p.data.contiguous(memory_format=FORMATS[weights][p.ndim - 4])
                name = f"{family} images {images}, kernels {weights}"
                bench.report.add("layouts", name, bench.seconds(work, 5), "s")
            for p in network.parameters():
                p.data = p.data.contiguous()
    finally:
        kernels.LAYOUTS.update(kept)


FORMATS = {"contiguous": (torch.contiguous_format, torch.contiguous_format),
           "channels_last": (torch.channels_last, torch.channels_last_3d)}


def layers(bench: Bench) -> None:
    """Layers that can be computed in more than one way, at the sizes of 16 guided frames of
    320x512."""
    n, c, h, w = (4, 64, 8, 8) if bench.args.tiny else (32, 320, 40, 64)
    make: dict[str, Any] = {"device": bench.device, "dtype": bench.dtype}
    x = torch.randn(n, c, h, w, **make)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    up = noisy(lambda: Upsample(2 * c), bench.device, bench.dtype)
    small = torch.randn(n, 2 * c, h // 2, w // 2, **make)
    conv = noisy(lambda: nn.Conv2d(c, c, 3, padding=1), bench.device, bench.dtype)
    over = noisy(lambda: nn.Conv3d(c, c, (3, 1, 1), padding=(1, 0, 0)), bench.device, bench.dtype)
    video = x.view(2, n // 2, c, h, w).transpose(1, 2).contiguous()
    video_last = video.contiguous(memory_format=torch.channels_last_3d)
    flat, flat_kernel = video.flatten(3), over.weight.squeeze(-1)  # b c f (h w), o i 3 1
    flat_last = flat.contiguous(memory_format=torch.channels_last)
    kernel_last = flat_kernel.contiguous(memory_format=torch.channels_last)
    norm, own_norm = (noisy(lambda: kind(32, c), bench.device, bench.dtype)
                      for kind in (nn.GroupNorm, kernels.GroupNorm))
    qkv = torch.randn(n // 2, 2 * h * w, 3 * c, **make)  # f l (three h d), as a temporal attention has it
    parts = rearrange(qkv, "f l (three h d) -> three l h f d", three=3, d=64)
    q, k, v = (torch.randn(h * w * 2, c // 64, n // 2, 64, **make) for _ in range(3))  # l h f d
    tokens = torch.randn(1, n, h * w, c, **make)
    wide, narrow = (noisy(partial(nn.Linear, c, out), bench.device, bench.dtype)
                    for out in (8 * c, c))
    qs, ks, vs = (torch.randn(n, c // 64, h * w, 64, **make) for _ in range(3))
    works: dict[str, tuple[Callable[[], object], float]] = {
        "upsampling, transposed": (lambda: up(small), 0),
        "upsampling, nearest and convolution": (lambda: up.conv(F.interpolate(small, scale_factor=2.0)), 0),
        "3x3 convolution, contiguous": (lambda: conv(x), 18 * c * x.numel()),
        "3x3 convolution, channels-last image": (lambda: conv(nhwc), 18 * c * x.numel()),
        "convolution over frames, 3d": (lambda: over(video), 6 * c * x.numel()),
        "convolution over frames, 3d, channels-last": (lambda: over(video_last), 6 * c * x.numel()),
        "convolution over frames, 2d": (
            lambda: F.conv2d(flat, flat_kernel, over.bias, padding=(1, 0)),
            6 * c * x.numel(),
        ),
        "convolution over frames, 2d, channels-last": (
            lambda: F.conv2d(flat_last, kernel_last, over.bias, padding=(1, 0)),
            6 * c * x.numel(),
        ),
        "group norm, contiguous": (lambda: norm(x), 0),
        "group norm, channels-last": (lambda: norm(nhwc), 0),
        "group norm, channels-last, our own": (lambda: own_norm(nhwc), 0),
        "attention over 16 frames, fused": (lambda: F.scaled_dot_product_attention(q, k, v), 4 * n // 2 * q.numel()),
        "attention over 16 frames, written out": (
            lambda: ((q @ k.transpose(-1, -2)) * 0.125).softmax(-1) @ v,
            4 * n // 2 * q.numel(),
        ),
        "attention over 16 frames, written out, laid out before": (
            lambda: ((p := parts.contiguous())[0] @ p[1].mT).mul_(0.125).softmax(-1) @ p[2],
            4 * n // 2 * q.numel(),
        ),
        **{
            f"attention over 16 frames, fused, {backend.name}": (
                partial(by_kernel, backend, parts),
                4 * n // 2 * q.numel(),
            )
            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
            if bench.cuda
        },
        "attention over tokens": (lambda: F.scaled_dot_product_attention(qs, ks, vs), 4 * h * w * x.numel()),
        "linear, 8 times as many channels": (lambda: wide(tokens), 16 * c * x.numel()),
        "linear, as many channels": (lambda: narrow(tokens), 2 * c * x.numel()),
        "layer norm": (lambda: F.layer_norm(tokens, (c,)), 0),
        "GELU gate": (lambda: tokens * F.gelu(tokens), 0),
        "copy": (lambda: x.clone(), 0),
    }
    conv_last = noisy(lambda: nn.Conv2d(c, c, 3, padding=1), bench.device,
                      bench.dtype).to(memory_format=torch.channels_last)
    works["3x3 convolution, channels-last image and kernel"] = (lambda: conv_last(nhwc), 18 * c
                                                                * x.numel())
    for name, (work, flops) in works.items():
        seconds = bench.seconds(partial(repeated, work, 10)) / 10
        bench.report.add("layers", name, 1e6 * seconds, "us",
                         of_rate=round(flops / seconds / bench.rate(), 3) or None)


def by_kernel(backend: SDPBackend, parts: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        q, k, v = parts
        return F.scaled_dot_product_attention(q, k, v)


def repeated(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def decode(bench: Bench) -> None:
    """Decoding as many frames as are decoded at a time."""
    for family in bench.args.families:
        config = bench.config(family)
        dtype = torch.float32 if config.vae.float32 else bench.dtype
        vae = noisy(lambda: Autoencoder(config.vae), bench.device, dtype)
        z, before = bench.latents(family, config.vae.decode_chunk_size, 4)[0].to(dtype), 0
        if bench.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        seconds = bench.seconds(lambda: vae.decode_raw(z), 2)
        bench.report.add("decode", f"{family} {len(z)} frames, {str(dtype)[6:]}", seconds, "s")
        if bench.cuda:
            peak, count = torch.cuda.max_memory_allocated() - before, bench.count(family,
                                                                                  Running()).result(
                ).decoding
            bench.report.add("decode", f"{family} measured / counted", peak / count, "times", 1
                             + COUNTED, bytes=peak)


def diffusers(bench: Bench) -> None:
    """Our network of Stable Video Diffusion against diffusers', with the same weights."""
    if find_spec("diffusers") is None or bench.args.tiny:
        print("diffusers is not installed here, or not asked for; left out", flush=True)
        return
    from . import peers

    default = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with bench.device:
            theirs = peers.svd(None).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    ours = peers.ours_with("svd", theirs)
    x, context = bench.latents("svd", 14, batch=2), bench.context("svd", 2)
    t, told = torch.full((2,), 1.0, device=bench.device), bench.condition("svd", 7.0,
                                                                          bench.settings("svd"))
    assert told is not None
    numbers = told.expand(2, 3)
    run_ours, run_theirs = partial(ours, x, t, context, numbers), partial(theirs, x, t, context,
                                                                          added_time_ids=numbers)
    bench.report.add("diffusers", "svd, difference",
                     gpu_checks.difference(run_ours(), run_theirs().sample), at_most=0.1)
    a, b = bench.seconds(run_ours), bench.seconds(run_theirs)
    bench.report.add("diffusers", "svd, diffusers", b, "s")
    bench.report.add("diffusers", "svd, ours / diffusers, plain network", a / b, "times", 1.0)


def compile(bench: Bench) -> None:
    """torch.compile of the plain network."""
    for family in bench.args.families:
        alone = bench.seconds(bench.evaluation(family))
        network = torch.compile(bench.network(family), fullgraph=True)
        work = bench.evaluation(family, network)
        began = time.perf_counter()
        work()
        bench.synchronize()
        bench.report.add("compile", f"{family} compiling", time.perf_counter() - began, "s")
        bench.report.add("compile", f"{family} compiled / not, plain network", bench.seconds(work)
                         / alone, "times", 1.0)


PARTS: dict[str, Callable[[Bench], None]] = {  # in the order in which they matter
    **{name: partial(checks, name) for name in gpu_checks.CHECKS},
    "steps": steps,
    "profile": profile,
    "layers": layers,
    "layouts": layouts,
    "diffusers": diffusers,
    "overhead": overhead,
    "decode": decode,
    "compile": compile,
}


def stop(report: Report, part: list[str]) -> None:
    """End the process, whatever it waits for: what was measured is in the file."""
    report.write(cut_short_in=part[-1])
    for process in active_children():
        process.terminate()
    print(f"the budget is spent; cut short in {part[-1]}", flush=True)
    os._exit(int(report.failed))


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS),
                        help="default: all, in this order")
    parser.add_argument("--families", nargs="+", choices=GIGABYTES, default=list(GIGABYTES),
                        help="default: vc2 svd")
    parser.add_argument("--steps", type=int, default=3,
                        help="of each run; the first does not count (default: 3)")
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="stop then, wherever it is (default: never)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="JSON of all results, written after each")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--tiny", action="store_true",
                        help="networks of a few channels, to try the script")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device here; --device cpu --tiny tries the script")
        return 1
    facts = {"device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
             "torch": torch.__version__, "cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version() if cuda else None, "command": sys.argv[1:]}
    report = Report(args.out, facts)
    print(facts, flush=True)
    going = ["start"]
    if args.budget:
        timer = Timer(args.budget, stop, (report, going))
        timer.daemon = True
        timer.start()
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as counting:
        bench = Bench(args, report, counting)
        for part in args.parts:
            going.append(part)
            try:
                PARTS[part](bench)
            except Exception as error:  # whatever a part meets, the others are still measured
                report.failed = True
                report.facts.setdefault("errors", {})[part] = f"{type(error).__name__}: {error}"
                print(f"{part}  failed: {type(error).__name__}: {error}", flush=True)
    report.write(seconds=time.perf_counter() - report.began)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
