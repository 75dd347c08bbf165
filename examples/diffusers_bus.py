"""ZeroSmooth in a pipeline that is loaded in diffusers: Stable Video Diffusion, Latte, or
AnimateDiff on any model, with LoRAs, adapters and any scheduler.

    pipeline = AnimateDiffPipeline.from_pretrained(.., motion_adapter=..)
    run = smooth(pipeline, frames=64)
    base, double, smoothest = run("a panda surfing", generator=torch.manual_seed(0))
    export_to_video(smoothest.frames[0], "panda.mp4", fps=32)

Nothing is converted, and the pipeline stays what it is. During a call, our attention processors
stand before its own: they correct hidden states on the bus and then let the old ones attend, so
whatever those do, or the layers that they call, still works. The stages lie one behind the other
along the frames of one long video, which the pipeline denoises like any other. What it takes for
its network cuts that video into stages.

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
from diffusers import (
    DiffusionPipeline,
    LatteTransformer3DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerosmooth.attention import frame_positions, fusion_matrix, windows
from zerosmooth.bus import Correction, Stage
from zerosmooth.cascade import Cascade, by_stage, cascade_step, nested_noise
from zerosmooth.fields import UserError
from zerosmooth.models.layers import sinusoid
from zerosmooth.operators import Operator, S

NETWORKS = UNetSpatioTemporalConditionModel, UNetMotionModel, LatteTransformer3DModel

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


def known(network: Any) -> Any:
    """The network. UserError for one of another kind."""
    if not isinstance(network, NETWORKS):
        raise UserError(f"{type(network).__name__} is none of "
                        f"{', '.join(kind.__name__ for kind in NETWORKS)}; "
                        "docs/new_backbone.md says what others need")
    return network


@contextmanager
def on_bus(network: nn.Module) -> Iterator[Seat]:
    """Within, the network runs the stage that the seat names, and is called with its frames.

    UserError for a network of another kind."""
    known(network)
    seat = Seat()
    before = {path: (module, module.get_processor()) for path, module in network.named_modules()
              if hasattr(module, "get_processor")}
    try:
        with ExitStack() as stack:
            for path, (module, processor) in before.items():
                module.set_processor(processor_for(network, path, processor, seat))
            if isinstance(network, LatteTransformer3DModel):
                first, table = network.temporal_transformer_blocks[0], network.temp_pos_embed
                stack.callback(setattr, network, "temp_pos_embed", table)
                network.temp_pos_embed = torch.zeros_like(table[:, :1])  # of any number of frames
                stack.enter_context(replaced(first, "forward", placed(first.forward, seat, table)))
            for path, module in network.named_modules():
                inside, _, last = path.rpartition(".")
                if inside and last == "pos_embed" or last == "time_proj" and "attentions" in path:
                    embed = embedded if last == "pos_embed" else compressed
                    stack.enter_context(replaced(module, "forward", embed(module.forward, seat)))
            yield seat
    finally:
        for module, processor in before.values():
            module.set_processor(processor)


def processor_for(network: nn.Module, name: str, inner: Any, seat: Seat) -> Any:
    """What takes the place of an attention processor. Attention to one token, that of the image in
    Stable Video Diffusion, keeps its own: there is nothing to correct."""
    cross = name.endswith("attn2")
    if cross and isinstance(network, UNetSpatioTemporalConditionModel):
        return inner
    if "motion_modules" in name or "temporal_transformer_blocks" in name:
        return TemporalProcessor(inner, seat, name)
    return SpatialProcessor(inner, seat, name if cross else our_name(network, name), cross)


def our_name(unet: Any, path: str) -> str:
    """The path of a spatial self-attention in networks of this package, so that the same A1 and A2
    are drawn."""
    if isinstance(unet, LatteTransformer3DModel):
        return path.replace("transformer_blocks", "spatial_blocks").replace("attn1", "attn")
    block, rest = path.replace(".attentions.", ".").split(".transformer_blocks.")
    kind, *index = block.split(".")
    place = {"mid_block": "middle", "down_blocks": "encoder", "up_blocks": "decoder"}[kind]
    if kind != "mid_block":
        each = unet.config.layers_per_block
        depth = each if isinstance(each, int) else each[0]
        place += f".{int(index[0]) * (depth + 1) + int(index[1])}"
    return f"{place}.transformer.blocks.{rest.replace('attn1', 'self_attn')}"


class Processor:
    """An attention processor that lets another one attend, with corrected hidden states too.

    Projections act on channels and operators on frames, so the query of a corrected hidden state is
    the corrected query. The output projection is affine, so blending after it equals blending
    before it.
    """

    def __init__(self, inner: Any, seat: Seat, name: str) -> None:
        self.inner, self.seat, self.name = inner, seat, name
        vars(self)["__call__"] = inner.__call__  # diffusers passes the keywords of its signature

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Any = None,
                 *args: Any, **kwargs: Any) -> Tensor:
        def attend(h: Tensor, context: Any = encoder_hidden_states) -> Tensor:
            return self.inner(attn, h, context, *args, **kwargs)

        if self.seat.stage is None:
            return attend(hidden_states)
        return self.on_stage(self.seat.stage, attend, hidden_states)

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        raise NotImplementedError


class SpatialProcessor(Processor):
    """Query corrected with S (Eq. 10), key and value with A1 or A2 (11-14). h: (b f) l d.

    cross: what it attends to is not the frames, and stays.
    """

    def __init__(self, inner: Any, seat: Seat, name: str, cross: bool) -> None:
        super().__init__(inner, seat, name)
        self.cross = cross

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        video = h.unflatten(0, (-1, self.seat.frames))
        states: dict[str, tuple[Tensor, Operator]] = {"q": (video, S(stage.n))}
        if not self.cross:
            states["kv"] = video, stage.kv_operator(self.name)
        corrected, o = stage.exchange(self.name, "spatial", **states), attend(h)
        if corrected is None:
            return o
        return stage.blend(o, attend(*(x.flatten(0, 1) for x in corrected.values())))


class TemporalProcessor(Processor):
    """Hidden state corrected with S (Eq. 9), attention in windows (Eq. 18-20). h: (b l) f d."""

    def on_stage(self, stage: Stage, attend: Callable[..., Tensor], h: Tensor) -> Tensor:
        corrected = stage.exchange(self.name, "temporal", h=(h, S(stage.n)))
        o = fused(stage, attend, h)
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
    """The embedding of positions (0, 1, .. of each video's frames), compressed (Eq. 16-17)."""

    def forward(position: Tensor) -> Tensor:
        scale = 1.0 if seat.stage is None else seat.stage.window / seat.frames
        return plain(position * scale)

    return forward


def embedded(plain: Callable[[Tensor], Tensor], seat: Seat) -> Callable[[Tensor], Tensor]:
    """A module that adds an embedding of positions to x (n f d), compressed. It is computed: the
    length of the module's table is no limit."""

    def forward(x: Tensor) -> Tensor:
        if seat.stage is None or seat.stage.index == 0:
            return plain(x)
        angles = sinusoid(frame_positions(x.shape[1], seat.stage), x.shape[-1])
        cosines, sines = angles.chunk(2, dim=-1)
        return x + torch.stack([sines, cosines], dim=-1).flatten(-2).to(x)

    return forward


def placed(plain: Callable[..., Tensor], seat: Seat, table: Tensor) -> Callable[..., Tensor]:
    """Latte's first temporal block, with the positions, compressed, added to x (n f d). A single
    frame has none. table: 1 f d, as trained."""

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        positions = table
        if seat.stage is not None and seat.stage.index > 0:
            angles = sinusoid(frame_positions(x.shape[1], seat.stage, x.device), x.shape[-1])
            positions = torch.cat(angles.chunk(2, dim=-1)[::-1], dim=-1)[None]  # sines first
        if x.shape[1] > 1:
            x = x + positions[:, : x.shape[1]].to(x)
        return plain(x, *args, **kwargs)

    return forward


# --- the cascade in a pipeline


def network_of(pipeline: DiffusionPipeline) -> Any:
    return known(getattr(pipeline, "unet", getattr(pipeline, "transformer", None)))


class Smooth:
    """A pipeline whose videos are smooth, as `smooth` makes it. Called like the pipeline, without
    num_frames (Latte: video_length)."""

    def __init__(self, pipeline: DiffusionPipeline, cascade: Cascade) -> None:
        self.pipeline, self.cascade = pipeline, cascade
        self.lengths = [cascade.frames_of(s) for s in range(cascade.stages)]
        self.network = network_of(pipeline)
        svd = isinstance(self.network, UNetSpatioTemporalConditionModel)
        self.axis = 1 if svd else 2  # of frames in latents
        latte = isinstance(self.network, LatteTransformer3DModel)
        self.count = "video_length" if latte else "num_frames"  # the pipeline's name for it

    def __call__(self, *args: Any, generator: Any = None, latents: Tensor | None = None,
                 **kwargs: Any) -> list[Any]:
        """What the pipeline returns, for each stage: key frames first, the smoothest last.

        generator: all noise of frames has its seed, as in `sample.py`: one seed has the same key
        frames at every number of frames; None: one that torch draws. (SVD's noise on the image is
        the pipeline's own: another in a generator's second call.) latents: standard normal noise
        of the smoothest stage, instead. All else: the pipeline's own arguments; fps is that of the
        key frames. UserError for what does not fit.
        """
        if self.count in kwargs:
            raise UserError(f"{self.count}={kwargs[self.count]}; give it to smooth(.., frames=..)")
        pipeline, network, scheduler = self.pipeline, self.network, self.pipeline.scheduler
        if not kwargs.get("return_dict", True):
            raise UserError("return_dict=False; leave it out, and take .frames of each result")
        if getattr(pipeline, "free_init_enabled", False):
            raise UserError("FreeInit would mix the stages' noise; pipeline.disable_free_init()")
        seed = int(torch.randint(1 << 31, ())) if generator is None else generator
        seeds = [x if isinstance(x, int) else x.initial_seed()
                 for x in (seed if isinstance(seed, list) else [seed])]
        self.step = -1
        with ExitStack() as stack:
            enter = stack.enter_context
            seat = enter(on_bus(network))
            enter(replaced(network, "forward", self.staged(network.forward, seat)))
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

            if hasattr(module, "randn_tensor"):  # the noise that a step may add is nested as well
                enter(replaced(module, "randn_tensor", drawn))
            kwargs[self.count] = sum(self.lengths)
            output = pipeline(*args, generator=generator, latents=latents, **kwargs)
        axis = self.axis if kwargs.get("output_type") == "latent" else 1
        return [type(output)(frames=frames) for frames in self.cut(output.frames, axis)]

    def staged(self, plain: Callable[..., Any], seat: Seat) -> Callable[..., Any]:
        """The network on all stages, which lie one behind the other."""
        bus, axis, cascade = self.cascade.bus(), self.axis, self.cascade

        def forward(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            if "hidden_states" in kwargs:  # as Latte's pipeline calls it
                args = kwargs.pop("hidden_states"), kwargs.pop("timestep")
            sample, timestep, *rest = args
            frames = len(sample) * sum(self.lengths)

            def told(value: Any, index: int) -> Any:
                """A stage's part of what has an entry for each frame."""
                if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != frames:
                    return value
                parts = value.unflatten(0, (len(sample), -1)).split(self.lengths, dim=1)
                return parts[index].flatten(0, 1)

            def network(index: int, x: Tensor, stage: Stage | None) -> Tensor:
                seat.stage = stage
                given, named = tree_map(lambda value: told(value, index), (rest, kwargs))
                if (ids := named.get("added_time_ids")) is not None:
                    fps = (ids[:, :1] + 1) * cascade.scale_of(index)
                    named["added_time_ids"] = torch.cat([fps - 1, ids[:, 1:]], dim=1)
                return plain(x, timestep, *given, return_dict=False, **named)[0]

            self.step, share = self.progress(timestep)
            self.guide()
            xs, w = sample.split(self.lengths, dim=axis), cascade.strength_at(share)
            y = torch.cat(cascade_step(network, xs, bus, self.step, w), dim=axis)
            return SimpleNamespace(sample=y) if return_dict else (y,)

        return forward

    def progress(self, timestep: Any) -> tuple[int, float]:
        """The step, and t/T: timesteps over 1000; with noise levels the share of steps to go."""
        timesteps, config = self.pipeline.scheduler.timesteps, self.pipeline.scheduler.config
        timestep = torch.as_tensor(timestep).flatten()[0].to(timesteps)  # the same for all videos
        step = int((timesteps == timestep).nonzero()[0])
        if config.get("timestep_type") == "continuous":
            return step, (len(timesteps) - step) / len(timesteps)
        return step, float(timestep) / config.num_train_timesteps

    def guide(self) -> None:
        """Let guidance that grows over the frames do so in each stage."""
        scale = getattr(self.pipeline, "_guidance_scale", None)
        if isinstance(scale, Tensor):
            first, last = scale[:, :1], scale[:, -1:]
            way = torch.cat([torch.linspace(0, 1, f) for f in self.lengths]).to(scale)
            way = way.view(1, -1, *[1] * (scale.ndim - 2))
            self.pipeline._guidance_scale = first + (last - first) * way

    def decoded(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Decoding stage by stage, so that a decoder that mixes frames mixes none of two stages: b
        c f h w."""

        told = not isinstance(self.network, UNetMotionModel)  # secondly, how many frames there are

        def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            parts = latents.split(self.lengths, dim=self.axis)
            given = [(x, x.shape[self.axis], *args[1:]) if told else (x, *args) for x in parts]
            return torch.cat([plain(*each, **kwargs) for each in given], dim=2)

        return decode

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal noise of the running step (Eq. 23), shaped as the latents of all
        stages."""
        sizes = [size for i, size in enumerate(shape[1:], start=1) if i != self.axis]
        if len(seeds) != shape[0]:
            seeds = [seeds[0] + i for i in range(shape[0])]
        c = self.cascade
        videos = [nested_noise(sizes, c.key_frames, c.scales, seed, self.step) for seed in seeds]
        return self.laid_out(torch.stack(videos))

    def laid_out(self, x: Tensor) -> Tensor:
        """The frames of all stages, one stage behind the other. x: b f c h w of the last stage;
        returns the pipeline's axes."""
        return torch.cat(by_stage(x, self.cascade.scales), dim=1).movedim(1, self.axis)

    def cut(self, videos: Any, axis: int) -> list[Any]:
        """By stage: lists of lists of pictures, or arrays."""
        ends = [sum(self.lengths[: s + 1]) for s in range(len(self.lengths))]
        spans = [slice(end - f, end) for f, end in zip(self.lengths, ends)]
        if isinstance(videos, list):
            return [[video[span] for video in videos] for span in spans]
        return [videos[(slice(None),) * axis + (span,)] for span in spans]


def smooth(pipeline: DiffusionPipeline, frames: int = 64, key_frames: int | None = None,
           strength: float = 0.8, correction: Correction = Correction(),
           overlap: int | None = None) -> Smooth:
    """A pipeline whose videos have so many frames, and which else stays as it is.

    key_frames: those of the first stage, at most what the network was trained on; None: just that,
    16 for AnimateDiff. Each further stage doubles them. strength, correction, overlap: as in
    `Cascade`. UserError for a pipeline of another kind, or if doublings of key_frames do not lead
    to frames.
    """
    config = network_of(pipeline).config
    trained = config.get("num_frames") or config.get("video_length") or 16
    key_frames = trained if key_frames is None else key_frames
    stages = log2(frames / key_frames) if frames >= key_frames > 0 else 0.5
    if stages % 1:
        fitting = ", ".join(str(key_frames * 2**s) for s in range(4))
        raise UserError(f"frames={frames} is not {key_frames} key frames doubled some times; "
                        f"use one of {fitting}")
    return Smooth(pipeline, Cascade(key_frames, (2,) * int(stages), strength, overlap=overlap,
                                    correction=correction))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, owner.name is value."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
