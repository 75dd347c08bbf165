"""What must hold of noise, stages, strength and colour."""

import copy

import pytest
import torch
from torch.testing import assert_close

from zerosmooth.bus import BusError, Correction, HiddenStateBus
from zerosmooth.cascade import (
    METHODS,
    Cascade,
    by_stage,
    cascade_step,
    match_color,
    nested_noise,
    repeated_noise,
    sample_cascade,
)
from zerosmooth.families import FAMILIES
from zerosmooth.offload import Memory, Waiting
from zerosmooth.operators import Interpolated
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.settings import Running

from .conftest import FRAMES, latents, subject, tiny_pipeline

SHAPE = (4, 2, 3)


@pytest.mark.parametrize("scales", [(), (2,), (2, 2), (3,), (2, 3), (2, 2, 2)])
@pytest.mark.parametrize("step", [-1, 0, 7])
def test_key_frames_have_the_same_noise_in_all_stages(scales, step):
    stages = by_stage(nested_noise(SHAPE, 4, scales, seed=5, step=step)[None], scales)
    for s in range(len(scales) + 1):
        alone = nested_noise(SHAPE, 4, scales[:s], seed=5, step=step)[None]
        assert torch.equal(stages[s], alone)
        if s:
            assert torch.equal(stages[s][:, :: scales[s - 1]], stages[s - 1])


def test_noise_is_standard_normal_and_new_at_every_seed_and_step():
    x = nested_noise((4, 16, 16), 16, (2, 2), seed=0, step=-1)
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01  # 65,536 numbers
    correlation = torch.corrcoef(x.flatten(1))
    assert (correlation - torch.eye(64)).abs().max() < 0.2  # frames are independent: 1,024 numbers each
    for other in (dict(seed=1, step=-1), dict(seed=0, step=0)):
        assert not torch.equal(nested_noise((4, 16, 16), 16, (2, 2), **other), x)


def test_one_seed_gives_the_same_base_video_at_every_scale(pipeline):
    base = [pipeline.sample("x", seeds=3, scales=scales, steps=3)[0].latents[0] for scales in ((), (2,), (2, 2), (3,))]
    assert all(torch.equal(x, base[0]) for x in base)


def test_two_prompts_at_once_equal_two_single_ones(pipeline):
    both = pipeline.sample(["a", "b"], seeds=[1, 2], scales=(2,), steps=3)
    for video in both:
        (alone,) = pipeline.sample(video.prompt, seeds=video.seed, scales=(2,), steps=3)
        for x, y in zip(video.latents, alone.latents):  # sums run in another order in a batch
            assert_close(x, y, rtol=0, atol=1e-3)


def test_strength_follows_eq_24():
    assert Cascade().strength_at(1.0) == 0.8 and Cascade().strength_at(0.5) == 0.4
    assert Cascade(strength_schedule="constant", strength=0.7).strength_at(0.1) == 0.7
    assert Cascade(method="windowed").strength_at(1.0) == 0 == Cascade(method="direct").strength_at(1.0)


def test_strength_zero_samples_what_windowed_does(pipeline):
    a, b = (
        pipeline.sample("x", scales=(2,), **setting, steps=2)[0].latents[1]
        for setting in (dict(strength=0.0), dict(method="windowed"))
    )
    assert torch.equal(a, b)


def test_direct_is_the_plain_network(ask):
    """Without a bus, each stage of a step is what the network alone makes of it, attending over all its frames."""
    assert Cascade(FRAMES, (2,), method="direct").bus() is None
    xs = [latents(FRAMES * n) for n in (1, 2)]
    outputs = cascade_step(lambda s, x, view: ask(x, view), xs, None, 0, 0.0)
    assert all(torch.equal(y, ask(x)) for x, y in zip(xs, outputs))


def test_a_step_that_fails_leaves_nothing_on_the_bus(ask):
    bus, xs = Cascade(FRAMES, (2, 2)).bus(), [latents(FRAMES * n) for n in (1, 2, 4)]
    for error in (ArithmeticError, KeyboardInterrupt):

        def fails_at_the_last_stage(s, x, view):
            if s == 2:
                raise error("here")
            return ask(x, view)

        with pytest.raises(error, match="here"):
            cascade_step(fails_at_the_last_stage, xs, bus, 0, 0.8)
        assert bus.held_bytes == 0
        assert len(cascade_step(lambda s, x, view: ask(x, view), xs, bus, 0, 0.8)) == 3  # the next step is not refused


def test_stages_that_run_other_modules_are_an_error(ask):
    bus, xs = Cascade(FRAMES, (2,)).bus(), [latents(FRAMES), latents(2 * FRAMES)]
    with pytest.raises(BusError, match="stage 0 published nothing"):
        cascade_step(lambda s, x, view: ask(x, view if s else None), xs, bus, 0, 0.8)
    with pytest.raises(ValueError, match="1 stages on a bus of 2"):
        cascade_step(lambda s, x, view: ask(x, view), xs[:1], bus, 0, 0.8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_offloaded_states_change_nothing_on_cuda(pipeline, dtype):
    on_gpu = Pipeline(pipeline.family, pipeline.config, copy.deepcopy(pipeline.networks).to("cuda", dtype))
    a, b = (on_gpu.sample("x", scales=(2,), running=Running(offload=o), steps=2)[0] for o in (False, True))
    assert torch.equal(a.latents[1], b.latents[1])


def test_color_correction_gives_key_frames_their_statistics():
    key, x = latents(4), 3 * latents(8, seed=1) + 1
    y = match_color(x, key)
    for i, (mean, deviation) in enumerate(zip(key.mean((-2, -1))[0], key.std((-2, -1))[0])):
        assert_close(y.mean((-2, -1))[0, 2 * i], mean, rtol=0, atol=1e-5)
        assert_close(y.std((-2, -1))[0, 2 * i], deviation, rtol=0, atol=1e-5)
    between = (key[:, :1].mean((-2, -1)) + key[:, 1:2].mean((-2, -1))) / 2
    assert_close(y[:, 1:2].mean((-2, -1)), between, rtol=0, atol=1e-5)


def test_color_correction_is_off_by_default_and_a_setting(pipeline):
    plain, colored = (pipeline.sample("x", scales=(2,), color_correction=c, steps=2)[0].latents for c in (False, True))
    assert torch.equal(plain[0], colored[0]) and not torch.equal(plain[1], colored[1])


def test_cascades_that_make_no_sense_are_refused(pipeline):
    for make in (
        lambda: Cascade(scales=(1,)),
        lambda: Cascade(method="magic"),
        lambda: Cascade(strength=2.0),
        lambda: Cascade(method="direct", overlap=1),
        lambda: Cascade(method="windowed", strength=0.5),
        lambda: Cascade(method="freenoise", color_correction=True),
        lambda: Cascade(method="windowed", prediction=True),
        lambda: pipeline.sample("x", preset="anchored", strength=1.0),
        lambda: pipeline.sample("x", preset="magic"),
        lambda: pipeline.sample("x", frames=FRAMES + 1),
        lambda: pipeline.sample("x", height=18),
        lambda: pipeline.sample("x", steps=0),
        lambda: pipeline.sample(["x", "y"], seeds=[1]),
    ):
        with pytest.raises(ValueError):
            make()


def test_numbers_that_are_not_finite_stop_the_run():
    torch.manual_seed(0)
    broken = tiny_pipeline("vc2")
    broken.networks.unet.conv_out.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="step 1 of 2 made NaN or infinity in stage 0 at torch.float32; try dtype"):
        broken.sample("x", scales=(2,), steps=2)


def test_half_precision_is_near_single(pipeline):
    half = Pipeline(pipeline.family, pipeline.config, copy.deepcopy(pipeline.networks).to(torch.bfloat16))
    (a,), (b,) = (p.sample("x", scales=(2,), steps=2, guidance_scale=1.0) for p in (pipeline, half))
    assert (a.latents[1] - b.latents[1]).abs().mean() < 0.05 * a.latents[1].std()  # bfloat16 has 8 bits


def test_latent_ddnm_hands_on_the_key_frames_data():
    """With a network that predicts the data itself, the data of every stage's key frames are those of stage 0."""

    class Direct:
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

    def network(step, index, x, stage):
        return x * 0.5 + torch.arange(x.shape[1])[:, None, None, None]

    cascade = Cascade(4, (2, 3), method="ddnm")
    assert cascade.strength_at(1.0) == 0
    xs = sample_cascade(network, Direct(), cascade, lambda step: latents(24))
    assert torch.equal(xs[1][:, ::2], xs[0]) and torch.equal(xs[2][:, ::6], xs[0])
    assert not torch.allclose(xs[2][:, ::3], xs[1])  # what stage 1 inserts does not bind stage 2
    plain = sample_cascade(network, Direct(), Cascade(4, (2, 3), method="windowed"), lambda step: latents(24))
    assert torch.equal(plain[0], xs[0]) and not torch.allclose(plain[1][:, ::2], xs[0])


@pytest.mark.parametrize("window,stride,frames", [(16, 8, 64), (14, 7, 56), (25, 13, 100), (8, 4, 16), (4, 1, 9)])
def test_repeated_noise_is_the_first_windows_shuffled(window, stride, frames):
    x = latents(window)
    y = repeated_noise(x, frames, stride)
    assert y.shape[1] == frames and torch.equal(y[:, :window], x)
    found = [next(i for i in range(window) if torch.equal(x[0, i], frame)) for frame in y[0]]
    for start in range(0, frames - window + 1, stride):  # every window has each frame's noise once
        assert sorted(found[start : start + window]) == list(range(window))
    assert torch.equal(repeated_noise(x, frames, stride), y)
    assert found[window : 2 * window] != list(range(window)) or stride == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_all_stages_from_one_base_video(pipeline, method):
    settings = dict(seeds=3, steps=3, eta=0.0)
    (base,) = pipeline.sample("x", scales=(), **settings)
    (video,) = pipeline.sample("x", scales=(2, 2), method=method, **settings)
    assert torch.equal(video.latents[0], base.latents[0])
    assert [len(x) for x in video.frames] == [FRAMES, 2 * FRAMES, 4 * FRAMES]


def test_freenoise_takes_no_fresh_noise(pipeline):
    with pytest.raises(ValueError, match="eta=1.0 with freenoise"):
        pipeline.sample("x", method="freenoise", eta=1.0)
    a, b = (pipeline.sample("x", scales=(2,), method="freenoise", steps=2, **eta)[0] for eta in ({}, {"eta": 0.0}))
    assert torch.equal(a.latents[1], b.latents[1])


@pytest.mark.parametrize("scales", [(2,), (2, 2), (4,), (3, 2)])
def test_anchored_key_frames_are_those_of_the_base_video(any_pipeline, scales):
    """Bitwise, in every family and at every scale; what they anchor is not what windows alone make."""
    settings = dict(seeds=3, steps=3, scales=scales)
    anchored, windowed = (
        any_pipeline.sample(**subject(any_pipeline), **settings, **more)[0].latents
        for more in (dict(preset="anchored"), dict(method="windowed"))
    )
    assert torch.equal(anchored[0], windowed[0])
    rate = 1
    for n, x, other in zip(scales, anchored[1:], windowed[1:]):
        rate *= n
        assert torch.equal(x[::rate], anchored[0]) and not torch.allclose(other[::rate], anchored[0])
        assert not torch.allclose(x[1::rate], other[1::rate])


def test_predictions_may_be_corrected_besides_the_papers_states(pipeline):
    """One setting each: neither takes the other's place."""

    def latents(**asked):
        return pipeline.sample("x", seeds=3, steps=3, scales=(2,), **asked)[0].latents[1]

    paper, both, anchored = latents(preset="paper"), latents(prediction=True), latents(preset="anchored")
    assert torch.equal(both[::2], anchored[::2]) and not torch.allclose(both[1::2], anchored[1::2])
    assert not torch.allclose(paper, both)
    assert torch.equal(latents(preset="paper", prediction=True), both)


# --- only new frames, and longer videos that begin later


NEW = dict(preset="anchored", new_frames=True)


@pytest.mark.parametrize("scales", [(2, 2), (3, 2)])
def test_key_frames_that_are_not_computed_again_are_those_of_the_base_video(any_pipeline, scales):
    """Bitwise, in every family; inserted frames are not those that the same stages make of all their frames."""
    settings = dict(seeds=3, steps=3, scales=scales)
    new, all_ = (
        any_pipeline.sample(**subject(any_pipeline), **settings, **more)[0].latents
        for more in (NEW, dict(preset="anchored"))
    )
    rate = 1
    for n, x, other in zip(scales, new[1:], all_[1:]):
        rate *= n
        assert torch.equal(x[::rate], all_[0]) and torch.equal(new[0], all_[0])
        assert torch.isfinite(x).all() and not torch.allclose(x[1::rate], other[1::rate])


def test_networks_give_key_frames_the_output_of_the_stage_before_and_leave_nothing_on_the_bus(unet, ask):
    bus = HiddenStateBus(FRAMES, (2, 2), new_frames=True)
    xs = [latents(FRAMES * n, batch=2) for n in (1, 2, 4)]
    outputs = cascade_step(lambda s, x, view: ask(x, view), xs, bus, 0, 0.0)
    assert torch.equal(outputs[0], ask(xs[0])) and bus.held_bytes == 0 < bus.peak_bytes
    assert torch.equal(outputs[1][:, ::2], outputs[0]) and torch.equal(outputs[2][:, ::2], outputs[1])
    xs[1] = torch.cat([torch.zeros_like(xs[1][:, ::2, None]), xs[1][:, 1::2, None]], 2).flatten(1, 2)
    again = cascade_step(lambda s, x, view: ask(x, view), xs, bus, 0, 0.0)  # key frames there are never looked at
    assert all(torch.equal(a, b) for a, b in zip(outputs, again))
    xs[0] = xs[0] + torch.arange(FRAMES)[:, None, None, None]  # but what they were in the first stage is
    seen = cascade_step(lambda s, x, view: ask(x, view), xs, bus, 0, 0.0)
    assert all(not torch.allclose(a[:, 1::2], b[:, 1::2], atol=1e-3) for a, b in zip(seen[1:], outputs[1:]))


def test_a_layer_that_mixes_frames_sees_all_and_corrects_new_ones_by_what_lies_between():
    """With a layer that subtracts the mean of all frames, which is not that of the key frames."""
    bus, x = HiddenStateBus(4, (2,), new_frames=True), latents(8)
    key = x[:, ::2] + 1
    first = bus.stage(0).mix("m", lambda h: h - h.mean(1, keepdim=True), key)
    got = bus.stage(1).mix("m", lambda h: h - h.mean(1, keepdim=True), x[:, 1::2])
    assert torch.equal(first, key - key.mean(1, keepdim=True)) and bus.held_bytes == 0
    torch.testing.assert_close(got, x[:, 1::2] - key.mean(1, keepdim=True))  # all are off by the same


@pytest.mark.parametrize("running", [Running(sequential_guidance=True), Running(frame_chunk=1), Running(offload=True)])
def test_new_frames_in_less_memory_are_the_same(any_pipeline, running, monkeypatch):
    monkeypatch.setattr(Memory, "hold", lambda self, x: Waiting(x.clone() if self.device else x))
    settings = dict(seeds=3, steps=2, scales=(2, 2), **NEW)
    a, b = (any_pipeline.sample(**subject(any_pipeline), running=r, **settings)[0] for r in (Running(), running))
    for x, y in zip(a.latents, b.latents):  # sums run in another order, on numbers that begin at 700
        assert_close(x, y, rtol=0, atol=1e-3 * float(x.std()))


def test_the_first_stage_runs_alone_until_longer_videos_join(any_pipeline):
    """Key frames stay the base video's, bitwise; progress ends where it did."""
    ran, done = [], []
    network = any_pipeline.networks.unet
    hook = network.register_forward_pre_hook(lambda _, args: ran.append(args[0].shape[1] // FRAMES))
    made = {
        join: any_pipeline.sample(
            **subject(any_pipeline),
            seeds=3,
            steps=4,
            scales=(2, 2),
            preset="anchored",
            join=join,
            progress=lambda i, of: done.append(i == of),
        )[0].latents
        for join in (0.0, 0.5, 1.0)
    }
    hook.remove()
    each = [1, 2, 4]
    assert ran == [*each * 4, 1, 1, *each * 2, 1, 1, 1, *each] and done[-1] and sum(done) == 3
    for x in made.values():
        assert torch.equal(x[1][::2], made[0.0][0]) and torch.equal(x[2][::2], x[1])
    assert not torch.allclose(made[0.5][1], made[0.0][1])


def test_what_joins_is_what_lies_between_key_frames_noised_to_that_step():
    """At the first step of a sampler whose network predicts what it sees, nothing else has happened yet."""
    seen = {}
    sampler = FAMILIES["vc2"].config.sampler.sampler(2, 0.0)

    def network(step, index, x, stage):
        seen[step, index] = x
        return torch.zeros_like(x)  # no noise: the data are x over alpha

    noise = latents(8)
    sample_cascade(network, sampler, Cascade(4, (2,), prediction=True, join=0.5), lambda step: noise)
    assert (0, 1) not in seen
    data = Interpolated(2).lift(seen[0, 0] / float(sampler.alpha[0]))
    expected = float(sampler.alpha[1]) * data + float(sampler.sigma[1]) * noise
    assert_close(seen[1, 1][:, 1::2], expected[:, 1::2])
    assert torch.equal(seen[1, 1][:, ::2], seen[1, 0])


def test_new_frames_beside_corrected_states_are_refused(pipeline):
    for asked in (dict(preset="paper", new_frames=True), dict(NEW, temporal=True), dict(NEW, prediction=False)):
        with pytest.raises(ValueError, match="new_frames leaves no hidden states to correct"):
            pipeline.settings(**asked)
    with pytest.raises(ValueError, match="join does nothing at scale 1"):
        pipeline.settings(scales=(), join=0.5)


# --- inner levels that run in some of the steps alone


def test_inner_levels_that_are_reused_hold_where_nothing_changed(unet, ask):
    """The same x in the next step gives the same output, from inner levels that did not run again."""
    xs, ran = [latents(FRAMES * n, batch=2) for n in (1, 2)], []
    hook = unet.middle.register_forward_pre_hook(lambda *_: ran.append(None))
    bus = HiddenStateBus(FRAMES, (2,), correction=Correction(kv_operator="S"), reuse=3)
    outputs = [cascade_step(lambda s, x, view: ask(x, view), xs, bus, step, 0.7) for step in range(4)]
    hook.remove()
    assert len(ran) == 4  # in steps 0 and 3, of both stages
    for step in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(step, outputs[0]))
    plain = HiddenStateBus(FRAMES, (2,), correction=Correction(kv_operator="S"))
    expected = cascade_step(lambda s, x, view: ask(x, view), xs, plain, 0, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], expected))
    kept = bus.held_bytes
    assert plain.held_bytes == 0 < kept and bus.peak_bytes > plain.peak_bytes
    moved = cascade_step(lambda s, x, view: ask(x + 1, view), xs, bus, 4, 0.7)  # outer ones see what is new
    assert all(not torch.allclose(a, b) for a, b in zip(moved, outputs[0])) and bus.held_bytes == kept
    bus.clear()
    assert bus.held_bytes == 0


@pytest.mark.parametrize("more", [{}, NEW], ids=["all frames", "new frames"])
def test_videos_reuse_inner_levels_alike_in_every_way_of_running(any_pipeline, more, monkeypatch):
    monkeypatch.setattr(Memory, "hold", lambda self, x: Waiting(x.clone() if self.device else x))
    settings = dict(seeds=3, steps=3, scales=(2,), **more)

    def made(running=Running(), **asked):
        return any_pipeline.sample(**subject(any_pipeline), running=running, **settings, **asked)[0].latents

    plain, reused = made(), made(reuse=2)
    assert not torch.allclose(plain[0], reused[0])
    for running in (Running(sequential_guidance=True), Running(frame_chunk=1), Running(offload=True)):
        for x, y in zip(reused, made(running, reuse=2)):  # sums run in another order
            assert_close(x, y, rtol=0, atol=1e-3 * float(x.std()))


def test_a_video_that_joins_late_begins_with_inner_levels_of_its_own(any_pipeline):
    ran, steps, network = [], [], any_pipeline.networks.unet
    hook = network.middle.register_forward_pre_hook(lambda *_: ran.append(len(steps)))
    any_pipeline.sample(
        **subject(any_pipeline),
        steps=6,
        scales=(2,),
        preset="anchored",
        join=0.5,
        reuse=2,
        preview=lambda look: steps.append(look),
    )
    hook.remove()
    first = Cascade(join=0.5).first_step(len(steps))
    both = [i for i in range(first, len(steps)) if i == first or i % 2 == 0]
    assert ran == [*range(first), *(i for i in both for _ in "ab")]  # the first stage alone, then two stages


def test_nothing_of_one_video_stays_on_its_bus_for_the_next():
    sampler, bus = FAMILIES["lavie"].config.sampler.sampler(5, 0.0), HiddenStateBus(4, (2,), reuse=2)
    cascade = Cascade(4, (2,), prediction=True, join=0.6, reuse=2)

    def made(seed, bus):
        def network(step, index, x, stage):
            return x if stage is None else stage.inner(lambda h: 2 * h, x)

        return sample_cascade(network, sampler, cascade, lambda step: latents(8, seed=seed), bus)

    made(0, bus)
    assert bus.held_bytes == 0 < bus.peak_bytes
    bus.keep((0, 0), lambda: latents(2))  # as after an interruption
    assert all(torch.equal(a, b) for a, b in zip(made(1, bus), made(1, None)))


def test_a_network_that_does_not_take_part_is_refused_rather_than_believed():
    for settings, missing in ((dict(reuse=2), "stage.inner"), (dict(new_frames=True), "stage.complete")):
        bus = HiddenStateBus(4, (2,), **settings)
        with pytest.raises(BusError, match=missing):
            cascade_step(lambda s, x, view: x, [latents(4), latents(8)], bus, 0, 0.0)


def test_reuse_where_it_does_nothing_is_refused(pipeline):
    with pytest.raises(ValueError, match="reuse does nothing to direct"):
        pipeline.settings(method="direct", reuse=2)
    with pytest.raises(ValueError, match="reuse=0"):
        pipeline.settings(reuse=0)
    assert pipeline.settings(scales=(), reuse=2).cascade.reuse == 2
