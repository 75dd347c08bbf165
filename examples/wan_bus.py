"""Wan 2.1 at 32 and 64 frames a second, in a pipeline that is loaded in diffusers.

    pipeline = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", ..)
    run = smooth(pipeline, scale=2)
    key, double = run("a cat walks on the grass", generator=torch.manual_seed(0))
    export_to_video(double.frames[0], "cat.mp4", fps=32)

Nothing is converted, and the pipeline stays what it is: LoRAs, schedulers, offloading. During a
call all clips lie one behind the other along the latents of one long clip, which the pipeline
denoises like any other; what it takes for its network cuts that clip, and tells each part how far
apart its latents stand. `examples/wan/dense.py` says what is done and why.

pip install .[diffusers]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

from zerosmooth.attention import fusion_matrix, windows
from zerosmooth.extensions.predictions import Lift, lines
from zerosmooth.fields import UserError

from .diffusers_bus import replaced
from .wan.dense import AT, Correct, Pairs, ThroughFrames, last_frames, step_at
from .wan.transformer import turns


@dataclass(frozen=True)
class Latents:
    """A pipeline's autoencoder, with latents as its network has them. b f c h w."""

    vae: Any

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        mean, std = self.statistics(z)
        return self.vae.decode((z.to(std) * std + mean).movedim(2, 1)).sample.movedim(1, 2)

    def encode(self, x: Tensor, chunk: int | None = None) -> Tensor:
        mean, std = self.statistics(x)
        return (self.vae.encode(x.movedim(2, 1)).latent_dist.mode().movedim(1, 2) - mean) / std

    def statistics(self, like: Tensor) -> Tensor:
        """On the device of the clip: an autoencoder that is offloaded waits on another."""
        values = [self.vae.config.latents_mean, self.vae.config.latents_std]
        return torch.tensor(values, device=like.device, dtype=self.vae.dtype)[..., None, None]


class Windows:
    """An attention processor that lets another one attend, in each window of latents by itself, and
    fuses the outputs. Projections are affine, so fusing after them equals fusing before."""

    def __init__(self, inner: Any, run: Smooth) -> None:
        self.inner, self.run = inner, run

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None,
                 attention_mask: Any = None, rotary_emb: Any = None, **kwargs: Any) -> Tensor:
        def attend(start: int, end: int) -> Tensor:
            rope = [x[:, start:end] for x in rotary_emb]
            return self.inner(attn, hidden_states[:, start:end], encoder_hidden_states,
                              attention_mask, rope, **kwargs)

        f = self.run.lengths[self.run.stage]
        n = hidden_states.shape[1] // f  # tokens of a latent frame
        spans = windows(f, self.run.window, self.run.overlap)
        if len(spans) == 1 or self.run.stage == 0:  # the key video stays what it is alone
            return attend(0, f * n)
        o = torch.zeros_like(hidden_states)
        for (start, end), share in zip(spans, fusion_matrix(spans).to(o)):
            start, end = start * n, end * n
            o[:, start:end] += share.repeat_interleave(n)[:, None] * attend(start, end)
        return o


@dataclass
class Smooth:
    """A pipeline that makes each video at several frame rates; its fields are as `smooth` says."""

    pipeline: WanPipeline
    clips: int
    window: int
    overlap: int
    correct: Correct | None
    lift: Lift
    at: Sequence[float]
    join: float

    def __call__(self, *args: Any, num_frames: int = 81, num_inference_steps: int = 50,
                 output_type: str = "np", **kwargs: Any) -> list[Any]:
        """What the pipeline returns, for each clip: the key video, whose latents are those that the
        pipeline makes by itself, then each with twice the frames, less one.

        num_frames: of the key video, 1 + 4m. All else: the pipeline's own arguments. UserError for
        what does not fit."""
        pipeline, network, scheduler = self.pipeline, self.pipeline.transformer, (
            self.pipeline.scheduler)
        if num_frames % 4 != 1 or num_frames < 5:
            raise UserError(f"num_frames={num_frames}; the key video has 1 + 4m of them, such as "
                            f"{max(1, num_frames // 4) * 4 + 1}")
        if not (isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
                or scheduler.config.get("use_flow_sigmas")):
            raise UserError(f"{type(scheduler).__name__} samples no flow; use the pipeline's own "
                            "scheduler, or one with use_flow_sigmas=True")
        self.lengths = [(num_frames - 1) // 4 * 2**s + 1 for s in range(self.clips)]
        self.step, self.first = 0, step_at(self.join, num_inference_steps)
        self.through = ThroughFrames(Latents(pipeline.vae), self.lift,
                                     {step_at(share, num_inference_steps) for share in self.at})
        processors = network.attn_processors
        with ExitStack() as stack:
            enter = stack.enter_context
            stack.callback(network.set_attn_processor, processors)
            network.set_attn_processor({
                name: Windows(inner, self) if ".attn1." in name else inner
                for name, inner in processors.items()})
            enter(replaced(network.rope, "forward", self.rotated(network.rope.forward)))
            enter(replaced(network, "forward", self.cut(network.forward)))
            enter(replaced(pipeline, "prepare_latents", self.drawn(pipeline.prepare_latents)))
            enter(replaced(scheduler, "step", self.stepped(scheduler.step)))
            kwargs |= {"output_type": "latent", "return_dict": True}
            z = pipeline(*args, num_frames=4 * sum(self.lengths) - 3,
                         num_inference_steps=num_inference_steps, **kwargs).frames
        return [SimpleNamespace(frames=self.shown(part, output_type))
                for part in z.split(self.lengths, dim=2)]

    @torch.no_grad()
    def shown(self, z: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return z
        x = Latents(self.pipeline.vae).decode(z.movedim(2, 1)).movedim(2, 1)
        return self.pipeline.video_processor.postprocess_video(x, output_type=output_type)

    def drawn(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The key video's noise first, which so is what it is alone."""

        def prepare(b: int, c: int, h: int, w: int, frames: int, dtype: Any, device: Any,
                    generator: Any = None, latents: Any = None) -> Tensor:
            parts = [plain(b, c, h, w, 4 * f - 3, dtype, device, generator,
                           latents if s == 0 else None) for s, f in enumerate(self.lengths)]
            if parts[0].shape[2] != self.lengths[0]:
                raise UserError(f"latents of {parts[0].shape[2]} frames; those of the key video "
                                f"are needed, {self.lengths[0]}")
            return torch.cat(parts, dim=2)

        return prepare

    def cut(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The network, on one clip after the other; not on those that have not begun."""

        def forward(hidden_states: Tensor, *args: Any, return_dict: bool = True,
                    **kwargs: Any) -> Any:
            outputs = []
            for self.stage, x in enumerate(hidden_states.split(self.lengths, dim=2)):
                begun = self.stage == 0 or self.step >= self.first
                outputs.append(plain(x, *args, return_dict=False, **kwargs)[0] if begun else x)
            y = torch.cat(outputs, dim=2)
            return SimpleNamespace(sample=y) if return_dict else (y,)

        return forward

    def rotated(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
        """Cosines and sines, 1 (f h w) 1 d, each twice: those of time, the first, by position.
        The key video's stay."""

        def rope(hidden_states: Tensor) -> tuple[Tensor, ...]:
            tables, f = plain(hidden_states), hidden_states.shape[2]
            if self.stage == 0:
                return tables
            at = last_frames(f, 2**self.stage).to(tables[0].device)
            channels = self.pipeline.transformer.rope.t_dim
            angles = turns(at, channels).repeat_interleave(2, 1)
            tokens = tables[0].shape[1] // f
            return tuple(torch.cat([x.to(table).repeat_interleave(tokens, 0)[None, :, None],
                                    table[..., channels:]], dim=-1)
                         for x, table in zip((angles.cos(), angles.sin()), tables))

        return rope

    def stepped(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's step of each clip, with what the longer ones predict corrected by the one
        before. These have schedulers of their own, whose memory begins where they do."""
        scheduler, correct = self.pipeline.scheduler, self.correct or self.through
        own: list[Any] = []

        def step(output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
            i, after = self.step, []
            if i == 0:
                own[:] = [deepcopy(scheduler) for _ in self.lengths[1:]]
                for one in own:
                    one.set_begin_index(self.first)
            s, next_s = (float(level) for level in scheduler.sigmas[i : i + 2])
            (x, *longer), (v, *predicted) = (z.split(self.lengths, dim=2) for z in (sample, output))
            data = (x - s * v).movedim(2, 1)
            after.append(plain(v, timestep, x, **kwargs)[0])
            for one, x, v in zip(own, longer, predicted):
                if i >= self.first:
                    x0 = (x - s * v).movedim(2, 1)
                    data = correct(i, x0, data)
                    v = v if data is x0 else (x - data.movedim(1, 2)) / s
                    x = type(one).step(one, v, timestep, x, **kwargs)[0]
                elif i + 1 == self.first:  # x is noise
                    data = self.through.begin(data)
                    x = torch.lerp(data.movedim(1, 2), x, next_s)
                after.append(x)
            self.step += 1
            return (torch.cat(after, dim=2),)

        return step


def smooth(pipeline: WanPipeline, scale: int = 2, window: int = 21, overlap: int = 11,
           correct: Correct | None = None, lift: Lift | None = None,
           at: Sequence[float] | None = None, join: float = 0.0) -> Smooth:
    """A pipeline whose videos have 2 or 4 times the frames a second, and which else stays as it is.

    window, overlap: latents that attend to each other, and how many of them two windows share.
    correct: of the longer clips' predicted data, see `dense` (`keep`: none). None: by averages of
    two latents in every step, or, with a lift (`lines`, `carried`), through frames along it, after
    the shares `at` of the steps (default: 0.5, 0.7, 0.9). join: the share of the steps after which
    longer clips begin, from frames that the lift interpolates, or lines. UserError for what does
    not fit.
    """
    network = getattr(pipeline, "transformer", None)
    if (not isinstance(network, WanTransformer3DModel) or network.config.image_dim is not None
            or getattr(pipeline, "transformer_2", None) is not None
            or pipeline.config.get("expand_timesteps")):
        raise UserError(f"{type(pipeline).__name__} is no pipeline of Wan 2.1 from text to video")
    if scale not in (2, 4) or not 0 <= overlap < window:
        raise UserError(f"scale={scale} in windows of {window} that share {overlap}; 2 or 4, and "
                        "an overlap below the window, are needed")
    if at is not None and (lift is None or correct is not None):
        raise UserError("at is of corrections through frames: give a lift, such as lines, alone")
    if not all(given is None or callable(given) for given in (correct, lift)):
        raise UserError(f"correct={correct!r}, lift={lift!r}; functions are needed, such as lines")
    at = AT if at is None else at
    for share in (*at, join):
        step_at(share, 1)
    if correct is None and lift is None:
        correct = Pairs.averages(pipeline.vae.config.z_dim)
    return Smooth(pipeline, scale.bit_length(), window, overlap, correct, lift or lines, at, join)
