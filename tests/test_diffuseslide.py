"""DiffuseSlide's parts against their formulas, and what the network is asked."""

from math import sqrt

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.cascade import Cascade
from zerosmooth.extensions import METHODS, diffuseslide
from zerosmooth.extensions.diffuseslide import (
    calls,
    first_step,
    level,
    noised_back,
    repeated,
    sample_diffuseslide,
    spherical,
    windows,
)
from zerosmooth.families import FAMILIES
from zerosmooth.samplers import DDIMConfig, EulerConfig

from .conftest import FRAMES, subject, tiny_pipeline

EULER, DDIM = EulerConfig().sampler(25, 0.0), DDIMConfig().sampler(25, 0.0)


def test_whole_frames_turn_evenly_and_the_tail_is_the_last_key_frame():
    a, b = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    b = 2 * b  # not of one length
    out = spherical(4, torch.stack([a, b])[None])[0]
    cos = (a * b).sum() / a.norm() / b.norm()
    angle = cos.acos()
    for j in (1, 2, 3):
        low, high = ((share * angle).sin() / angle.sin() for share in (1 - j / 4, j / 4))
        assert_close(out[j], low * a + high * b)
        unit = spherical(4, torch.stack([a / a.norm(), b / b.norm()])[None])[0][j]
        assert_close(unit.norm(), torch.ones(()))  # on the sphere, unlike a line
        assert_close((unit * a).sum() / a.norm(), (angle * j / 4).cos())
    assert torch.equal(out[0], a) and all(torch.equal(frame, b) for frame in out[4:])


def test_frames_that_are_equal_stay():
    y = torch.randn(1, 1, 3, 2, 4).expand(-1, 3, -1, -1, -1)
    assert_close(spherical(2, y), y[:, :1].expand(-1, 6, -1, -1, -1))


def test_windows_are_those_of_the_authors_code():
    """14 frames, stride 2 at 2x and 8 at 4x, whose last window is shorter."""
    assert windows(14, 2) == [(i, i + 14) for i in range(0, 15, 2)]
    assert windows(14, 4) == [*((i, i + 14) for i in range(0, 41, 8)), (44, 56)]


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("key_frames", [2, 3, 5, 8, 14, 16, 25])
def test_windows_cover_all_frames(key_frames, n):
    spans = windows(key_frames, n)
    assert {i for span in spans for i in range(*span)} == set(range(n * key_frames))
    assert all(0 < end - start <= key_frames for start, end in spans)


def test_longer_videos_begin_where_svd_does_at_step_17():
    assert first_step(EULER) == 17 and repeated(EULER) == range(17, 20)
    assert level(EULER, 17)[1] == pytest.approx(1.273, abs=1e-3)
    alpha, sigma = level(DDIM, first_step(DDIM))
    assert sigma / alpha == pytest.approx(1.2732, rel=0.15)
    assert repeated(EulerConfig().sampler(1, 0.0)) == range(0)


def test_noise_is_put_back_to_the_level_of_the_step_before():
    x, e = torch.randn(2, 64)
    s = EULER.sigmas
    assert_close(noised_back(EULER, 17, x, e), x + sqrt(s[17] ** 2 - s[18] ** 2) * e)
    data = torch.full((200_000,), 3.0)
    i = first_step(DDIM)
    before, e = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    back = noised_back(DDIM, i, DDIM.noised(i + 1, data, before), e)
    alpha, sigma = level(DDIM, i)
    assert back.mean().item() == pytest.approx(3 * alpha, abs=0.01)
    assert back.std().item() == pytest.approx(sigma, abs=0.01)


def run(again: int, sampler=EULER, scales=(2, 2), key_frames=14):
    """Every call of a network that answers a constant, and the videos of all stages."""
    asked = []

    def network(step, index, x, stage):
        asked.append((step, index, x.shape[1], stage))
        return 0.1 * torch.ones_like(x)

    def noise(step):
        drawn.append(step)
        generator = torch.Generator().manual_seed(step + 10)
        frames = key_frames * 2 ** len(scales)
        return torch.randn(1, frames, 2, 3, 3, generator=generator)

    drawn: list[int] = []
    cascade = Cascade(key_frames, scales)
    xs = sample_diffuseslide(network, sampler, cascade, noise, None, again=again)
    return asked, drawn, xs, calls(sampler, cascade, again)


@pytest.mark.parametrize("again", [0, 5])
def test_the_network_runs_as_often_as_the_formula_says(again):
    asked, drawn, xs, count = run(again)
    steps = 8 + 3 * again  # of 25, the last 8, the first 3 of them again
    assert len(asked) == count == 25 + steps * (8 + 7)
    assert [len(x[0]) for x in xs] == [14, 28, 56]
    of_step = [sum(step == i and index == 1 for step, index, *_ in asked) for i in range(25)]
    assert of_step == [0] * 17 + [8 * (1 + again)] * 3 + [8] * 5
    assert {frames for _, _, frames, _ in asked} == {12, 14}
    assert all(stage is None for *_, stage in asked)
    per_stage = [step for step in drawn if step >= 25]
    assert per_stage == [*range(25, 26 + 3 * again)] * 2  # one draw for each noise, never the same


def test_methods_differ_in_what_is_put_back():
    runs = {name: METHODS[name].slides(EULER, Cascade(14, (2, 2))) for name in ("diffuseslide",
                                                                             "sdedit")}
    assert runs == {"diffuseslide": 25 + 23 * 15, "sdedit": 25 + 8 * 15}


def test_a_step_averages_windows_and_pulls_key_frames(monkeypatch):
    """One step of one stage by hand, with a network that answers its window's number."""
    key_frames, i = 14, 24
    monkeypatch.setattr(diffuseslide, "first_step", lambda sampler: i)  # the last step alone
    numbers, seen = iter(range(100)), []

    def network(step, index, x, stage):
        return torch.full_like(x, 0.5)

    def see(x0, at):
        seen.append((x0, at))
        return [lambda step, index, x, stage, n=next(numbers): torch.full_like(x, n) for _ in at]

    def noise(step):
        return torch.randn(1, 28, 2, 3, 3, generator=torch.Generator().manual_seed(step + 10))

    base, x = sample_diffuseslide(network, EULER, Cascade(key_frames, (2,)), noise, None, see=see)
    (x0, at), = seen
    assert_close(x0, spherical(2, base)) and at == list(range(0, 15, 2))
    output = torch.zeros(28)
    for f in range(28):
        of = [n for n, start in enumerate(at) if start <= f < start + key_frames]
        output[f] = sum(of) / len(of)
    begun = x0 + EULER.sigmas[i] * noise(25)
    x0 = EULER.x0(i, begun, output.view(1, -1, 1, 1, 1).expand_as(begun))
    x0[:, ::2] = x0[:, ::2] + 0.0775 * (base - x0[:, ::2])
    assert_close(x, EULER.step(i, begun, x0, None))


def test_a_window_is_shown_its_own_first_frame_and_told_less_motion(monkeypatch):
    torch.manual_seed(0)
    pipeline = tiny_pipeline("svd")
    shown, told = [], []
    branches = pipeline.family.branches
    condition = pipeline.family.condition

    def look(networks, inputs, settings):
        shown.append(inputs.pixels)
        return branches(networks, inputs, settings)

    def hear(config, fps, settings):
        told.append((fps, settings.motion_bucket_id))
        return condition(config, fps, settings)

    monkeypatch.setattr(pipeline.family, "branches", look)
    monkeypatch.setattr(pipeline.family, "condition", hear)
    (video,) = pipeline.sample(**subject(pipeline), scale=2, steps=2, method="sdedit",
                               motion_bucket_id=128)
    assert told == [(7, 128), (7, 64)]
    spans = windows(FRAMES, 2)
    assert len(shown) == 1 + len(spans)
    frames = pipeline.decode(spherical(2, video.latents[0][None])[0],
                             video.settings.decode_chunk_size)
    for (start, _), pixels in zip(spans, shown[1:]):
        assert_close(pixels[0].permute(1, 2, 0), frames[start] / 127.5 - 1)


def test_prompts_are_told_the_frame_rate(monkeypatch):
    told = []
    family = FAMILIES["vc2"]
    pipeline = tiny_pipeline("vc2")
    condition = family.condition
    monkeypatch.setattr(family, "condition", lambda config, fps, settings: (
        told.append(fps), condition(config, fps, settings))[1])
    done = []
    pipeline.sample("x", scale=2, steps=3, method="diffuseslide",
                    progress=lambda made, of: done.append((made, of)))
    assert told == [8, 16]
    assert done == [(i + 1, len(done)) for i in range(len(done))]


def test_a_base_video_is_that_of_every_method(any_pipeline):
    video, other = (any_pipeline.sample(**subject(any_pipeline), seeds=1, steps=3, scale=2,
                                        method=method)[0] for method in ("diffuseslide", "direct"))
    assert torch.equal(video.latents[0], other.latents[0])
    assert video.latents[1].isfinite().all()


def test_it_is_the_same_in_a_batch():
    pipeline = tiny_pipeline("svd")
    both = pipeline.sample(**subject(pipeline, 2), seeds=[1, 2], steps=3, scale=2,
                           method="diffuseslide")
    (alone,) = pipeline.sample(subject(pipeline, 2)["subjects"][1], seeds=2, steps=3, scale=2,
                               method="diffuseslide")
    assert_close(both[1].latents[1], alone.latents[1], rtol=0, atol=1e-3)
