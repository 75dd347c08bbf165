"""Whole denoising steps on a GPU, at the sizes of the paper: seconds, share of the card's matrix rate, memory.

    python -m benchmarks.gpu                        # VideoCrafter2 at 320x512 and Stable Video Diffusion at 576x1024
    python -m benchmarks.gpu --families svd --settings plain all --steps 5

Networks of the published size in float16 with small noise for weights, guided. One line a setting: seconds a step (the
first one does not count), the share of what the card reaches on large square matrices, the most memory, and both over
the plain run's. Then the cascade against the same stages in windows without correction, torch.compile against none,
and ours against diffusers' network of Stable Video Diffusion. Goals: 45% of the matrix rate; 64 frames of
VideoCrafter2 in 12 GB and 56 of Stable Video Diffusion in 24 GB with all memory settings; the cascade at most 1.15.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from zerosmooth.bus import Stage
from zerosmooth.cascade import Cascade, sample_cascade
from zerosmooth.config import FAMILIES, ModelConfig
from zerosmooth.estimate import matrix_rate, needs
from zerosmooth.models.layers import set_frame_chunk
from zerosmooth.models.unet import Skeleton
from zerosmooth.pipeline import UNETS, Branch, Guidance, condition

from .unets import filled


@dataclass(frozen=True)
class Setting:
    """cascade: what of `Cascade` differs. The others are settings of `Pipeline.sample`."""

    cascade: dict[str, Any]
    sequential: bool = False
    frame_chunk: int | None = None


SETTINGS = {
    "plain": Setting({}),
    "offload": Setting({"bus_device": "cpu"}),
    "sequential_guidance": Setting({}, sequential=True),
    "frame_chunk": Setting({}, frame_chunk=4),
    "all": Setting({"bus_device": "cpu"}, sequential=True, frame_chunk=4),
}


def measure(
    config: ModelConfig, network: Any, setting: Setting, args: argparse.Namespace, strength: float = 0.8
) -> tuple[float, int]:
    """Seconds a step and the most bytes on the device, of a guided cascade."""
    device = torch.device(args.device)
    cascade = replace(shape_of(config), strength=strength, strength_schedule="constant", **setting.cascade)
    context = torch.randn(1, *config.encoder.context_shape, device=device, dtype=args.dtype)
    height, width = args.size or (config.defaults.height, config.defaults.width)
    h, w = height // config.vae.factor, width // config.vae.factor
    z = torch.randn(1, 4, h, w, device=device, dtype=args.dtype) if config.takes_images else None
    guided = Guidance(network, [Branch(context, z)] * 2, config.defaults.guidance_scale, sequential=setting.sequential)
    set_frame_chunk(network, setting.frame_chunk)
    sampler = config.sampler.sampler(args.steps, 0.0)
    began: list[float] = []

    def run(i: int, stage: int, x: Tensor, view: Stage | None) -> Tensor:
        if stage == 0:
            synchronize(device)
            began.append(time.perf_counter())
        told = condition(config, 8.0 * cascade.rate(stage), 127, 0.02)
        return guided(x, sampler.timestep(i), told, view)

    noise = torch.randn(1, cascade.frames_of(cascade.stages - 1), 4, h, w, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    sample_cascade(run, sampler, cascade, lambda step: noise)
    synchronize(device)
    began.append(time.perf_counter())
    seconds = [b - a for a, b in zip(began, began[1:])]
    return median(seconds[1:] or seconds), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def shape_of(config: ModelConfig) -> Cascade:
    return Cascade(config.unet.frames, (2, 2))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def family(name: str, args: argparse.Namespace) -> None:
    """Print a family's lines."""
    config = FAMILIES[name]
    network = filled(UNETS[name], config.unet).to(args.device, args.dtype)
    assert isinstance(network, Skeleton)
    height, width = args.size or (config.defaults.height, config.defaults.width)
    flops = needs(config, shape_of(config), height, width, args.dtype, guided=True).flops
    rate = matrix_rate(torch.device(args.device), args.dtype)
    frames = ", ".join(str(shape_of(config).frames_of(s)) for s in range(3))
    print(f"{name}, {frames} frames of {height}x{width}: {flops / 1e12:.0f} TFLOP a step; {rate / 1e12:.0f} TFLOP/s")
    first: tuple[str, float, int] | None = None  # that fits
    for setting in args.settings:
        try:
            seconds, memory = measure(config, network, SETTINGS[setting], args)
        except torch.OutOfMemoryError:
            print(f"{name}  {setting}  does not fit into this device's memory", flush=True)
            continue
        first = first or (setting, seconds, memory)
        print(
            f"{name}  {setting}  {seconds:.2f} s a step, {flops / seconds / rate:.0%} of the matrix rate, "
            f"{memory / 1e9:.1f} GB  (time {seconds / first[1]:.2f}, memory {memory / max(1, first[2]):.2f} of "
            f"{first[0]})",
            flush=True,
        )
    try:
        windowed, _ = measure(config, network, SETTINGS["plain"], args, strength=0.0)
        corrected, _ = measure(config, network, SETTINGS["plain"], args)
        print(f"{name}  cascade / windowed  {corrected / windowed:.2f}  at most 1.15", flush=True)
    except torch.OutOfMemoryError:
        print(f"{name}  cascade / windowed  not measured: it does not fit into this device's memory", flush=True)
    alone = one_evaluation(config, network, args)
    network.compile()
    one_evaluation(config, network, args)  # compiles
    print(f"{name}  compiled / not, the plain network  {one_evaluation(config, network, args) / alone:.2f}", flush=True)
    del network
    if name == "svd" and importlib.util.find_spec("diffusers"):
        from .peers import svd

        theirs = svd(None).eval().requires_grad_(False).to(args.device, args.dtype)
        print(
            f"svd  ours / diffusers, the plain network  {alone / one_evaluation(config, theirs, args):.2f}", flush=True
        )


def one_evaluation(config: ModelConfig, network: Any, args: argparse.Namespace) -> float:
    """Median seconds of the plain network on the frames it was trained on."""
    height, width = args.size or (config.defaults.height, config.defaults.width)
    made = {"device": args.device, "dtype": args.dtype}
    x = torch.randn(
        1,
        config.unet.frames,
        config.unet.in_channels,
        height // config.vae.factor,
        width // config.vae.factor,
        **made,
    )
    context, t = torch.randn(1, *config.encoder.context_shape, **made), torch.ones(1, device=args.device)
    told = condition(config, 8, 127, 0.02)
    told = None if told is None else told[None].to(args.device)
    ours = isinstance(network, Skeleton)
    seconds = []
    for _ in range(args.steps):
        synchronize(torch.device(args.device))
        began = time.perf_counter()
        if ours:
            network(x, t, context, told)
        else:
            network(x, t, context, added_time_ids=told)
        synchronize(torch.device(args.device))
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:] or seconds)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["vc2", "svd"], help="default: vc2 svd")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all of them")
    parser.add_argument("--size", type=int, nargs=2, help="pixels, height and width (default: the family's own)")
    parser.add_argument("--steps", type=int, default=5, help="of each run; the first does not count (default: 5)")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no CUDA device here; --device cpu --size 64 64 --steps 1 tries the script")
        return 1
    args.dtype = torch.float16 if args.device.startswith("cuda") else torch.float32
    for name in args.families:
        family(name, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
