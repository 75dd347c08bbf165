"""What must hold of noise, stages and strength, and of `zerosmooth.extensions`."""

import copy

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.bus import BusError, Correction
from zerosmooth.cascade import Cascade, by_stage, cascade_step, nested_noise, sample_cascade
from zerosmooth.extensions import METHODS
from zerosmooth.extensions.color import match_color
from zerosmooth.extensions.ddnm import sample_ddnm
from zerosmooth.extensions.freenoise import repeated_noise
from zerosmooth.extensions.predictions import anchored, lines, sample_late
from zerosmooth.extensions.reuse import DeepCache, reusing
from zerosmooth.families import FAMILIES
from zerosmooth.fields import UserError
from zerosmooth.offload import Memory
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.settings import PRESETS, Running, Settings

from .conftest import FRAMES, latents, subject, tiny_pipeline

SHAPE = (4, 2, 3)
TWO = [latents(FRAMES), latents(2 * FRAMES)]


# --- noise


@pytest.mark.parametrize("scales", [(), (2,), (2, 3), (2, 2, 2)])
def test_key_frames_have_the_same_noise_in_all_stages_and_at_all_scales(scales):
    stages = by_stage(nested_noise(SHAPE, 4, scales, seed=5, step=7)[None], scales)
    for s, x in enumerate(stages):
        assert torch.equal(x, nested_noise(SHAPE, 4, scales[:s], seed=5, step=7)[None])


def test_noise_is_standard_normal_and_new_at_every_seed_and_step():
    x = nested_noise((4, 16, 16), 8, (2, 2), seed=0, step=-1)
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02  # 32,768 numbers
    assert (torch.corrcoef(x.flatten(1)) - torch.eye(32)).abs().max() < 0.2  # of frames
    for other in (dict(seed=1, step=-1), dict(seed=0, step=0)):
        assert not torch.equal(nested_noise((4, 16, 16), 8, (2, 2), **other), x)


# --- the cascade


def test_strength_follows_eq_24():
    assert Cascade().strength_at(1.0) == 0.8 and Cascade().strength_at(0.5) == 0.4
    assert Cascade(strength_schedule="constant", strength=0.7).strength_at(0.1) == 0.7


def test_one_seed_gives_the_same_base_video_at_every_scale(pipeline):
    base = [pipeline.sample("x", seeds=3, scale=n, steps=2)[0].latents[0] for n in (1, 2, 4)]
    assert all(torch.equal(x, base[0]) for x in base)


def test_two_prompts_at_once_equal_two_single_ones(pipeline):
    for video in pipeline.sample(["a", "b"], seeds=[1, 2], scale=2, steps=2):
        (alone,) = pipeline.sample(video.prompt, seeds=video.seed, scale=2, steps=2)
        for x, y in zip(video.latents, alone.latents):  # sums run in another order in a batch
            assert_close(x, y, rtol=0, atol=1e-3)


def test_without_a_bus_every_stage_is_the_plain_network(ask):
    outputs = cascade_step(lambda s, x, stage: ask(x, stage), TWO, None, 0, 0.0)
    assert all(torch.equal(y, ask(x)) for x, y in zip(TWO, outputs))


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_a_step_that_fails_leaves_nothing_on_the_bus(ask, error):
    def fails(s, x, stage):
        if s == 1:
            raise error("here")
        return ask(x, stage)

    bus = Cascade(FRAMES, (2,)).bus()
    with pytest.raises(error, match="here"):
        cascade_step(fails, TWO, bus, 0, 0.8)
    assert bus.held_bytes == 0
    cascade_step(lambda s, x, stage: ask(x, stage), TWO, bus, 0, 0.8)  # the next one runs


def test_stages_that_do_not_fit_the_bus_are_an_error(ask):
    bus = Cascade(FRAMES, (2,)).bus()
    with pytest.raises(BusError, match="stage 0 published nothing"):
        cascade_step(lambda s, x, stage: ask(x, stage if s else None), TWO, bus, 0, 0.8)
    with pytest.raises(ValueError, match="1 stages on a bus of 2"):
        cascade_step(lambda s, x, stage: ask(x, stage), TWO[:1], bus, 0, 0.8)


@pytest.mark.parametrize("asked", [
    dict(scale=3), dict(method="magic"), dict(strength=2.0), dict(method="direct", overlap=1),
    dict(method="windowed", strength=0.5), dict(method="freenoise", color_correction=True),
    dict(method="freenoise", eta=1.0), dict(preset="anchored", strength=1.0), dict(preset="magic"),
    dict(key_frames=FRAMES + 1), dict(height=18), dict(steps=0), dict(scale=1, join=0.5),
    dict(method="direct", reuse=2), dict(reuse=0), dict(scales=(2,))])
def test_settings_that_make_no_sense_are_refused(pipeline, asked):
    with pytest.raises(UserError):
        pipeline.settings(**asked)


def test_numbers_that_are_not_finite_stop_the_run():
    torch.manual_seed(0)
    broken = tiny_pipeline("vc2")
    broken.networks.unet.conv_out.bias[0] = float("inf")
    text = "step 1 of 2 made NaN or infinity in stage 0 at torch.float32; try dtype"
    with pytest.raises(NonFiniteError, match=text):
        broken.sample("x", scale=2, steps=2)


def test_half_precision_is_near_single(pipeline):
    networks = copy.deepcopy(pipeline.networks).to(torch.bfloat16)
    half = Pipeline(pipeline.family, pipeline.config, networks)
    a, b = (p.sample("x", scale=2, steps=2, guidance_scale=1.0)[0].latents[1]
            for p in (pipeline, half))
    assert (a - b).abs().mean() < 0.05 * a.std()  # bfloat16 has 8 bits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_offloaded_states_change_nothing_on_cuda(pipeline):
    networks = copy.deepcopy(pipeline.networks).to("cuda", torch.float16)
    on_gpu = Pipeline(pipeline.family, pipeline.config, networks)
    a, b = (on_gpu.sample("x", scale=2, running=Running(offload=o), steps=2)[0].latents[1]
            for o in (False, True))
    assert torch.equal(a, b)


# --- baselines


class Plain:
    """A sampler of networks that predict the data: the next x is the data."""

    stochastic = False

    def __len__(self):
        return 3

    def share(self, i):
        return 1.0

    def start(self, noise):
        return noise

    def network_input(self, i, x):
        return x

    def x0(self, i, x, output):
        return output

    def step(self, i, x, x0, noise):
        return x0


def test_ddnm_hands_on_the_key_frames_data():
    def network(step, index, x, stage):
        return x * 0.5 + torch.arange(x.shape[1])[:, None, None, None]

    given = (network, Plain(), Cascade(4, (2, 3), strength=0.0), lambda step: latents(24), None)
    xs, plain = sample_ddnm(*given), sample_cascade(*given)
    assert torch.equal(xs[1][:, ::2], xs[0]) and torch.equal(xs[2][:, ::6], xs[0])
    assert not torch.allclose(xs[2][:, ::3], xs[1])  # stage 2 knows stage 0 alone
    assert torch.equal(plain[0], xs[0]) and not torch.allclose(plain[1][:, ::2], xs[0])


@pytest.mark.parametrize("window,stride,frames", [(14, 7, 56), (25, 13, 100), (4, 1, 9)])
def test_repeated_noise_is_the_first_windows_shuffled(window, stride, frames):
    x = latents(window)
    y = repeated_noise(x, frames, stride)
    assert y.shape[1] == frames and torch.equal(y[:, :window], x)
    found = [next(i for i in range(window) if torch.equal(x[0, i], frame)) for frame in y[0]]
    for start in range(0, frames - window + 1, stride):  # every window has each frame's noise once
        assert sorted(found[start : start + window]) == list(range(window))
    assert found[window : 2 * window] != list(range(window)) or stride == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_all_stages_from_one_base_video(pipeline, method):
    settings = dict(seeds=3, steps=2, eta=0.0)
    (base,) = pipeline.sample("x", scale=1, **settings)
    (video,) = pipeline.sample("x", scale=4, method=method, **settings)
    assert torch.equal(video.latents[0], base.latents[0])
    assert [len(x) for x in video.frames] == [FRAMES, 2 * FRAMES, 4 * FRAMES]


def test_strength_zero_samples_what_windowed_does(pipeline):
    a, b = (pipeline.sample("x", scale=2, steps=2, **asked)[0].latents[1]
            for asked in (dict(strength=0.0), dict(method="windowed")))
    assert torch.equal(a, b)


# --- colour


def test_color_correction_gives_frames_the_statistics_of_key_frames():
    key, x = latents(4), 3 * latents(8, seed=1) + 1
    y = match_color(x, key)
    for measure in (torch.mean, torch.std):
        assert_close(measure(y, (-2, -1)), lines(2, measure(key, (-2, -1))), rtol=0, atol=1e-5)


def test_color_correction_keeps_deviations_below_one_and_flat_frames_finite():
    key, x = latents(4), 0.01 * latents(8, seed=1)
    assert_close(match_color(x, key).std((-2, -1))[:, ::2], key.std((-2, -1)), rtol=1e-3, atol=0)
    assert match_color(torch.zeros_like(x), key).isfinite().all()


def test_color_correction_changes_no_key_frame_of_the_base_video(pipeline):
    plain, colored = (pipeline.sample("x", scale=2, color_correction=c, steps=2)[0].latents
                      for c in (False, True))
    assert torch.equal(plain[0], colored[0]) and not torch.equal(plain[1], colored[1])


# --- corrected predictions, and longer videos that join late


@pytest.mark.parametrize("more", [dict(preset="anchored"), dict(preset="anchored", join=0.5),
                                  dict(preset="fast")], ids=["from the start", "late", "fast"])
def test_anchored_key_frames_are_those_of_the_base_video(any_pipeline, more):
    settings = dict(**subject(any_pipeline), seeds=3, steps=2, scale=4)
    (video,) = any_pipeline.sample(**settings, **more)
    (other,) = any_pipeline.sample(**settings, method="windowed")
    first, second, third = video.latents
    assert torch.equal(first, other.latents[0])
    assert torch.equal(second[::2], first) and torch.equal(third[::2], second)
    assert not torch.allclose(other.latents[1][::2], first)
    assert not torch.allclose(second[1::2], other.latents[1][1::2])


def test_fast_costs_two_and_a_half_times_the_first_stage_at_most():
    """In frames that the network sees, at 4x."""
    settings = Settings(steps=25, scale=4, **PRESETS["fast"][1])
    alone, cascade = settings.first_step(25), settings.cascade
    frames = sum(cascade.frames_of(s) for s in range(cascade.stages)) / cascade.key_frames
    assert (alone + (25 - alone) * frames) / 25 <= 2.5


def test_predictions_may_be_corrected_beside_hidden_states(pipeline):
    paper, both, preset = (
        pipeline.sample("x", seeds=3, steps=2, scale=2, **asked)[0].latents[1]
        for asked in ({}, dict(prediction="lines"), dict(preset="anchored")))
    assert torch.equal(both[::2], preset[::2]) and not torch.allclose(both[1::2], preset[1::2])
    assert not torch.allclose(paper, both)


def test_frames_between_are_corrected_along_lines():
    x, y = latents(8), latents(4, seed=1)
    (key, got) = anchored((2,), lines)(0, [y, x])
    assert torch.equal(key, y) and torch.equal(got[:, ::2], y)
    assert_close(got[:, 1::2], (x + lines(2, y - x[:, ::2]))[:, 1::2])


def test_what_joins_lies_between_key_frames_and_is_noised_to_its_step():
    seen, sampler = {}, FAMILIES["vc2"].config.sampler.sampler(2, 0.0)

    def network(step, index, x, stage):
        seen[step, index] = x
        return torch.zeros_like(x)  # no noise: the data are x / alpha

    noise = latents(8)
    sample_late(network, sampler, Cascade(4, (2,)), lambda step: noise, None, anchored((2,), lines),
                first=1, lift=lines)
    assert (0, 1) not in seen
    data = lines(2, seen[0, 0] / float(sampler.alpha[0]))
    expected = float(sampler.alpha[1]) * data + float(sampler.sigma[1]) * noise
    assert_close(seen[1, 1][:, 1::2], expected[:, 1::2])
    assert torch.equal(seen[1, 1][:, ::2], seen[1, 0])


# --- deep features that are reused


def test_deep_features_are_reused_and_free_what_they_replace():
    memory, ran = Memory(None), []
    cache = DeepCache(2, memory)
    bus = Cascade(4, (2,)).bus()
    for step in range(5):
        got = [cache(lambda h: ran.append(step) or h + step, bus.stage(s, step), torch.zeros(3))
               for s in (0, 1)]
        assert all((x == step // 2 * 2).all() for x in got)
        assert memory.held_bytes == 2 * 12 and memory.peak_bytes == 2 * 12
    assert ran == [0, 0, 2, 2, 4, 4]


def test_a_network_whose_deep_features_are_kept_still_sees_what_is_new(unet, ask):
    memory, bus = Memory(None), Cascade(FRAMES, (2,), correction=Correction(kv_operator="S")).bus()

    def step(i, shift=0.0):
        xs = [x + shift for x in TWO]
        return cascade_step(lambda s, x, stage: ask(x, stage), xs, bus, i, 0.7)

    plain = step(0)
    with reusing(unet, 3, memory):
        first, second, moved = step(0), step(1), step(2, 1.0)
    for got in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(got, plain))
    assert all(not torch.allclose(a, b) for a, b in zip(moved, plain))
    assert all(torch.equal(a, b) for a, b in zip(step(1), plain)) and memory.held_bytes > 0


def test_deep_features_need_a_network_that_offers_them():
    with pytest.raises(UserError, match="has no around_deep"), reusing(object(), 2, Memory(None)):
        pass


@pytest.mark.parametrize("running", [Running(sequential_guidance=True), Running(frame_chunk=1)])
def test_deep_features_are_reused_alike_in_every_way_of_running(any_pipeline, running):
    settings = dict(**subject(any_pipeline), seeds=3, steps=2, scale=2)
    plain, reused, other = (
        any_pipeline.sample(**settings, **more)[0].latents
        for more in ({}, dict(reuse=2), dict(reuse=2, running=running)))
    assert not torch.allclose(plain[0], reused[0])
    for x, y in zip(reused, other):  # sums run in another order
        assert_close(x, y, rtol=0, atol=1e-3 * float(x.std()))
