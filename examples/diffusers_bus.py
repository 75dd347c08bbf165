"""ZeroSmooth in a pipeline that is already loaded in diffusers: Stable Video Diffusion, or
AnimateDiff on any model.

    pipeline = AnimateDiffPipeline.from_pretrained(.., motion_adapter=..)     # with LoRAs, adapters, any scheduler
    base, double, smooth_one = smooth(pipeline, frames=64)("a panda surfing", generator=torch.manual_seed(0))
    export_to_video(smooth_one.frames[0], "panda.mp4", fps=32)

Nothing is converted, and the pipeline stays what it is. For the time of a call its attention
processors stand behind others, which correct hidden states on the bus and then let the old ones
attend, so whatever is in those, or in the layers that they call, goes on working. The stages lie
one behind the other along the frames of one long video, which the pipeline denoises as it would any
other; what it takes for a network cuts it into stages.

pip install .[diffusers]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import log2, prod
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNetMotionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerosmooth.attention import frame_positions, fusion_matrix, windows
from zerosmooth.bus import Correction, Stage
from zerosmooth.cascade import Cascade, by_stage, cascade_step, nested_noise
from zerosmooth.models.layers import sinusoid
from zerosmooth.operators import S

# --- the bus in a network


class Seat:
    """Which stage a network runs; None: the plain network."""

    stage: Stage | None = None

    @property
    def frames(self) -> int:
        """Of that stage."""
        assert self.stage is not None
        bus = self.stage.bus
        return bus.frames * prod(bus.scales[: self.stage.index])


@contextmanager
def on_bus(unet: UNetSpatioTemporalConditionModel | UNetMotionModel) -> Iterator[Seat]:
    """Within it, the network runs whatever stage the seat names, and is called with that stage's
    frames.

    ValueError if it is another network."""
    if not isinstance(unet, (UNetSpatioTemporalConditionModel, UNetMotionModel)):
        raise ValueError(
            f"{type(unet).__name__} is neither a UNetSpatioTemporalConditionModel nor a UNetMotionModel; a network of "
            "another kind needs what docs/new_backbone.md says"
        )
    seat, before = Seat(), dict(unet.attn_processors)
    own = {path: processor_for(unet, path, processor, seat) for path, processor in before.items()}
    try:
        with ExitStack() as stack:
            unet.set_attn_processor(own)
            for path, module in unet.named_modules():
                last = path.rpartition(".")[2]
                if last == "time_proj" and "attentions" in path:
                    stack.enter_context(replaced(module, "forward",
                                                 compressed(module.forward, seat)))
                elif last == "pos_embed":
                    stack.enter_context(replaced(module, "forward", embedded(module.forward, seat)))
            yield seat
    finally:
        unet.set_attn_processor(before)


def processor_for(unet: nn.Module, path: str, inner: Any, seat: Seat) -> Any:
    """What takes the place of an attention processor. Attention to one token (an image's, in Stable
    Video Diffusion) keeps its own: nothing can be corrected there."""
    name, second = path.removesuffix(".processor"), path.endswith("attn2.processor")
    if second and isinstance(unet, UNetSpatioTemporalConditionModel):
        return inner
    if "motion_modules" in path or "temporal_transformer_blocks" in path:
        return TemporalProcessor(inner, seat, name)
    return CrossProcessor(inner, seat, name) if second else SpatialProcessor(inner, seat,
                                                                             our_name(unet, name))


def our_name(unet: Any, path: str) -> str:
    """The path that a spatial self-attention has in networks of this package, so that the same A1
    and A2 are drawn."""
    block, *rest = path.replace(".attentions.", ".").split(".transformer_blocks.")
    kind, *index = block.split(".")
    each = unet.config.layers_per_block
    if kind == "mid_block":
        place = "middle"
    else:
        level, i = map(int, index)
        depth = each if isinstance(each, int) else each[0]
        place = f"{'encoder' if kind == 'down_blocks' else 'decoder'}.{level * (depth + 1) + i}"
    return f"{place}.transformer.blocks.{rest[0].replace('attn1', 'self_attn')}"


class Processor:
    """An attention processor that lets another one attend, with corrected hidden states too.

    Projections act on channels and operators on frames, so a query made of a corrected hidden state
    is the corrected query; an output projection is affine, so outputs are blended behind it as they
    would be before it.
    """

    def __init__(self, inner: Any, seat: Seat, name: str) -> None:
        self.inner, self.seat, self.name = inner, seat, name
        vars(self)["__call__"] = inner.__call__  # whose signature tells diffusers which keywords can be passed

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Any = None,
                 *args: Any, **kwargs: Any) -> Tensor:
        def attend(h: Tensor, context: Any = encoder_hidden_states) -> Tensor:
            return self.inner(attn, h, context, *args, **kwargs)

        stage = self.seat.stage
        return attend(hidden_states) if stage is None else self.on_stage(stage, attend,
                                                                         hidden_states)

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        raise NotImplementedError


class SpatialProcessor(Processor):
    """Query corrected with S (Eq. 10), key and value with A1 or A2 (11-14). h: (b f) l d."""

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        video = h.unflatten(0, (-1, self.seat.frames))
        states = {"q": (video, S(stage.n)), "kv": (video, stage.kv_operator(self.name))}
        corrected, o = stage.exchange(self.name, "spatial", **states), attend(h)
        if corrected is None:
            return o
        return stage.blend(o, attend(corrected["q"].flatten(0, 1), corrected["kv"].flatten(0, 1)))


class CrossProcessor(Processor):
    """Query corrected with S; what it attends to stays. h: (b f) l d."""

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        video = h.unflatten(0, (-1, self.seat.frames))
        corrected, o = stage.exchange(self.name, "spatial", q=(video, S(stage.n))), attend(h)
        return o if corrected is None else stage.blend(o, attend(corrected["q"].flatten(0, 1)))


class TemporalProcessor(Processor):
    """Hidden state corrected with S (Eq. 9), attention in windows (Eq. 18-20). h: (b l) f d."""

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        corrected, o = stage.exchange(self.name, "temporal", h=(h, S(stage.n))), fused(stage,
                                                                                       attend, h)
        return o if corrected is None else stage.blend(o, fused(stage, attend, corrected["h"]))


def fused(stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
    """Attention in each window, their outputs fused. h: n f d."""
    spans = windows(h.shape[1], stage.window, stage.overlap)
    if len(spans) == 1:
        return attend(h)
    o = torch.zeros_like(h)
    for (start, end), share in zip(spans, fusion_matrix(spans).to(h)):
        o[:, start:end].addcmul_(share[:, None], attend(h[:, start:end]))
    return o


def compressed(plain: Callable[[Tensor], Tensor], seat: Seat) -> Callable[[Tensor], Tensor]:
    """The embedding of positions, which are compressed (Eq. 16-17). position: 0, 1, .. of each
    video's frames."""
    return lambda position: plain(position if seat.stage is None else position
                                  * (seat.stage.window / seat.frames))


def embedded(plain: Callable[[Tensor], Tensor], seat: Seat) -> Callable[[Tensor], Tensor]:
    """What adds positions' embedding (x: n f d), compressed and computed: the length of its table
    is no limit."""

    def forward(x: Tensor) -> Tensor:
        if seat.stage is None or seat.stage.index == 0:
            return plain(x)
        cosines, sines = sinusoid(frame_positions(x.shape[1], seat.stage), x.shape[-1]).chunk(2, dim=-1)
        return x + torch.stack([sines, cosines], dim=-1).flatten(-2).to(x)

    return forward


# --- the cascade in a pipeline


class Smooth:
    """A pipeline whose videos are smooth; `smooth` makes one. Called as the pipeline is, but for
    the frames."""

    def __init__(self, pipeline: DiffusionPipeline, cascade: Cascade) -> None:
        self.pipeline, self.cascade = pipeline, cascade
        self.lengths = [cascade.frames_of(s) for s in range(cascade.stages)]
        self.axis = 1 if isinstance(pipeline.unet, UNetSpatioTemporalConditionModel) else 2  # of frames in latents

    def __call__(self, *args: Any, generator: Any = None, latents: Tensor | None = None,
                 **kwargs: Any) -> list[Any]:
        """What the pipeline returns, of each stage: key frames first, the smoothest last.

        generator: its seed is that of all noise, as in `sample.py`: one seed has the same key
        frames at every number of frames. latents: instead of that, standard normal noise of the
        smoothest stage. Everything else: the pipeline's own arguments, without num_frames; fps is
        that of the key frames. ValueError for what does not fit."""
        if "num_frames" in kwargs:
            raise ValueError(
                f"num_frames={kwargs['num_frames']}; how many there are was said to smooth(..)")
        pipeline, unet, scheduler = self.pipeline, self.pipeline.unet, self.pipeline.scheduler
        seed = torch.seed() if generator is None else generator
        seeds = [x if isinstance(x, int) else x.initial_seed()
                 for x in (seed if isinstance(seed, list) else [seed])]
        self.step = -1
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(replaced(unet, "forward", self.staged(unet.forward, enter(on_bus(unet)))))
            enter(replaced(pipeline, "decode_latents", self.decoded(pipeline.decode_latents)))
            if latents is not None:
                latents = self.laid_out(latents.movedim(self.axis, 1))
            else:
                prepare = pipeline.prepare_latents

                def prepared(*args: Any, **kwargs: Any) -> Tensor:
                    x = prepare(*args, **kwargs)
                    return self.noise(seeds, x.shape).to(x) * scheduler.init_noise_sigma

                enter(replaced(pipeline, "prepare_latents", prepared))
            module = sys.modules[type(scheduler).__module__]

            def drawn(shape: Sequence[int], device: Any = None, dtype: Any = None,
                      **_: Any) -> Tensor:
                return self.noise(seeds, shape).to(device=device, dtype=dtype)

            if hasattr(module, "randn_tensor"):  # the noise of a step, if it adds some, is nested as well
                enter(replaced(module, "randn_tensor", drawn))
            output = pipeline(*args, num_frames=sum(self.lengths), generator=generator,
                              latents=latents, **kwargs)
        axis = self.axis if kwargs.get("output_type") == "latent" else 1
        return [type(output)(frames=frames) for frames in self.cut(output.frames, axis)]

    def staged(self, plain: Callable[..., Any], seat: Seat) -> Callable[..., Any]:
        """The network, of all stages at once, one behind the other."""
        bus, axis, cascade = self.cascade.bus(), self.axis, self.cascade

        def forward(sample: Tensor, timestep: Any, *args: Any, return_dict: bool = True,
                    **kwargs: Any) -> Any:
            frames = len(sample) * sum(self.lengths)

            def told(value: Any, index: int) -> Any:
                """Of what there is once for each frame, the part of a stage."""
                if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != frames:
                    return value
                return value.unflatten(0, (len(sample), -1)).split(self.lengths,
                                                                   dim=1)[index].flatten(0, 1)

            def network(index: int, x: Tensor, stage: Stage | None) -> Tensor:
                seat.stage = stage
                given, named = tree_map(lambda value: told(value, index), (args, kwargs))
                if "added_time_ids" in named:
                    fps = (named["added_time_ids"][:, :1] + 1) * cascade.scale_of(index)
                    named["added_time_ids"] = torch.cat([fps - 1, named["added_time_ids"][:, 1:]],
                                                        dim=1)
                return plain(x, timestep, *given, return_dict=False, **named)[0]

            self.step, share = self.progress(timestep)
            self.guide()
            xs = sample.split(self.lengths, dim=axis)
            y = torch.cat(cascade_step(network, xs, bus, self.step, cascade.strength_at(share)),
                          dim=axis)
            return SimpleNamespace(sample=y) if return_dict else (y,)

        return forward

    def progress(self, timestep: Any) -> tuple[int, float]:
        """The step, and the paper's t/T: of timesteps over 1000, of noise levels the share of steps
        still to go."""
        timesteps, config = self.pipeline.scheduler.timesteps, self.pipeline.scheduler.config
        step = int((timesteps == timestep).nonzero()[0])
        if config.get("timestep_type") == "continuous":
            return step, (len(timesteps) - step) / len(timesteps)
        return step, float(timestep) / config.num_train_timesteps

    def guide(self) -> None:
        """Guidance that grows over the frames does so in each stage."""
        scale = getattr(self.pipeline, "_guidance_scale", None)
        if isinstance(scale, Tensor):
            first, last = scale[:, :1], scale[:, -1:]
            way = torch.cat([torch.linspace(0, 1, f) for f in self.lengths]).to(scale)
            self.pipeline._guidance_scale = first + (last - first) * way.view(1, -1, *[1]
                                                                              * (scale.ndim - 2))

    def decoded(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Decoding stage by stage, so that a decoder that mixes frames mixes none of two stages.
        Returns b c f h w."""

        def decode(latents: Tensor, *args: Any) -> Tensor:
            parts = latents.split(self.lengths, dim=self.axis)
            if self.axis == 1:  # it is told how many frames there are
                return torch.cat([plain(x, x.shape[1], *args[1:]) for x in parts], dim=2)
            return torch.cat([plain(x, *args) for x in parts], dim=2)

        return decode

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal noise of the running step, in the shape of the latents of all stages (Eq.
        23)."""
        sizes = [size for i, size in enumerate(shape[1:], start=1) if i != self.axis]
        if len(seeds) != shape[0]:
            seeds = [seeds[0] + i for i in range(shape[0])]
        cascade = self.cascade
        videos = [nested_noise(sizes, cascade.frames, cascade.scales, seed, self.step)
                  for seed in seeds]
        return self.laid_out(torch.stack(videos))

    def laid_out(self, x: Tensor) -> Tensor:
        """The frames of all stages, one stage behind the other, of those of the last: b f c h w, to
        the pipeline's."""
        return torch.cat(by_stage(x, self.cascade.scales), dim=1).movedim(1, self.axis)

    def cut(self, videos: Any, axis: int) -> list[Any]:
        """Of each stage: a list of lists of pictures, or an array."""
        ends = [sum(self.lengths[: s + 1]) for s in range(len(self.lengths))]
        spans = [slice(end - f, end) for f, end in zip(self.lengths, ends)]
        if isinstance(videos, list):
            return [[video[span] for video in videos] for span in spans]
        return [videos[(slice(None),) * axis + (span,)] for span in spans]


def smooth(pipeline: DiffusionPipeline, frames: int = 64, key_frames: int | None = None,
           strength: float = 0.8, correction: Correction = Correction(), overlap: int
           | None = None) -> Smooth:
    """A pipeline whose videos have as many frames, all else being as it was.

    key_frames: of the first stage, at most what the network was trained on; None: as many as that,
    16 of AnimateDiff. Each stage doubles them. strength, correction, overlap: as `Cascade`'s.
    ValueError if frames is no doubling of them.
    """
    trained = 16 if isinstance(pipeline.unet, UNetMotionModel) else pipeline.unet.config.num_frames
    key_frames = trained if key_frames is None else key_frames
    stages = log2(frames / key_frames) if frames >= key_frames > 0 else 0.5
    if stages % 1:
        fitting = ", ".join(str(key_frames * 2**s) for s in range(4))
        raise ValueError(f"frames={frames} is not {key_frames} key frames doubled some times; use one of {fitting}")
    scales = (2,) * int(stages)
    return Smooth(pipeline,
                  Cascade(key_frames, scales, correction=correction, strength=strength,
                          overlap=overlap))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """owner.name is value within."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
