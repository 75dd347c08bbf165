"""Our networks against the authors' own and diffusers', and what the cascade adds; one line a row:
name, ratio, limit.

    python -m benchmarks.unets --videocrafter VideoCrafter/ --lavie LaVie/
    python -m benchmarks.unets --rows cascade memory
    python -m benchmarks.unets --rows cascade --repeats 0        # operations alone, counted at once

Full size, float32 on the CPU, weights by the rule of `tests.parity`, latents of 16x24. Networks run
by turns; a ratio is of medians, the peer's the better one of its default and its channels-last
layout. A peer that is not given is skipped: diffusers comes with `pip install ".[benchmarks]"`, the
authors' repositories by path. Exit status 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zerosmooth import checkpoint
from zerosmooth.bus import Stage
from zerosmooth.cascade import Cascade, cascade_step
from zerosmooth.config import ModelConfig, Sampling
from zerosmooth.estimate import matrix_rate, needs
from zerosmooth.families import FAMILIES
from zerosmooth.family import Family, Networks
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.models.unet import Skeleton
from zerosmooth.settings import Settings, settings_for

from . import peers
from .timing import Work, apart, by_turns, peak_bytes, ratio

ROWS = {  # name, limit
    "svd": ("SVD UNet, 14 frames: ours / diffusers", 0.85),
    "vc2": ("VideoCrafter2 UNet, 16 frames: ours / theirs", 0.75),
    "lavie": ("LaVie UNet, 16 frames: ours / theirs", 0.75),
    "cascade": ("four times the frames, new ones alone: a guided step / of the first stage", 5.0),
    "join": ("the same, all frames in a share of the steps (--join): a mean step", 3.5),
    "both": ("the same, new ones alone and in that share of the steps", 3.5),
    "reuse": ("the same, all frames, inner levels in every second step (--reuse 2): a mean step", 5.0),
    "correction": ("a step of the cascade of 16, 32, 64 frames / three plain windowed forwards", 1.15),
    "memory": ("peak memory of that step / of the plain forward of 64 frames", 1.2),
    "decode": ("decoding 64 frames: ours / diffusers' AutoencoderKL", 1.0),
    "load": ("load a converted checkpoint: ours / diffusers' from_pretrained", 0.7),
}
FORMATS = {  # of weights of four and of five dimensions
    "default": (torch.contiguous_format, torch.contiguous_format),
    "channels-last": (torch.channels_last, torch.channels_last_3d),
}


def setup(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)


def unet(family: str, args: argparse.Namespace) -> float:
    """Of one evaluation of a family's UNet. AssertionError if the outputs differ."""
    setup(args)
    path = {"vc2": args.videocrafter, "lavie": args.lavie and args.lavie / "base",
            "svd": None}[family]
    height, width = args.size
    pair = peers.pair(family, height, width, path)
    error = pair.error()
    assert error < 1e-3, f"the two networks differ by {error}"
    laid = {f"theirs, {name}": (partial(lay_out, pair.theirs, layout), pair.run_theirs)
            for name, layout in FORMATS.items()}
    seconds = by_turns({"ours": (lambda: None, pair.run_ours), **laid}, args.repeats)
    with FlopCounterMode(display=False) as counter:
        pair.run_ours()
    best, rate = min(seconds["ours"]), matrix_rate(torch.device("cpu"), torch.float32)
    say(seconds, f"ours {counter.get_total_flops() / best / rate:.0%} of the matrix rate, {rate / 1e9:.0f} GFLOP/s")
    return ratio(*seconds.values())


def lay_out(network: torch.nn.Module,
            layout: tuple[torch.memory_format, torch.memory_format]) -> None:
    """Put a network's convolutions into a memory layout; their outputs follow it."""
    for p in network.parameters():
        if p.ndim >= 4:
            p.data = p.data.contiguous(memory_format=layout[p.ndim - 4])


SHAPES: dict[str, dict[str, Any]] = {  # cascades, by the settings that make them
    "first stage": {"scales": ()},
    "anchored": {"preset": "anchored"},
    "new frames": {"preset": "anchored", "new_frames": True},
    "reuse": {"preset": "anchored", "reuse": 2},
}


def cascade(args: argparse.Namespace) -> dict[str, float]:
    """Of each family, what a guided step of four times the frames takes for one of the first stage:
    by row, the worst of them. Operations are counted; without repeats nothing is timed, and it is
    they that are compared."""
    worst: dict[str, float] = {}
    for name in ("vc2", "lavie", "svd"):
        family = FAMILIES[name]
        taken = apart(steps, family, family.config, args)
        ratios = {kind: x / taken["first stage"] for kind, x in taken.items()}
        print(f"    {name}: " + ", ".join(f"{kind} {x:.2f}" for kind, x in ratios.items()),
              flush=True)
        worst = {kind: max(x, worst.get(kind, 0)) for kind, x in ratios.items()}
    joined = {kind: args.join + (1 - args.join) * x for kind, x in worst.items()}
    rows = {"cascade": worst["new frames"], "reuse": worst["reuse"]}
    return {**rows, "join": joined["anchored"], "both": joined["new frames"]}


def steps(family: Family, config: ModelConfig, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a guided step of each of SHAPES, run by turns; or operations, where there
    are no repeats. Of steps that are not alike, the mean."""
    setup(args)
    height, width = (n * config.vae.factor for n in args.size)
    asked = {kind: settings_for(family, config, height=height, width=width, **own)
             for kind, own in SHAPES.items()}
    counts: dict[str, float] = {kind: needs(family, config, settings).flops
                                for kind, settings in asked.items()}
    least = counts["first stage"]
    texts = [f"{kind} {count / 1e12:.3f} TFLOP ({count / least:.3f})"
             for kind, count in counts.items()]
    print(f"    {family.name}: {', '.join(texts)}", flush=True)
    if not args.repeats:
        return counts
    network = filled(family.unet, config.unet)
    assert isinstance(network, Skeleton)
    more = config.unet.in_channels - config.vae.latent_channels  # of an image's latents, beside the noisy ones
    branches = [Branch(torch.randn(1, *config.encoder.context_shape),
                       torch.randn(1, more, *args.size) if more else None) for _ in range(2)]

    def step(settings: Settings) -> Work:
        shape, guided = settings.cascade, Guidance(network, branches, settings)
        told = [family.condition(config, settings.fps_of(s), settings) for s in range(shape.stages)]
        xs = [torch.randn(1, shape.frames_of(s), config.vae.latent_channels, *args.size)
              for s in range(shape.stages)]

        def run() -> None:
            bus = shape.bus()
            for i in range(shape.reuse):
                cascade_step(lambda s, x, view: guided(x, 500.0, told[s], view), xs, bus, i, 0.8)

        return run

    work = {kind: step(settings) for kind, settings in asked.items()}
    seconds = by_turns({kind: (lambda: None, run) for kind, run in work.items()}, args.repeats)
    seconds = {kind: [t / asked[kind].cascade.reuse for t in times]
               for kind, times in seconds.items()}
    say(seconds)
    return {kind: median(times) for kind, times in seconds.items()}


def correction(args: argparse.Namespace) -> float:
    """VideoCrafter2: all stages of a step, corrected, against the same stages in windows without
    correction."""
    setup(args)
    run, xs, shape = step_of(args)
    corrected, plain = shape.bus(), shape.bus()
    seconds = by_turns({"cascade": (lambda: None, lambda: cascade_step(run, xs, corrected, 0, 0.8)),
                        "windowed": (lambda: None, lambda: cascade_step(run, xs, plain, 0, 0.0))},
                       args.repeats)
    say(seconds)
    return ratio(*seconds.values())


def memory(args: argparse.Namespace) -> float:
    """VideoCrafter2: peaks of whole processes, weights included, with glibc's own settings: others
    trade memory for time."""
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("MALLOC_")]:
            del os.environ[name]
        loaded, plain = apart(peak_of, "plain", args)
        _, step = apart(peak_of, "step", args)
    say({}, f"{step / 1e9:.2f} and {plain / 1e9:.2f} GB, of which weights {loaded / 1e9:.2f} GB")
    return step / plain


def peak_of(what: str, args: argparse.Namespace) -> tuple[int, int]:
    """Bytes at most before and after a step or the plain forward of its last stage."""
    setup(args)
    run, xs, shape = step_of(args)
    before = peak_bytes()
    if what == "step":
        cascade_step(run, xs, shape.bus(), 0, 0.8)
    else:
        run(2, xs[2], None)
    return before, peak_bytes()


def step_of(args: argparse.Namespace) -> tuple[Callable[[int, Tensor, Stage | None], Tensor],
                                               list[Tensor], Cascade]:
    """VideoCrafter2's network at full size, with inputs for three stages, and their cascade."""
    family, shape = FAMILIES["vc2"], Cascade(16, (2, 2))
    config = family.config
    network = filled(family.unet, config.unet)
    assert isinstance(network, Skeleton)
    states = network.project_context(torch.randn(1, *config.encoder.context_shape))
    xs = [torch.randn(1, shape.frames_of(s), config.unet.in_channels, *args.size)
          for s in range(shape.stages)]

    def run(stage: int, x: Tensor, view: Stage | None) -> Tensor:
        told = family.condition(config, 8.0 * shape.scale_of(stage), Sampling())
        assert told is not None
        return network(x, torch.tensor([500.0]), states, told[None], view)

    return run, xs, shape


def filled(kind: Callable[..., torch.nn.Module], *config: object) -> torch.nn.Module:
    """A network of a config, made in no more memory than it needs; its weights are small noise."""
    with torch.device("meta"):
        network = kind(*config)
    network.to_empty(device="cpu").eval().requires_grad_(False)
    for p in network.parameters():
        p.uniform_(-0.03, 0.03)
    return network


def decode(args: argparse.Namespace) -> float:
    """Stable Diffusion's autoencoder, which VideoCrafter2 and LaVie use: one video, chunk by chunk.
    Which layout and chunk suit the peer best is tried on 16 frames."""
    from diffusers import AutoencoderKL

    setup(args)
    theirs: Any = AutoencoderKL(block_out_channels=(128, 256, 512, 512),
                                down_block_types=["DownEncoderBlock2D"] * 4,
                                up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2,
                                latent_channels=4)
    ours = filled(Autoencoder, FAMILIES["vc2"].config.vae)
    assert isinstance(ours, Autoencoder)
    z = torch.randn(args.frames, 4, *args.size)

    def run_theirs(chunk: int, z: Tensor) -> None:
        for part in z.split(chunk):
            theirs.decode(part)

    kinds = {f"theirs, {name}, {chunk} at a time": (partial(lay_out, theirs, layout),
                                                    partial(run_theirs, chunk))
             for name, layout in FORMATS.items() for chunk in (1, 16)}
    tried = by_turns({name: (lay, partial(run, z[:16])) for name, (lay, run) in kinds.items()}, 2)
    best = min(kinds, key=lambda name: min(tried[name]))
    lay, run = kinds[best]
    work: dict[str, tuple[Work, Work]] = {"ours": (lambda: None, lambda: ours.decode(z, 16)),
                                          best: (lay, partial(run, z))}
    seconds = by_turns(work, args.repeats)
    say(seconds)
    return ratio(*seconds.values())


def load(args: argparse.Namespace) -> float:
    """Stable Video Diffusion from disk: our checkpoint as a whole, diffusers' three networks, of
    one precision.

    Files were just written, so both come from the system's cache."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    setup(args)
    svd = FAMILIES["svd"]
    kinds: dict[str,
                Any] = {"unet": UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20,
                                                                                      20),
                                                                 num_frames=14),
                        "vae": AutoencoderKLTemporalDecoder(block_out_channels=(128, 256, 512, 512),
                                                            down_block_types=["DownEncoderBlock2D"]
                                                            * 4, layers_per_block=2,
                                                            latent_channels=4),
                        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                num_attention_heads=16, patch_size=14, projection_dim=1024))}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in kinds.items():
            network.save_pretrained(Path(folder) / name)
        classes = {name: type(network) for name, network in kinds.items()}
        kinds.clear()
        ours = Path(folder) / "ours.safetensors"
        networks = filled(Networks, svd, svd.config)
        checkpoint.save(ours, svd, svd.config, networks.state_dict().items(), torch.float32,
                        "the benchmark", "")
        del networks

        def theirs() -> list[object]:
            return [kind.from_pretrained(Path(folder) / name) for name, kind in classes.items()]

        seconds = by_turns({"ours": (lambda: None, lambda: checkpoint.load(ours)),
                            "diffusers": (lambda: None, theirs)}, args.repeats)
    say(seconds)
    return ratio(*seconds.values())


def say(seconds: dict[str, list[float]], more: str = "") -> None:
    texts = [f"{name} {' '.join(f'{t:.2f}' for t in times)} s" for name, times in seconds.items()]
    print("   ", "; ".join([*texts, more] if more else texts), flush=True)


def lacking(row: str, args: argparse.Namespace) -> str | None:
    """What a row needs and does not have."""
    if row == "vc2" and args.videocrafter is None:
        return "--videocrafter PATH"
    if row == "lavie" and args.lavie is None:
        return "--lavie PATH"
    if row in ("svd", "lavie", "decode", "load") and importlib.util.find_spec("diffusers") is None:
        return 'diffusers: pip install ".[benchmarks]"'
    return None


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videocrafter", type=Path, metavar="PATH",
                        help="the authors' repository (peer of vc2)")
    parser.add_argument("--lavie", type=Path, metavar="PATH",
                        help="the authors' repository (peer of lavie)")
    parser.add_argument("--rows", nargs="+", choices=MEASURES, default=list(MEASURES),
                        help="default: all")
    parser.add_argument("--size", type=int, nargs=2, default=(16, 24),
                        help="latents, height and width (default: 16 24)")
    parser.add_argument("--frames", type=int, default=64, help="that are decoded (default: 64)")
    parser.add_argument("--join", type=float, default=0.6,
                        help="as of sample.py, in rows join and both (default: 0.6)")
    parser.add_argument("--repeats", type=int, default=5,
                        help="runs of each, by turns (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    return parser


MEASURES: dict[str, Callable[[argparse.Namespace], float | dict[str, float]]] = {
    **{family: partial(unet, family) for family in ("svd", "vc2", "lavie")},
    "cascade": cascade,  # and rows reuse, join and both
    "correction": correction,
    "memory": memory,
    "decode": decode,
    "load": load,
}


def main() -> int:
    args = arguments().parse_args()
    missed = False
    for row in args.rows:
        if lack := lacking(row, args):
            print(f"{ROWS[row][0]}  skipped: give {lack}", flush=True)
            continue
        value = MEASURES[row](args) if row in ("memory", "cascade") else apart(MEASURES[row], args)
        for key, got in value.items() if isinstance(value, dict) else [(row, value)]:
            name, limit = ROWS[key]
            missed |= got > limit
            print(f"{name}  {got:.2f}  at most {limit}{'  MISSED' if got > limit else ''}",
                  flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
