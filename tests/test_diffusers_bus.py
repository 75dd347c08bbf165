"""What must hold of `examples/diffusers_bus.py`: diffusers' own networks on the bus. Skipped where
it is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import (  # noqa: E402
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0  # noqa: E402
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: E402

from zerosmooth.bus import Correction, HiddenStateBus  # noqa: E402
from zerosmooth.cascade import Cascade, nested_noise, sample_cascade  # noqa: E402
from zerosmooth.config import Sampling  # noqa: E402
from zerosmooth.families import FAMILIES  # noqa: E402
from zerosmooth.guidance import Branch, Guidance  # noqa: E402
from zerosmooth.settings import settings_for  # noqa: E402

from .parity import build, read  # noqa: E402
from .parity_backbones_a import build as build_latte  # noqa: E402
from .parity_backbones_a import latte as our_latte  # noqa: E402
from .parity_diffusers import (  # noqa: E402
    animatediff,
    check,
    diffusers_bus,
    encoded_svd,
    filled,
    latte,
    svd,
    unet_of,
)

GOLDEN = Path(__file__).parent / "golden"
FILES = ("zerosmooth_svd_A2", "cascade_svd", "zerosmooth_animatediff_A1", "cascade_animatediff",
         "animatediff_pipeline", "zerosmooth_latte_A2", "cascade_latte")
SIZE = {"height": 32, "width": 32, "num_inference_steps": 2}


@pytest.mark.parametrize("name", FILES)
def test_gives_what_the_reference_files_have(name):
    value, bound = check(GOLDEN / f"golden_{name}.safetensors")
    assert value <= bound


@pytest.fixture
def reference():
    return read(GOLDEN / "golden_cascade_animatediff.safetensors")


@pytest.fixture
def pipeline(reference):
    return animatediff(unet_of(reference), None, reference.json("scheduler"))


def prompts(reference, **more) -> dict:
    embeds = {"prompt_embeds": reference["context"], "negative_prompt_embeds": reference["uncond"]}
    return {**embeds, **SIZE, "output_type": "latent"} | more


def videos(pipeline, reference, frames: int = 32, seed: int = 5, **more) -> list[Tensor]:
    run = diffusers_bus.smooth(pipeline, frames, correction=more.pop("correction", Correction()))
    outputs = run(**prompts(reference, generator=torch.Generator().manual_seed(seed), **more))
    return [output.frames for output in outputs]


def test_draws_the_operators_and_the_noise_of_our_own_network():
    """The whole of Stable Video Diffusion's run by default settings: A1 and A2 as drawn, noise as
    seeded."""
    reference = read(GOLDEN / "golden_cascade_svd.safetensors")
    networks, config = build(reference)
    context, z = reference["context"], reference["image_latent"]
    branches = [Branch(context, z), Branch(torch.zeros_like(context), torch.zeros_like(z))]
    guided, sampler = (Guidance(networks.unet, branches,
                                Sampling(guidance_scale=3.0, first_guidance_scale=1.0)),
                       config.sampler.sampler(3, 0.0))
    family, cascade = FAMILIES["svd"], Cascade(14, (2, 2))
    settings = settings_for(family, config, fps=7, motion_bucket_id=180)
    assert settings.cascade == cascade
    ours = sample_cascade(lambda i, s, x, stage: guided(x, sampler.timestep(i),
                                                        family.condition(config, settings.fps_of(s),
                                                                         settings), stage), sampler,
                          cascade, lambda step: nested_noise(z.shape[1:], 14, (2, 2), 9,
                                                             step)[None], cascade.bus())
    pipeline, (height, width) = encoded_svd(unet_of(reference), context, z)
    outputs = diffusers_bus.smooth(pipeline, 56)(torch.zeros(1, 3, height, width),
                                                 generator=torch.Generator().manual_seed(9),
                                                 motion_bucket_id=180, output_type="latent",
                                                 num_inference_steps=3, height=height, width=width)
    for a, b in zip(outputs, ours, strict=True):
        assert_close(a.frames, b, rtol=0, atol=1e-3 * b.std().item())


def latte_pipeline(reference, vae=None):
    return latte(unet_of(reference), vae, reference.json("scheduler"))


def test_a_latte_pipeline_stays_what_it_is_and_draws_as_our_network():
    """A1 and A2 as drawn, noise as seeded; the plain network, after it, has its own positions."""
    reference = read(GOLDEN / "golden_cascade_latte.safetensors")
    pipeline, t = latte_pipeline(reference), reference.tensors
    given = {"prompt_embeds": t["context"], "negative_prompt_embeds": t["uncond"],
             "negative_prompt": None, "height": 48, "width": 32, "num_inference_steps": 2,
             "output_type": "latent"}
    table, latents = pipeline.transformer.temp_pos_embed, t["latents"][:, :, :16]
    plain = pipeline(**given, latents=latents)
    outputs = diffusers_bus.smooth(pipeline, 64)(**given,
                                                 generator=torch.Generator().manual_seed(9))
    assert pipeline.transformer.temp_pos_embed is table
    again = pipeline(**given, latents=latents)
    assert torch.equal(plain.frames, again.frames)
    branches = [Branch(t["context"]), Branch(t["uncond"])]
    guided = Guidance(build_latte(reference).unet, branches, Sampling(guidance_scale=7.5))
    sampler, cascade = our_latte.FAMILY.config.sampler.sampler(2, 0.0), Cascade(16, (2, 2))
    ours = sample_cascade(
        lambda i, s, x, stage: guided(x, sampler.timestep(i), None, stage), sampler, cascade,
        lambda step: nested_noise((4, 6, 4), 16, (2, 2), 9, step)[None], cascade.bus())
    for a, b in zip(outputs, ours, strict=True):
        assert_close(a.frames.transpose(1, 2), b, rtol=0, atol=1e-3 * b.std().item())


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLTemporalDecoder"])
def test_latte_decodes_each_stage_with_either_decoder(kind):
    import diffusers

    reference = read(GOLDEN / "golden_cascade_latte.safetensors")
    down = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    up = {} if "Temporal" in kind else {"up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = filled(getattr(diffusers, kind)(block_out_channels=(32, 32), **down, **up))
    pipeline, t = latte_pipeline(reference, vae), reference.tensors
    run = diffusers_bus.smooth(pipeline, 32)
    outputs = run(prompt_embeds=t["context"], negative_prompt_embeds=t["uncond"],
                  negative_prompt=None, height=16, width=16, num_inference_steps=1,
                  output_type="np")
    assert [output.frames.shape for output in outputs] == [(1, f, 16, 16, 3) for f in (16, 32)]
    with pytest.raises(ValueError, match="video_length=16; give it to smooth"):
        run("a panda", video_length=16)


def test_one_seed_gives_the_same_key_frames_at_every_scale(pipeline, reference):
    for more in ({}, {"eta": 1.0}):
        (base,) = videos(pipeline, reference, 16, **more)
        longer = videos(pipeline, reference, 64, **more)
        assert [x.shape[2] for x in longer] == [16, 32, 64]
        assert_close(base, longer[0], rtol=0, atol=1e-4)
        other = videos(pipeline, reference, 16, seed=6, **more)
        assert not torch.allclose(base, other[0], atol=0.1)


def test_without_a_generator_torchs_seed_decides(pipeline, reference):
    made, after = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        (key,) = diffusers_bus.smooth(pipeline, 16)(**prompts(reference))
        made.append(key.frames)
        after.append(torch.rand(()))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert after[0] == after[1]  # torch's own draws go on from that seed


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_noise_is_nested_whatever_scheduler_adds_it(pipeline, reference, kind, monkeypatch):
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    made = []
    plain = diffusers_bus.Smooth.noise
    monkeypatch.setattr(diffusers_bus.Smooth, "noise", lambda *args: made.append(plain(*args))
                        or made[-1])
    videos(pipeline, reference, 64, eta=1.0)
    # the start and the steps, the last of which may add none
    assert len(made) >= SIZE["num_inference_steps"]
    for x in made:
        base, double, fourfold = x.split([16, 32, 64], dim=2)
        assert torch.equal(base, double[:, :, ::2]) and torch.equal(double, fourfold[:, :, ::2])
    assert not torch.equal(made[0], made[1])


def state_of(pipeline) -> tuple:
    unet = pipeline.unet
    forwards = {path: vars(module).get("forward") for path, module in unet.named_modules()}
    return dict(unet.attn_processors), forwards, dict(vars(pipeline))


def test_the_pipeline_stays_what_it_is(pipeline, reference):
    """After a call, and after one that is interrupted."""
    before = state_of(pipeline)
    plain = pipeline(num_frames=16, generator=torch.Generator().manual_seed(1),
                     **prompts(reference)).frames
    ours = {k: v for k, v in vars(pipeline).items()}
    videos(pipeline, reference)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        videos(pipeline, reference, callback_on_step_end=stop)
    after = state_of(pipeline)
    assert after[:2] == before[:2] and after[2].keys() == ours.keys()
    again = pipeline(num_frames=16, generator=torch.Generator().manual_seed(1),
                     **prompts(reference)).frames
    assert torch.equal(plain, again)


def test_the_correction_moves_the_longer_videos_and_never_the_key_frames(pipeline, reference):
    off = Correction(spatial=False, temporal=False)
    plain, corrected = videos(pipeline, reference, correction=off), videos(pipeline, reference)
    assert torch.equal(plain[0], corrected[0])
    assert (plain[1][:, :, ::2] - plain[0]).std() > (corrected[1][:, :, ::2] - corrected[0]).std()


def test_runs_in_half_precision(pipeline, reference):
    pipeline.unet.to(torch.bfloat16)
    embeds = {name: reference[key].bfloat16()
              for name, key in (("prompt_embeds", "context"), ("negative_prompt_embeds", "uncond"))}
    base, longer = videos(pipeline, reference, eta=1.0, **embeds)
    assert base.dtype == longer.dtype == torch.bfloat16 and longer.isfinite().all()


def test_loras_go_on_working(pipeline, reference):
    """What a LoRA does beside the weights, it does merged into them."""
    peft = pytest.importorskip("peft")
    plain = videos(pipeline, reference)
    torch.manual_seed(0)
    layers = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(layers)
    beside = videos(pipeline, reference)
    pipeline.unet.fuse_lora()
    merged = videos(pipeline, reference)
    assert not torch.allclose(plain[1], beside[1], atol=0.01)
    for a, b in zip(beside, merged):
        assert_close(a, b, rtol=0, atol=1e-3)


def test_image_adapters_go_on_working(reference):
    """Their attention processors have weights of their own, and a second context."""
    torch.manual_seed(0)
    unet = unet_of(reference)
    processors = {}
    for path, processor in unet.attn_processors.items():
        if "motion_modules" not in path and path.endswith("attn2.processor"):
            dim = unet.get_submodule(path.removesuffix(".processor")).to_q.in_features
            processor = IPAdapterAttnProcessor2_0(dim, 24, num_tokens=(2,))
        processors[path] = processor
    unet.set_attn_processor(dict(processors))
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, 24, 2)])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    filled(unet)
    bus, noise = HiddenStateBus(16, (2,)), torch.randn(1, 4, 32, 4, 4)

    def run(frames: int, image: float) -> Tensor:
        x, context = noise[:, :, :: 32 // frames], reference["context"].repeat_interleave(frames,
                                                                                          dim=0)
        added = {"image_embeds": [torch.full((1, 1, 8), image)]}
        return unet(x, 500, context, added_cond_kwargs=added).sample

    plain, outputs = run(16, 1.0), {}
    with diffusers_bus.on_bus(unet) as seat:
        for image in (1.0, -1.0):
            for s in (0, 1):
                seat.stage = bus.stage(s)
                outputs[s, image] = run(16 * 2**s, image)
    assert torch.equal(plain, outputs[0, 1.0])
    assert not torch.allclose(outputs[1, 1.0], outputs[1, -1.0], atol=1e-3)
    assert unet.attn_processors == processors


def test_frames_come_as_the_pipeline_gives_them(reference):
    whole = read(GOLDEN / "golden_animatediff_pipeline.safetensors")
    from diffusers import AutoencoderKL

    config = whole.json("config")
    vae = filled(AutoencoderKL.from_config(config["vae"]))
    pipeline = animatediff(unet_of(whole, config["unet"]), vae, config["scheduler"])
    embeds = {"prompt_embeds": whole["context"], "negative_prompt_embeds": whole["uncond"], **SIZE}
    run = diffusers_bus.smooth(pipeline, 32)
    pictures = run(**embeds)
    assert [len(output.frames[0]) for output in pictures] == [16,
                                                              32] and pictures[1].frames[0][
        0].size == (32, 32)
    assert [output.frames.shape for output in run(**embeds, output_type="np")] == [(1, f, 32, 32, 3)
                                                                                   for f in (16,
                                                                                             32)]


def test_what_does_not_fit_is_refused(pipeline, reference):
    for frames, fitting in ((48, "use one of 16, 32, 64, 128"),
                            (8, "is not 16 key frames doubled")):
        with pytest.raises(ValueError, match=fitting):
            diffusers_bus.smooth(pipeline, frames)
    with pytest.raises(ValueError, match="num_frames=16; give it to smooth"):
        diffusers_bus.smooth(pipeline, 32)(num_frames=16)
    with pytest.raises(ValueError, match="return_dict=False; leave it out"):
        diffusers_bus.smooth(pipeline, 32)(return_dict=False)
    pipeline.enable_free_init()
    with pytest.raises(ValueError, match="FreeInit would mix the stages' noise"):
        diffusers_bus.smooth(pipeline, 32)()
    pipeline.disable_free_init()
    with torch.device("meta"):
        other = UNet2DConditionModel()
    with pytest.raises(ValueError,
                       match="UNet2DConditionModel is none of"), diffusers_bus.on_bus(other):
        pass
    with pytest.raises(ValueError, match="NoneType is none of UNet"):
        diffusers_bus.smooth(None)


def test_the_readmes_lines_run(monkeypatch, tmp_path):
    """As they stand, on a small Stable Video Diffusion of random weights in place of the published
    one."""
    root = Path(__file__).parent.parent
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    (lines,) = (block for block in blocks if "diffusers_bus" in block)
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), num_attention_heads=(2, 4), layers_per_block=1, num_frames=14,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32, addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=37))
    vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 2,
                                       block_out_channels=(32, 32))
    small = svd(unet, vae, vision)
    kind, plain = type(small), type(small).__call__
    size = {"height": 16, "width": 16, "num_inference_steps": 1}
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: small)
    monkeypatch.setattr(kind, "to", lambda pipeline, *_, **__: pipeline)  # no GPU here
    monkeypatch.setattr(kind, "__call__", lambda *args, **more: plain(*args, **size, **more))
    written = []
    monkeypatch.setattr("diffusers.utils.export_to_video",
                        lambda frames, path, fps: written.append((len(frames), path, fps)))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "first.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "README.md", "exec"), {})
    assert written == [(56, "smooth.mp4", 28)]
