"""Makes the pictures of docs/method.md again, from the small checkpoints and the example that ship
with the code.

pip install ".[plots]" && python docs/figures.py        # some minutes on two cores
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

import zerosmooth
from zerosmooth.attention import SpatialSelfAttention, TemporalAttention, fusion_matrix, windows
from zerosmooth.bus import HiddenStateBus, Stage
from zerosmooth.cascade import METHODS, Cascade, by_stage, nested_noise
from zerosmooth.checkpoint import shipped
from zerosmooth.models.layers import ResBlock
from zerosmooth.operators import A1, A2, S, back_project
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import change
from zerosmooth.video import busiest_line, line_over_time

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402 - the backend comes first

sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "examples")]
import tiny_dit  # noqa: E402 - no package, but a file beside this folder

from smallworld import gate  # noqa: E402
from smallworld.draw import Scene, first_frame, random_scene  # noqa: E402
from smallworld.motion import smoothness  # noqa: E402
from smallworld.read import read  # noqa: E402

PROMPT, SEED = "a red circle moving right quickly on a gray background", 3


class Recorder(HiddenStateBus):
    """A bus that lets a function see what each module exchanged and how far correction moved its
    output."""

    def __init__(self, see: Callable[..., None], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.see = see

    def stage(self, index: int, step: int = 0, strength: float = 1.0) -> Stage:
        view = super().stage(index, step, strength)
        return RecordingStage(**{field.name: getattr(view, field.name) for field in fields(view)})


class RecordingStage(Stage):
    module = ""

    def exchange(self, module: str, part: str, **states: Any) -> dict[str, Tensor] | None:
        corrected = super().exchange(module, part, **states)
        object.__setattr__(self, "module", module)
        self.bus.see("states", self, module, part, {name: x for name, (x, _) in states.items()},
                     corrected)
        return corrected

    def blend(self, o: Tensor, o_hat: Tensor) -> Tensor:
        self.bus.see("output", self, self.module, "", o, o_hat)
        return super().blend(o, o_hat)


def make(pipeline: Pipeline, see: Callable[..., None] | None = None, **asked: Any) -> Video:
    """The page's video with some settings; see: called with everything that goes over its bus."""
    settings = pipeline.settings(**{"preset": "paper", **asked})
    if see is not None:
        cascade = settings.cascade
        bus = Recorder(see, cascade.frames, cascade.scales, cascade.overlap, cascade.correction)
        object.__setattr__(cascade, "bus", lambda device: bus)
    return gate.make(pipeline, [scene(pipeline)], [SEED], settings)[0]


def scene(pipeline: Pipeline) -> Scene:
    """One of PROMPT, as a checkpoint can be asked for it."""
    rng = random.Random(SEED)
    drawn = (random_scene(rng, tail="image" in pipeline.family.takes) for _ in iter(int, 1))
    return next(scene for scene in drawn if scene.prompt() == PROMPT)


def operators() -> pyplot.Figure:
    """S, A1 and A2 for 8 frames and 4 key frames, their inverses, and what they see."""
    figure, axes = pyplot.subplots(3, 3, figsize=(9, 8), layout="constrained",
                                   width_ratios=(8, 4, 8))
    for row, M in zip(axes, (S(2), A1(2), A2(2))):
        matrix = M.matrix(8)
        inverse = M.lift(torch.eye(4)[None])[0]
        name = type(M).__name__
        for axis, x, title in zip(row, (matrix, inverse, inverse @ matrix),
                                  (name, f"{name}†", f"{name}†{name}: seen")):
            axis.imshow(x, cmap="Blues", vmin=0, vmax=1)
            for (i, j), v in torch_items(x):
                axis.text(j, i, f"{v:g}", ha="center", va="center", color="white" if v > 0.6
                          else "black", fontsize=8)
            axis.set(title=title, xlabel="frame" if x.shape[1] == 8 else "key frame",
                     xticks=range(x.shape[1]))
            axis.set(ylabel="frame" if x.shape[0] == 8 else "key frame", yticks=range(x.shape[0]))
    return figure


def torch_items(x: Tensor) -> list[tuple[tuple[int, int], float]]:
    return [((i, j), v) for i, line in enumerate(x.tolist()) for j, v in enumerate(line) if v]


def back_projection(pipeline: Pipeline, steps: int) -> pyplot.Figure:
    """One channel of one token of a spatial key over the frames: before correction, the key
    frames', and corrected.

    It is the number that varies most over time. Bars: means of the frames that a row of the
    operator averages."""
    kept: dict[tuple[int, str], Tensor] = {}

    def see(kind: str, view: Stage, module: str, part: str, states: Any, corrected: Any) -> None:
        if kind == "states" and "k" in states and view.step == steps // 2:
            kept.setdefault((view.index, module), states["k"])

    make(pipeline, see, scales=(2,), steps=steps)
    module = [name for index, name in kept if index == 1][-1]
    key, own = kept[0, module][0], kept[1, module][0]  # f l d
    token, channel = divmod(own.std(0).argmax().item(), own.shape[2])
    y, x = key[:, token, channel], own[:, token, channel]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained", sharey=True)
    for axis, M in zip(axes, (S(2), A1(2), A2(2))):
        corrected = back_project(x[None], y[None], M)[0]
        axis.plot(x, "o-", color="silver", label="before this correction")
        axis.plot(torch.arange(len(y)) * 2, y, "D", color="tab:blue",
                  label="the short video's key frames")
        axis.plot(corrected, ".-", color="tab:red", label="back-projected")
        if not isinstance(M, S):
            for row, seen in zip(M.matrix(len(x)), M.measure(corrected[None])[0]):
                group = row.nonzero().flatten()
                axis.hlines(seen, group[0] - 0.3, group[-1] + 0.3, color="tab:blue", linewidth=2)
        axis.set(title=f"with {type(M).__name__}", xlabel="frame")
    axes[0].set_ylabel("one number of a key")
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{module}, step {steps // 2} of {steps}", fontsize="medium")
    return figure


def attention_windows(frames: int) -> pyplot.Figure:
    """The windows of twice the frames, and their shares in each frame."""
    total = 2 * frames
    spans = windows(total, frames, frames // 2)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3), layout="constrained")
    for i, ((start, end), share) in enumerate(zip(spans, fusion_matrix(spans))):
        axes[0].barh(i, end - start, left=start - 0.5, height=0.6, color=f"C{i}")
        axes[0].text((start + end - 1) / 2, i, f"window {i}: frames {start} to {end - 1}",
                     color="white", ha="center", va="center", fontsize=8)
        axes[1].plot(range(start, end), share, "o-", markersize=3, label=f"window {i}")
    axes[0].set(title=f"windows of {frames} in {total} frames", xlabel="frame", yticks=[],
                xlim=(-1, total))
    axes[0].invert_yaxis()
    axes[1].set(title="share of each window's output in a frame", xlabel="frame", ylabel="share",
                ylim=(0, 1.05))
    return figure


def positions(frames: int) -> pyplot.Figure:
    """Interpolated absolute positions, and relative ones that restart in each window."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for stage in range(3):
        f = frames * 2**stage
        axes[0].plot(torch.arange(f) / f * 2, torch.arange(f) * frames / f, "o", markersize=7 - 2
                     * stage, label=f"{f} frames")
    axes[0].set(title=f"absolute: frame * {frames} / frames", xlabel="seconds",
                ylabel="position that the network is told")
    axes[0].legend()
    total = 2 * frames
    seen = torch.full((total, total), float("nan"))
    for start, end in windows(total, frames, frames // 2):
        at = torch.arange(frames)
        seen[start:end, start:end] = (at[None] - at[:, None]).float()
    image = axes[1].imshow(seen, cmap="coolwarm")
    axes[1].set(title="relative: distances that attention ever sees", xlabel="key's frame",
                ylabel="query's frame")
    figure.colorbar(image, ax=axes[1], label="key's frame less query's; white: never seen")
    return figure


def noise(frames: int) -> pyplot.Figure:
    """One pixel of the noise of three stages: key frames have the same."""
    x = nested_noise((1, 1, 1), frames, (2, 2), SEED, -1)[None, :, 0, 0, 0]
    figure, axis = pyplot.subplots(figsize=(11, 2.8), layout="constrained")
    for stage, values in enumerate(by_stage(x, (2, 2))):
        at = torch.arange(values.shape[1]) * 4 / 2**stage
        axis.plot(at, values[0], "o", markersize=13 - 4 * stage,
                  label=f"stage {stage}: {len(at)} frames")
    axis.set(xlabel="frame of the last stage", ylabel="noise of one pixel")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def strength(pipeline: Pipeline) -> pyplot.Figure:
    """w_t over the steps, of DDIM and of Euler."""
    figure, axis = pyplot.subplots(figsize=(6, 3), layout="constrained")
    for name, family, steps in (("DDIM, 50 steps", "vc2", 50), ("Euler, 25 steps", "svd", 25)):
        sampler = zerosmooth.FAMILIES[family].config.sampler.sampler(steps, 0.0)
        w = [Cascade().strength_at(sampler.share(i)) for i in range(len(sampler))]
        axis.plot([i / len(w) for i in range(len(w))], w, ".-", label=name)
    axis.set(xlabel="share of the steps done", ylabel="$w_t = 0.8 \\cdot t / T$", ylim=(0, 1))
    axis.legend()
    return figure


def modules(pipeline: Pipeline, steps: int) -> pyplot.Figure:
    """How far correction moves each module's output, before strength: |o^ - o| / |o|, by step."""
    moved: dict[str, list[float]] = defaultdict(list)

    def see(kind: str, view: Stage, module: str, part: str, o: Any, o_hat: Any) -> None:
        if kind == "output":
            moved[module].append(((o_hat - o).norm() / o.norm()).item())

    make(pipeline, see, scales=(2,), strength_schedule="constant", steps=steps)
    names = list(moved)  # in the order in which they run
    figure, axis = pyplot.subplots(figsize=(9, 0.28 * len(names) + 1.2), layout="constrained")
    image = axis.imshow(torch.tensor([moved[name] for name in names]), aspect="auto",
                        cmap="viridis", vmin=0)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="step (0 is the noisiest)")
    figure.colorbar(image, label="$|\\hat o - o| \\; / \\; |o|$")
    return figure


def slices(rows: dict[str, dict[str, Tensor]]) -> pyplot.Figure:
    """x-t slices of videos, the same line of pixels in all of a row; dotted: the shape's path in
    the key frames.

    rows: by model, uint8 f h w 3 by name, key frames first."""
    columns = max(map(len, rows.values()))
    size = (2.6 * columns, 3.1 * len(rows))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, layout="constrained",
                                   squeeze=False)
    for line_of_axes, (model, videos) in zip(axes, rows.items()):
        keys = next(iter(videos.values()))
        axis, line = busiest_line(keys.numpy())
        path = read(keys).path[:, axis - 1] * keys.shape[axis]
        if path.isnan().any():  # nothing of the small world
            path = path_along(torch.from_numpy(line_over_time(keys.numpy(), axis, line)).float())
        for plot, (name, frames) in zip(line_of_axes, videos.items()):
            plot.imshow(line_over_time(frames.numpy(), axis, line), aspect="auto",
                        interpolation="nearest")
            plot.plot(torch.arange(len(keys)) * (len(frames) // len(keys)), path, ":",
                      color="dodgerblue", linewidth=2)
            plot.set_title(f"{name}\n{len(frames)} frames", fontsize=9)
            plot.set(xlabel="time", xticks=[], yticks=[])
        line_of_axes[0].set_ylabel(
            f"{model}\npixel {'column' if axis == 2 else 'row'} {line} of every frame")
        for plot in line_of_axes[len(videos) :]:
            plot.axis("off")
    return figure


def path_along(slice_: Tensor) -> Tensor:
    """Where along an x-t slice (x f c) that differs from its ground: the centre in each frame."""
    away = (slice_ - slice_.median(0, keepdim=True).values).abs().sum(2)
    away = away * (away > 0.4 * away.amax())
    return (away * torch.arange(len(away))[:, None]).sum(0) / away.sum(0)


def smooth(cascade: Cascade) -> list[Tensor]:
    """The example's disc that goes right, by one cascade: uint8 f h w 3 of each stage."""
    videos = tiny_dit.smooth(tiny_dit.trained(), cascade, label=0, seed=SEED)
    return [(x.clamp(0, 1) * 255).round().byte()[..., None].expand(-1, -1, -1, 3) for x in videos]


def methods() -> pyplot.Figure:
    """The key frames, and each method's longest video."""
    made = {name: smooth(Cascade(tiny_dit.FRAMES, method=name)) for name in METHODS}
    videos = {"key frames": made["direct"][0]} | {name: frames[-1] for name, frames in made.items()}
    return slices({"the example backbone": videos})


def parts(pipelines: dict[str, Pipeline], steps: int | None) -> pyplot.Figure:
    """Back-projection of the predicted latents (DDNM) against back-projection of hidden states,
    part by part.

    Of drawn scenes, with the inserted frames' distance from uniform motion between the key frames
    around them."""
    changes: dict[str, dict[str, Any]] = {"windows alone": {"method": "windowed"},
                                          "on latents (DDNM)": {"method": "ddnm"},
                                          "on spatial states": {"temporal": False},
                                          "on temporal states": {"spatial": False}, "on both": {}}
    base = Cascade(tiny_dit.FRAMES)
    made = {name: smooth(change(base, **changed)) for name, changed in changes.items()}
    rows = {"the example": {"key frames": made["on both"][0]}
            | {name: frames[-1] for name, frames in made.items()}}
    for model, pipeline in pipelines.items():
        row = {}
        for name, changed in {**changes, "anchored": {"preset": "anchored"}}.items():
            frames = make(pipeline, steps=steps or pipeline.config.defaults.steps, **changed).frames
            row["key frames"] = frames[0]
            off = smoothness(read(frames[-1]), 4, frames[-1].shape[1])["off path"]
            row[f"{name}\n{off:.1f} px off"] = frames[-1]
        rows[model] = row
    return slices(rows)


def correlation(pipelines: dict[str, Pipeline], steps: int | None) -> pyplot.Figure:
    """How alike neighbouring frames are in what the networks see and make, by step, in stage 0; and
    how alike frames of two seeds are, which have only in common what every video of the subject
    has."""
    size = (4.2 * len(pipelines), 3.8)
    figure, axes = pyplot.subplots(1, len(pipelines), figsize=size, layout="constrained",
                                   sharey=True, squeeze=False)
    for axis, (model, pipeline) in zip(axes[0], pipelines.items()):
        for i, (kind, by_step) in enumerate(alike_by_step(pipeline, steps
                                                          or pipeline.config.defaults.steps).items(
                )):
            neighbours, strangers = zip(*by_step)
            axis.plot(neighbours, ".-", color=f"C{i}", label=kind)
            axis.plot(strangers, "--", color=f"C{i}", linewidth=1)
        axis.set(title=model, xlabel="step (0 is the noisiest)", ylim=(None, 1.02))
    axes[0, 0].set_ylabel("correlation of frames")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(axes[0, 0].plot([], [], "--", color="gray")[0])
    figure.legend(handles, [*labels, "the same frame, two seeds"], loc="outside lower center",
                  ncols=3)
    return figure


def alike_by_step(pipeline: Pipeline, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Mean correlation of neighbouring frames, and of frames of two seeds, by kind of what is
    looked at and step."""
    frames, latent = pipeline.config.unet.frames, pipeline.config.unet.out_channels
    found: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    kinds = {SpatialSelfAttention: "before spatial attention",
             TemporalAttention: "before temporal attention"}

    def alike(x: Tensor) -> tuple[float, float]:
        """x: 2 f n, of two seeds; mean correlations of each frame's numbers with the next one's,
        and the other's."""
        x = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
        x = x / x.norm(dim=2, keepdim=True)
        return (x[0, 1:] * x[0, :-1]).sum(1).mean().item(), (x[0] * x[1]).sum(1).mean().item()

    def latents(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found["latents"].append([alike(args[0][:2, :, :latent])])  # without the reference image's
        for kind in ("after ResNet blocks", *kinds.values()):
            found[kind].append([])

    def res(module: nn.Module, args: tuple, output: Tensor) -> None:
        found["after ResNet blocks"][-1].append(alike(output[: 2 * frames].unflatten(0,
                                                                                     (2, frames))))

    def attention(module: nn.Module, args: tuple) -> None:
        found[kinds[type(module)]][-1].append(alike(args[0][:2]))

    unet = pipeline.networks.unet
    handles = [unet.register_forward_pre_hook(latents, with_kwargs=True)]
    handles += [m.register_forward_hook(res) for m in unet.modules() if isinstance(m, ResBlock)]
    handles += [m.register_forward_pre_hook(attention) for m in unet.modules() if type(m) in kinds]
    image = "image" in pipeline.family.takes
    two = [first_frame(scene(pipeline), pipeline.config.defaults.height) if image else PROMPT] * 2
    pipeline.sample(two, seeds=[SEED, SEED + 1], scales=(), steps=steps)
    for handle in handles:
        handle.remove()
    return {kind: [(mean([a for a, _ in values]), mean([b for _, b in values]))
                   for values in by_step] for kind, by_step in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt",
        nargs="+",
        default=sorted(shipped(), key=lambda name: name != "vc2-small"),
        help="small checkpoints, by name or file; most pictures are of the first (default: all that ship)",
    )
    parser.add_argument("--steps", type=int, help="of sampling (default: the checkpoint's own)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pictures alone")
    parser.add_argument("--outdir", type=Path, default=Path(__file__).parent,
                        help="folder of the pictures (default: here)")
    args = parser.parse_args()
    pipelines = {Path(name).stem: zerosmooth.load(name) for name in args.ckpt}
    pipeline = next(iter(pipelines.values()))
    steps, frames = args.steps or pipeline.config.defaults.steps, pipeline.config.unet.frames
    figures: dict[str, Callable[[], pyplot.Figure]] = {
        "operators": operators,
        "back-projection": lambda: back_projection(pipeline, steps),
        "windows": lambda: attention_windows(frames),
        "positions": lambda: positions(frames),
        "noise": lambda: noise(frames),
        "strength": lambda: strength(pipeline),
        "modules": lambda: modules(pipeline, steps),
        "correlation": lambda: correlation(pipelines, args.steps),
        "parts": lambda: parts(pipelines, args.steps),
        "methods": methods,
    }
    args.outdir.mkdir(parents=True, exist_ok=True)
    if unknown := set(args.only or ()) - figures.keys():
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(figures)}")
    for name, draw in figures.items():
        if args.only and name not in args.only:
            continue
        draw().savefig(args.outdir / f"{name}.png", dpi=90)
        pyplot.close("all")
        print(args.outdir / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
