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
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import matplotlib
import torch
from torch import Tensor, nn

import zerosmooth
from zerosmooth.attention import SpatialSelfAttention, TemporalAttention, fusion_matrix, windows
from zerosmooth.bus import Stage, State
from zerosmooth.cascade import Cascade, by_stage, nested_noise
from zerosmooth.checkpoint import shipped
from zerosmooth.extensions import METHODS
from zerosmooth.models.layers import ResBlock
from zerosmooth.operators import A1, A2, S, back_project
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Settings
from zerosmooth.video import busiest_line, line_over_time

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402 - the backend comes first
from matplotlib.figure import Figure  # noqa: E402

sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "examples")]
import tiny_dit  # noqa: E402 - no package, but a file beside this folder

from smallworld import gate  # noqa: E402
from smallworld.draw import Scene, first_frame, random_scene  # noqa: E402
from smallworld.motion import smoothness  # noqa: E402
from smallworld.read import read  # noqa: E402

pyplot.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 90})
PROMPT, SEED = "a red circle moving right quickly on a gray background", 3


def make(pipeline: Pipeline, **asked: Any) -> Video:
    """The page's video with some settings."""
    settings = pipeline.settings(**{"preset": "paper", **asked})
    return gate.make(pipeline, [scene(pipeline)], [SEED], settings)[0]


def scene(pipeline: Pipeline) -> Scene:
    """One of PROMPT, as a checkpoint can be asked for it."""
    rng = random.Random(SEED)
    drawn = (random_scene(rng, tail="image" in pipeline.family.takes) for _ in iter(int, 1))
    return next(scene for scene in drawn if scene.prompt() == PROMPT)


def operators() -> Figure:
    """S, A1 and A2 for 8 frames and 4 key frames, their inverses, and what they see."""
    figure, axes = pyplot.subplots(3, 3, figsize=(9, 8), width_ratios=(8, 4, 8))
    names = {8: "frame", 4: "key frame"}
    for row, M in zip(axes, (S(2), A1(2), A2(2))):
        matrix, inverse, name = M.matrix(8), M.lift(torch.eye(4)[None])[0], type(M).__name__
        titles = name, f"{name}†", f"{name}†{name}: seen"
        for axis, x, title in zip(row, (matrix, inverse, inverse @ matrix), titles):
            axis.imshow(x, cmap="Blues", vmin=0, vmax=1)
            for i, j in x.nonzero().tolist():
                color = "white" if x[i, j] > 0.6 else "black"
                axis.text(j, i, f"{x[i, j]:g}", ha="center", va="center", color=color, fontsize=8)
            rows, columns = x.shape
            axis.set(title=title, xlabel=names[columns], ylabel=names[rows],
                     xticks=range(columns), yticks=range(rows))
    return figure


def back_projection(pipeline: Pipeline, steps: int) -> Figure:
    """One number of a spatial key over the frames: before correction, in key frames, and corrected.

    It is the one that varies most over time. Bars: means of the frames that a row of the operator
    averages."""
    kept: dict[tuple[int, str], Tensor] = {}
    plain = Stage.exchange

    def exchange(stage: Stage, module: str, part: str, **states: Any) -> State | None:
        if "k" in states and stage.step == steps // 2:
            kept.setdefault((stage.index, module), states["k"][0])
        return plain(stage, module, part, **states)

    with patch.object(Stage, "exchange", exchange):
        make(pipeline, scale=2, steps=steps)
    module = [name for index, name in kept if index == 1][-1]
    key, own = kept[0, module][0], kept[1, module][0]  # f l d
    token, channel = divmod(int(own.std(0).argmax()), own.shape[2])
    y, x = key[:, token, channel], own[:, token, channel]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), sharey=True)
    for axis, M in zip(axes, (S(2), A1(2), A2(2))):
        corrected = back_project(x[None], y[None], M)[0]
        axis.plot(x, "o-", color="silver", label="before this correction")
        at = torch.arange(len(y)) * 2
        axis.plot(at, y, "D", color="tab:blue", label="the short video's key frames")
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


def attention_windows(frames: int) -> Figure:
    """The windows of twice the frames, and their shares in each frame."""
    total = 2 * frames
    spans = windows(total, frames, frames // 2)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3))
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


def positions(frames: int) -> Figure:
    """Interpolated absolute positions, and relative ones that restart in each window."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6))
    for stage in range(3):
        f = frames * 2**stage
        at = torch.arange(f) / f
        axes[0].plot(2 * at, frames * at, "o", markersize=7 - 2 * stage, label=f"{f} frames")
    axes[0].set(title=f"absolute: frame * {frames} / frames", xlabel="seconds",
                ylabel="position that the network is told")
    axes[0].legend()
    total, at = 2 * frames, torch.arange(frames)
    seen = torch.full((total, total), float("nan"))
    for start, end in windows(total, frames, frames // 2):
        seen[start:end, start:end] = at[None] - at[:, None]
    image = axes[1].imshow(seen, cmap="coolwarm")
    axes[1].set(title="relative: distances that attention ever sees", xlabel="key's frame",
                ylabel="query's frame")
    figure.colorbar(image, ax=axes[1], label="key's frame less query's; white: never seen")
    return figure


def noise(frames: int) -> Figure:
    """One pixel of the noise of three stages: key frames have the same."""
    x = nested_noise((1, 1, 1), frames, (2, 2), SEED, -1)[None, :, 0, 0, 0]
    figure, axis = pyplot.subplots(figsize=(11, 2.8))
    for stage, values in enumerate(by_stage(x, (2, 2))):
        at = torch.arange(values.shape[1]) * 4 / 2**stage
        axis.plot(at, values[0], "o", markersize=13 - 4 * stage,
                  label=f"stage {stage}: {len(at)} frames")
    axis.set(xlabel="frame of the last stage", ylabel="noise of one pixel")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def strength() -> Figure:
    """w_t over the steps, of DDIM and of Euler."""
    figure, axis = pyplot.subplots(figsize=(6, 3))
    for name, family, steps in (("DDIM, 50 steps", "vc2", 50), ("Euler, 25 steps", "svd", 25)):
        sampler = zerosmooth.FAMILIES[family].config.sampler.sampler(steps, 0.0)
        w = [Cascade().strength_at(sampler.share(i)) for i in range(len(sampler))]
        axis.plot([i / len(w) for i in range(len(w))], w, ".-", label=name)
    axis.set(xlabel="share of the steps done", ylabel="$w_t = 0.8 \\cdot t / T$", ylim=(0, 1))
    axis.legend()
    return figure


def modules(pipeline: Pipeline, steps: int) -> Figure:
    """How far correction moves each module's output, before strength: |o^ - o| / |o|, by step."""
    moved: dict[str, list[float]] = defaultdict(list)
    plain, exchanged = Stage.exchange, [""]

    def exchange(stage: Stage, module: str, part: str, **states: Any) -> State | None:
        exchanged[0] = module
        return plain(stage, module, part, **states)

    def blend(stage: Stage, o: Tensor, o_hat: Tensor) -> Tensor:
        moved[exchanged[0]].append(((o_hat - o).norm() / o.norm()).item())
        return torch.lerp(o, o_hat, stage.strength)

    with patch.multiple(Stage, exchange=exchange, blend=blend):
        make(pipeline, scale=2, strength_schedule="constant", steps=steps)
    names = list(moved)  # in the order in which they run
    figure, axis = pyplot.subplots(figsize=(9, 0.28 * len(names) + 1.2))
    image = axis.imshow(torch.tensor(list(moved.values())), aspect="auto", vmin=0)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="step (0 is the noisiest)")
    figure.colorbar(image, label="$|\\hat o - o| \\; / \\; |o|$")
    return figure


def slices(rows: dict[str, dict[str, Tensor]]) -> Figure:
    """x-t slices of videos, the same line of pixels in all of a row; dotted: the shape's path in
    the key frames.

    rows: by model, uint8 f h w 3 by name, key frames first."""
    columns = max(map(len, rows.values()))
    size = (2.6 * columns, 3.1 * len(rows))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line_of_axes, (model, videos) in zip(axes, rows.items()):
        keys = next(iter(videos.values()))
        axis, line = busiest_line(keys.numpy())
        path = read(keys).path[:, axis - 1] * keys.shape[axis]
        if path.isnan().any():  # nothing of the small world
            path = path_along(torch.from_numpy(line_over_time(keys.numpy(), axis, line)).float())
        for plot, (name, frames) in zip(line_of_axes, videos.items()):
            slice_ = line_over_time(frames.numpy(), axis, line)
            plot.imshow(slice_, aspect="auto", interpolation="nearest")
            at = torch.arange(len(keys)) * (len(frames) // len(keys))
            plot.plot(at, path, ":", color="dodgerblue", linewidth=2)
            plot.set_title(f"{name}\n{len(frames)} frames", fontsize=9)
            plot.set(xlabel="time", xticks=[], yticks=[])
        where = f"{'column' if axis == 2 else 'row'} {line}"
        line_of_axes[0].set_ylabel(f"{model}\npixel {where} of every frame")
        for plot in line_of_axes[len(videos) :]:
            plot.axis("off")
    return figure


def path_along(slice_: Tensor) -> Tensor:
    """Where along an x-t slice (x f c) that differs from its ground: the centre in each frame."""
    away = (slice_ - slice_.median(0, keepdim=True).values).abs().sum(2)
    away = away * (away > 0.4 * away.amax())
    return (away * torch.arange(len(away))[:, None]).sum(0) / away.sum(0)


def smooth(**asked: Any) -> list[Tensor]:
    """The example's disc that goes right, with some settings: uint8 f h w 3 of each stage."""
    eta = {"eta": 0.0} if asked.get("method") == "freenoise" else {}
    settings = Settings(key_frames=tiny_dit.FRAMES, **eta, **asked)
    videos = tiny_dit.smooth(tiny_dit.trained(), settings, label=0, seed=SEED)
    return [(x.clamp(0, 1) * 255).round().byte()[..., None].expand(-1, -1, -1, 3) for x in videos]


def methods() -> Figure:
    """The key frames, and each method's longest video."""
    made = {name: smooth(method=name) for name in METHODS}
    videos = {"key frames": made["direct"][0]} | {name: frames[-1] for name, frames in made.items()}
    return slices({"the example backbone": videos})


def parts(pipelines: dict[str, Pipeline], steps: int | None) -> Figure:
    """Back-projection of predicted latents (DDNM) against that of hidden states, part by part.

    Of drawn scenes, with the distance of inserted frames from uniform motion between key frames."""
    changes: dict[str, dict[str, Any]] = {
        "windows alone": {"method": "windowed"}, "on latents (DDNM)": {"method": "ddnm"},
        "on spatial states": {"temporal": False}, "on temporal states": {"spatial": False},
        "on both": {}}
    made = {name: smooth(**changed) for name, changed in changes.items()}
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


def correlation(pipelines: dict[str, Pipeline], steps: int | None) -> Figure:
    """How alike neighbouring frames are in what the networks see and make, by step, in stage 0; and
    how alike frames of two seeds are, which share only what every video of the subject has."""
    size, n = (4.2 * len(pipelines), 3.8), len(pipelines)
    figure, axes = pyplot.subplots(1, n, figsize=size, sharey=True, squeeze=False)
    for axis, (model, pipeline) in zip(axes[0], pipelines.items()):
        alike = alike_by_step(pipeline, steps or pipeline.config.defaults.steps)
        for i, (kind, by_step) in enumerate(alike.items()):
            neighbours, strangers = zip(*by_step)
            axis.plot(neighbours, ".-", color=f"C{i}", label=kind)
            axis.plot(strangers, "--", color=f"C{i}", linewidth=1)
        axis.set(title=model, xlabel="step (0 is the noisiest)", ylim=(None, 1.02))
    axes[0, 0].set_ylabel("correlation of frames")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(axes[0, 0].plot([], [], "--", color="gray")[0])
    labels.append("the same frame, two seeds")
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def alike_by_step(pipeline: Pipeline, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Mean correlation of neighbouring frames, and of frames of two seeds, by kind and step."""
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

    def latents(module: nn.Module, args: tuple) -> None:
        found["latents"].append([alike(args[0][:2, :, :latent])])  # without the reference image's
        for kind in ("after ResNet blocks", *kinds.values()):
            found[kind].append([])

    def res(module: nn.Module, args: tuple, output: Tensor) -> None:
        output = output[: 2 * frames].unflatten(0, (2, frames))
        found["after ResNet blocks"][-1].append(alike(output))

    def attention(module: nn.Module, args: tuple) -> None:
        found[kinds[type(module)]][-1].append(alike(args[0][:2]))

    unet = pipeline.networks.unet
    handles = [unet.register_forward_pre_hook(latents)]
    handles += [m.register_forward_hook(res) for m in unet.modules() if isinstance(m, ResBlock)]
    handles += [m.register_forward_pre_hook(attention) for m in unet.modules() if type(m) in kinds]
    image = "image" in pipeline.family.takes
    two = [first_frame(scene(pipeline), pipeline.config.defaults.height) if image else PROMPT] * 2
    pipeline.sample(two, seeds=[SEED, SEED + 1], scale=1, steps=steps)
    for handle in handles:
        handle.remove()
    return {kind: [(mean(a for a, _ in values), mean(b for _, b in values)) for values in by_step]
            for kind, by_step in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", nargs="+", default=sorted(shipped(), key=lambda name: name != "vc2-small"),
        help="small checkpoints; most pictures are of the first (default: all that ship)")
    add("--steps", type=int, help="of sampling (default: the checkpoint's own)")
    add("--only", nargs="+", metavar="NAME", help="these pictures alone")
    add("--outdir", type=Path, default=Path(__file__).parent, help="folder (default: here)")
    args = parser.parse_args()
    pipelines = {Path(name).stem: zerosmooth.load(name) for name in args.ckpt}
    pipeline = next(iter(pipelines.values()))
    steps, frames = args.steps or pipeline.config.defaults.steps, pipeline.config.unet.frames
    figures: dict[str, Callable[[], Figure]] = {
        "operators": operators,
        "back-projection": lambda: back_projection(pipeline, steps),
        "windows": lambda: attention_windows(frames),
        "positions": lambda: positions(frames),
        "noise": lambda: noise(frames),
        "strength": strength,
        "modules": lambda: modules(pipeline, steps),
        "correlation": lambda: correlation(pipelines, args.steps),
        "parts": lambda: parts(pipelines, args.steps),
        "methods": methods,
    }
    args.outdir.mkdir(parents=True, exist_ok=True)
    if unknown := set(args.only or ()) - figures.keys():
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(figures)}")
    for name in args.only or figures:
        figures[name]().savefig(args.outdir / f"{name}.png")
        pyplot.close("all")
        print(args.outdir / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
