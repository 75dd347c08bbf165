"""What must hold of every family's pipeline, from prompt or image to frames."""

import copy

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.config import Defaults, Sampling
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.pipeline import Pipeline, Subject
from zerosmooth.settings import Running

from .conftest import FRAMES, SIZE, TINY_FAMILIES, subject, tiny_pipeline


def test_frames_of_every_stage(any_pipeline):
    (video,) = any_pipeline.sample(**subject(any_pipeline), scale=4, steps=2)
    fps = any_pipeline.config.defaults.fps
    assert [tuple(x.shape) for x in video.frames] == [(FRAMES * n, 16, 24, 3) for n in (1, 2, 4)]
    assert video.fps == [fps, 2 * fps, 4 * fps] and all(x.dtype == torch.uint8
                                                        for x in video.frames)


@pytest.mark.parametrize("setting", [{"sequential_guidance": True},
                                     {"offload": True, "frame_chunk": 3}])
def test_memory_settings_change_nothing(any_pipeline, setting):
    plain, other = (any_pipeline.sample(**subject(any_pipeline, 2), seeds=[1, 2], running=running,
                                        scale=2, steps=2)
                    for running in (Running(), Running(**setting)))
    for a, b in zip(plain, other):
        for x, y in zip(a.latents, b.latents):  # sums run in another order in another batch
            assert_close(x, y, rtol=0, atol=2e-3 * x.abs().max().item())


def test_one_seed_gives_the_same_base_video_at_every_scale_and_in_every_batch(any_pipeline):
    settings = dict(steps=2, seeds=4)
    (alone,) = any_pipeline.sample(**subject(any_pipeline), scale=1, **settings)
    (longer,) = any_pipeline.sample(**subject(any_pipeline), scale=2, **settings)
    assert torch.equal(alone.latents[0], longer.latents[0])
    both = any_pipeline.sample(**subject(any_pipeline, 2), scale=2, **settings)
    for x, y in zip(both[0].latents, longer.latents):
        assert_close(x, y, rtol=0, atol=2e-3 * y.abs().max().item())


def test_guidance_rescale_gives_back_the_conditional_deviation():
    """Wholly at 1, by half at 0.5, of each video by itself; at 0 nothing changes, bitwise."""

    class Toy(torch.nn.Module):
        def project_context(self, context):
            return context

        def forward(self, x, timestep, context, condition, stage):
            return x * context.view(-1, 1, 1, 1, 1)

    x = torch.randn(2, 5, 4, 3, 3,
                    generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]).view(2,
                                                                                                1,
                                                                                                1,
                                                                                                1,
                                                                                                1)
    branches = [Branch(torch.full((2, 1, 1), c)) for c in (1.0, 0.5)]
    plain, none, half, whole = (
        Guidance(Toy(), branches, Sampling(guidance_scale=5.0, **more))(x, 0.0, None, None)
        for more in ({}, *({"guidance_rescale": r} for r in (0.0, 0.5, 1.0)))
    )
    assert torch.equal(plain, none)
    for y, times in ((plain, 3), (half, 2), (whole, 1)):
        assert_close(y, times * x)
    with pytest.raises(ValueError, match="guidance_rescale=1.5; use 0 to 1"):
        Defaults(guidance_rescale=1.5)


@pytest.fixture
def svd() -> Pipeline:
    torch.manual_seed(0)
    return tiny_pipeline("svd")


def test_prompts_and_images_are_not_mixed_up(svd, pipeline):
    for call in (lambda: svd.sample("a test"), lambda: svd.sample(), lambda: pipeline.sample(
            **subject(svd))):
        with pytest.raises(ValueError, match="this checkpoint makes videos from"):
            call()


def test_guidance_grows_over_the_frames_of_every_stage():
    """The first frame is the conditional branch alone, the last one guided at full scale; alike at
    any length."""

    class Toy(torch.nn.Module):
        def project_context(self, context):
            return context

        def forward(self, x, timestep, context, condition, stage):
            return context.mean((1, 2)).view(-1, 1, 1, 1, 1).expand_as(x)

    branches = [Branch(torch.full((1, 1, 2), 3.0)), Branch(torch.full((1, 1, 2), 1.0))]
    guided = Guidance(Toy(), branches, Sampling(guidance_scale=5.0, first_guidance_scale=1.0))
    for frames in (4, 7, 14):
        y = guided(torch.zeros(1, frames, 4, 2, 2), 0.0, None, None)[0, :, 0, 0, 0]
        assert_close(y, 1 + torch.linspace(1, 5, frames) * 2)


def test_the_conditions_of_image_to_video_have_an_effect(svd):
    def latents(**settings):
        (video,) = svd.sample(**{**subject(svd), **settings}, scale=1, steps=2)
        return video.latents[0]

    plain = latents()
    other = [torch.zeros(20, 40, 3, dtype=torch.uint8)]
    for change in (dict(motion_bucket_id=20), dict(fps=20), dict(noise_aug_strength=0.3),
                   dict(subjects=other), dict(guidance_scale=9.0), dict(resize="stretch")):
        assert not torch.allclose(latents(**change), plain, atol=1e-4), change
    assert torch.equal(latents(), plain)


def test_the_reference_image_is_the_same_in_all_stages(svd, monkeypatch):
    """Its latents behind the noisy ones, in every frame of every stage, and zeros in the
    unconditional branch."""
    seen = []
    forward = svd.networks.unet.forward
    monkeypatch.setattr(svd.networks.unet,
                        "forward", lambda x, *rest: (seen.append(x[:, :, 4:]),
                                                     forward(x, *rest))[1])
    svd.sample(**subject(svd), scale=2, steps=2)
    assert all(torch.equal(x[0], seen[0][0, :1].expand_as(x[0])) and not x[1].any() for x in seen)
    assert {x.shape[1] for x in seen} == {FRAMES, 2 * FRAMES}


def test_the_autoencoder_of_image_to_video_stays_in_float32(svd):
    state = copy.deepcopy(svd.networks).cast(torch.bfloat16).state_dict()
    assert {x.dtype for name, x in state.items() if name.startswith("vae.")} == {torch.float32}
    assert {x.dtype for name, x in state.items()
            if not name.startswith("vae.")} == {torch.bfloat16}


def test_half_precision_runs(any_pipeline):
    """bfloat16, which the CPU has too; the result is that of float32, roughly."""
    half = Pipeline(any_pipeline.family, any_pipeline.config,
                    copy.deepcopy(any_pipeline.networks).cast(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    settings = dict(scale=2, steps=2, guidance_scale=1.5, seeds=1)
    (a,), (b,) = (p.sample(**subject(p), **settings) for p in (any_pipeline, half))
    error = (a.latents[-1] - b.latents[-1]).std() / a.latents[-1].std()
    assert error < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_in_float16_with_all_that_saves_memory(any_pipeline):
    on_card = Pipeline(any_pipeline.family, any_pipeline.config,
                       copy.deepcopy(any_pipeline.networks).cast(torch.float16).to("cuda"))
    plain, saving = (on_card.sample(**subject(on_card), scale=2, steps=2, guidance_scale=1.5,
                                    seeds=1, running=running)
                     for running in (Running(),
                                     Running(offload=True, sequential_guidance=True,
                                             frame_chunk=3)))
    (reference,) = any_pipeline.sample(**subject(on_card), scale=2, steps=2, guidance_scale=1.5,
                                       seeds=1)
    for video in (plain[0], saving[0]):
        error = (video.latents[-1] - reference.latents[-1]).std() / reference.latents[-1].std()
        assert error < 0.05


def test_what_is_no_image_or_does_not_fit_is_refused(svd, pipeline):
    good = torch.zeros(20, 20, 3, dtype=torch.uint8)
    for images in ([], [good.float()], [good[..., :1]], [good[0]]):
        with pytest.raises(ValueError):
            svd.sample(images, steps=1)
    for image in (good, good.numpy()):
        svd.sample(Subject(image=image), steps=1, key_frames=2, scale=1)
    for size in (-1, 0):
        for p in (svd, pipeline):
            with pytest.raises(ValueError, match="use 1 to 1048576"):
                p.sample(**subject(p), decode_chunk_size=size)
    with pytest.raises(ValueError, match="use 1 to 1048576"):
        Running(frame_chunk=0)
    with pytest.raises(ValueError,
                       match="negative_prompt does nothing to svd, which makes videos from images"):
        svd.sample(good, negative_prompt="x")
    with pytest.raises(ValueError, match="motion_bucket_id does nothing to vc2, which makes"):
        pipeline.sample("x", motion_bucket_id=3)


def test_chunks_of_a_temporal_decoder_show_no_seam():
    """Against frames decoded at once, and against chunks that are only set beside each other."""
    torch.manual_seed(0)
    vae = Autoencoder(TINY_FAMILIES["svd"].vae).eval().requires_grad_(False)
    torch.nn.init.normal_(vae.decoder.temporal_conv.weight, std=0.3)
    start, drift = torch.randn(1, 4, 8, 12), torch.randn(1, 4, 8, 12)
    z = start + torch.linspace(0, 1, 40)[:, None, None, None] * drift
    whole = vae.decode(z)
    assert torch.equal(vae.decode(z, 40), whole) and torch.equal(vae.decode(z, 99), whole)
    assert vae.decode(z, 2).shape == whole.shape == vae.decode(z, 1).shape

    def roughness(x):  # a seam is a jump that its neighbours do not share
        return (x[2:] - 2 * x[1:-1] + x[:-2]).square().mean((1, 2, 3)).sqrt()[2:-2].max()

    beside = torch.cat([vae.decode(part) for part in z.split(16)])
    assert roughness(vae.decode(z, 16)) < roughness(beside) / 10
    assert roughness(vae.decode(z, 8)) < roughness(beside) / 4
    assert roughness(vae.decode(z, 4)) < roughness(beside) / 2  # here a seam begins to show


def test_frames_of_a_plain_autoencoder_do_not_depend_on_the_chunk(pipeline):
    z = torch.randn(10, 4, 4, 4)
    assert_close(pipeline.networks.vae.decode(z, 3), pipeline.networks.vae.decode(z), rtol=0,
                 atol=1e-5)


def test_sizes_of_the_tiny_networks_are_what_the_tests_take_them_for():
    assert all(c.unet.channels == SIZE["channels"] and c.unet.frames == FRAMES
               for c in TINY_FAMILIES.values())
