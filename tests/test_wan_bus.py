"""What must hold of `examples/wan_bus.py`: diffusers' own pipeline, in place. Skipped where it is
missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("diffusers", reason='needs pip install ".[diffusers]"')
pytest.importorskip("transformers", reason='needs pip install ".[diffusers]"')

from diffusers import (  # noqa: E402
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from examples import wan, wan_bus  # noqa: E402
from examples.wan import dense  # noqa: E402
from examples.wan_bus import Latents, smooth  # noqa: E402
from weights_convert.engine import convert  # noqa: E402
from zerosmooth.checkpoint import tensor_shapes  # noqa: E402
from zerosmooth.extensions.predictions import lines  # noqa: E402
from zerosmooth.family import Networks  # noqa: E402
from zerosmooth.fields import UserError  # noqa: E402
from zerosmooth.guidance import Branch, Guidance  # noqa: E402
from zerosmooth.settings import settings_for  # noqa: E402

CONFIG = replace(
    wan.FAMILY.config,
    unet=replace(wan.FAMILY.config.unet, heads=2, head_dim=12, layers=2, feed_forward=32,
                 context_dim=12, time_dim=8, frames=3, overlap=2),
    vae=replace(wan.FAMILY.config.vae, channels=4))
SCHEDULERS = {
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                     flow_shift=3.0),
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
CONTEXT = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))
GIVEN = {"prompt_embeds": CONTEXT[:1], "negative_prompt_embeds": CONTEXT[1:], "height": 16,
         "width": 32, "num_frames": 9, "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(params=SCHEDULERS)
def pipeline(request) -> WanPipeline:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        transformer = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, text_dim=12, freq_dim=8, ffn_dim=32,
            num_layers=2, rope_max_seq_len=64).eval()
        vae = AutoencoderKLWan(base_dim=4).eval()
    made = WanPipeline(None, None, vae, SCHEDULERS[request.param], transformer)
    made.set_progress_bar_config(disable=True)
    made.kind = request.param
    return made


def ours(pipeline: WanPipeline) -> Networks:
    """The same weights in our networks, through the converter."""
    held = {f"{part}.{name}": x for part in ("transformer", "vae")
            for name, x in getattr(pipeline, part).state_dict().items()}
    shapes = {name: tuple(x.shape) for name, x in held.items()}
    networks = Networks(wan.FAMILY, CONFIG)
    table = wan.table(CONFIG, shapes)
    state = convert(table, shapes, held.__getitem__, tensor_shapes(wan.FAMILY, CONFIG))
    networks.load_state_dict(dict(state))
    return networks.eval()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def run(pipeline: WanPipeline, **given) -> list[Tensor]:
    made = smooth(pipeline, 4, window=3, overlap=2, **given)(generator=seeded(), **GIVEN)
    return [one.frames for one in made]


def test_the_key_video_is_what_the_pipeline_makes_by_itself(pipeline):
    """Bitwise, corrected or not; and the pipeline is what it was."""
    alone = pipeline(generator=seeded(), **GIVEN).frames
    plain, averages, through = (run(pipeline, **given)
                                for given in ({"correct": dense.keep}, {}, {"lift": lines}))
    assert [x.shape[2] for x in plain] == [3, 5, 9]
    for made in (plain, through, averages):
        assert torch.equal(made[0], alone)
    assert not torch.equal(through[1], plain[1]) and not torch.equal(averages[1], plain[1])
    assert torch.equal(pipeline(generator=seeded(), **GIVEN).frames, alone)


def test_a_key_video_longer_than_a_window_stays_too(pipeline):
    alone = pipeline(generator=seeded(), **GIVEN).frames
    made = smooth(pipeline, 2, window=2, overlap=1)(generator=seeded(), **GIVEN)
    assert torch.equal(made[0].frames, alone)


def test_it_is_so_in_half_precision(pipeline):
    """The network's outputs alone are in it, as `from_pretrained` loads them: a corrected clip's
    float32 must not reach the key video's steps."""
    with torch.inference_mode(False):
        pipeline.transformer.to(torch.bfloat16)
    alone = pipeline(generator=seeded(), **GIVEN).frames
    assert torch.equal(run(pipeline)[0], alone)


@pytest.mark.parametrize(("at", "join"), [((), 0.0), (None, 0.0), (None, 0.4), ((0.5, 0.9), 0.0),
                                           ((0.9,), 0.4)])
def test_it_makes_what_our_networks_make(pipeline, at, join):
    """Positions, windows, corrections, late joining and samplers, from the same noise."""
    networks, given = ours(pipeline), GIVEN["num_inference_steps"]
    guide = Guidance(networks.unet, [Branch(CONTEXT[:1]), Branch(CONTEXT[1:])],
                     settings_for(wan.FAMILY, CONFIG))
    generator = seeded()
    noise = [torch.randn(1, 16, f, 2, 4, generator=generator).movedim(1, 2) for f in (3, 5, 9)]
    through = dense.ThroughFrames(networks.vae, steps={dense.step_at(x, given) for x in at or ()})
    correct = dense.Pairs.averages(16) if at is None else through
    with torch.inference_mode():
        wanted = dense.sample_dense(
            lambda timestep, x, place, stage: guide(x, timestep, place, stage),
            wan.FlowConfig(pipeline.kind), given, noise, 3, 2, correct,
            dense.step_at(join, given), through.begin)
    asked = {} if at is None else {"lift": lines, "at": at}
    for x, y in zip(run(pipeline, join=join, **asked), wanted):
        assert_close(x.movedim(2, 1), y, rtol=0, atol=1e-3 * float(y.std()))


def test_whole_positions_are_the_pipelines_own(pipeline, monkeypatch):
    """To the bit: at these, a longer clip has the angles that the network was trained with."""
    made = smooth(pipeline, 2)
    made.stage = 1
    monkeypatch.setattr(wan_bus, "last_frames", lambda f, n: torch.arange(f))
    x = torch.empty(1, 16, 5, 4, 6)
    rope = pipeline.transformer.rope
    for table, plain in zip(made.rotated(rope.forward)(x), rope(x)):
        assert torch.equal(table, plain)


def test_its_autoencoder_is_ours(pipeline):
    theirs, vae, z = Latents(pipeline.vae), ours(pipeline).vae, torch.randn(1, 3, 16, 2, 2)
    with torch.inference_mode():
        x = theirs.decode(z)
        assert_close(x, vae.decode(z).clamp(-1, 1), rtol=0, atol=1e-4)
        assert_close(theirs.encode(x), vae.encode(x), rtol=0, atol=1e-3)


def test_frames_are_those_of_each_clip(pipeline):
    made = smooth(pipeline)(generator=seeded(), return_dict=False, **{**GIVEN, "output_type": "np"})
    assert [one.frames.shape for one in made] == [(1, 9, 16, 32, 3), (1, 17, 16, 32, 3)]


def test_what_does_not_fit_is_refused(pipeline):
    with pytest.raises(UserError, match="no pipeline of Wan"):
        smooth(object())
    with pytest.raises(UserError, match="scale=3"):
        smooth(pipeline, 3)
    with pytest.raises(UserError, match="2 of the steps; shares"):
        smooth(pipeline, lift=lines, at=(2,))
    for alone in ({}, {"lift": lines, "correct": dense.keep}):
        with pytest.raises(UserError, match="at is of corrections through frames"):
            smooth(pipeline, at=(0.5,), **alone)
    with pytest.raises(UserError, match="lift='lines'; functions are needed"):
        smooth(pipeline, lift="lines")
    with pytest.raises(UserError, match=r"num_frames=10; the key video has 1 \+ 4m .* 9$"):
        smooth(pipeline)(**{**GIVEN, "num_frames": 10})
    with pytest.raises(UserError, match="latents of 5 frames"):
        smooth(pipeline)(latents=torch.zeros(1, 16, 5, 2, 4), **GIVEN)
    pipeline.scheduler = UniPCMultistepScheduler()
    with pytest.raises(UserError, match="UniPCMultistepScheduler samples no flow"):
        smooth(pipeline)(**GIVEN)
