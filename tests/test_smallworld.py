"""The small world is read back as it was drawn."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smallworld import gate, recipes, train, wan_rows
from smallworld.draw import COLORS, DIRECTIONS, SPEEDS, frame_times, parse, random_scene, render
from smallworld.gate import LIMITS, make, means, measures
from smallworld.motion import jitter, smoothness
from smallworld.read import read
from smallworld.trainer import Muon, Schedule, Trainer, lay_out, orthogonal
from smallworld.wan import FAMILY as WAN
from zerosmooth import load
from zerosmooth.attention import frame_positions
from zerosmooth.checkpoint import describe, find
from zerosmooth.models.autoencoder import Autoencoder
from zerosmooth.models.svd import SVDUNet

from .conftest import FRAMES, TINY_FAMILIES, randomise, tiny_pipeline, told

SCHEDULE = Schedule(steps=10, rate=0.1, warmup=2)
SCENES = [random_scene(random.Random(f"test/{i}")) for i in range(30)]


@pytest.fixture(scope="module")
def videos():
    times = frame_times(16, 8)[None].expand(len(SCENES), -1)
    return render(SCENES, times).permute(0, 1, 3, 4, 2)


def test_prompts_say_what_the_scene_is():
    for scene in SCENES:
        for speed in (True, False):
            for background in (True, False):
                asked = parse(scene.prompt(speed, background))
                assert all(getattr(scene, key) == value for key, value in asked.items())
                assert ("speed" in asked, "background" in asked) == (speed, background)


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match="not a prompt of the small world"):
        parse("a panda eats a pizza")


def test_true_renders_pass_the_gate(videos):
    got = means([measures(read(video), scene, fps=8) for video, scene in zip(videos, SCENES)])
    assert all(got[name] == 1.0 for name in LIMITS if name != "jumps a clip")
    assert got["jumps a clip"] == 0 and got["likeness of shape"] > 0.9


def test_the_path_is_read_to_a_fraction_of_a_pixel(videos):
    for scene, video in zip(SCENES, videos):
        true = torch.tensor([scene.position(t) for t in frame_times(16, 8).tolist()])
        assert (read(video).path - true).norm(dim=1).max() < 0.3 / 64


@pytest.mark.parametrize("name", ["latte-small", "wan-small"])
def test_the_gate_takes_families_beyond_the_built_in_ones(name, capsys):
    assert not gate.gate(f"smallworld/{name}.safetensors", 1000, 1, "cpu")
    said = capsys.readouterr().out
    assert "color right  1.00" in said and "shape right  0.00" in said and "MISSED" in said
    assert said.count("(true rendering 1.00)") >= 3


def test_wrong_videos_do_not_pass(videos):
    """Backwards, still, slowed and shuffled videos fail what they should."""
    for scene, video in list(zip(SCENES, videos))[:6]:
        assert not read(video.flip(0)).goes(scene.direction, 8)
        still = read(video[:1].expand(16, -1, -1, -1))
        assert not still.goes(scene.direction, 8) and not still.has_speed(scene.speed, 8)
        assert not read(video[::2].repeat_interleave(4, 0)[:16]).has_speed(scene.speed, 8)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        assert read(video[order]).jumps(scene.speed, 8) > 1


def test_grey_frames_show_nothing():
    reading = read(torch.full((4, 64, 64, 3), 0.5))
    assert reading.color is None and reading.shape is None and reading.velocity(8) == (0.0, 0.0)
    assert reading.jumps("slowly", 8) == 3


def test_more_frames_show_the_same_seconds():
    scene = [SCENES[0]]
    slow, dense = (render(scene, frame_times(16 * n, 8 * n)[None])[0] for n in (1, 4))
    assert torch.allclose(slow, dense[::4], atol=1e-5)


def test_every_word_is_drawn():
    assert {s.color for s in SCENES} == set(COLORS)
    assert {s.direction for s in SCENES} == set(DIRECTIONS)
    assert {s.speed for s in SCENES} == set(SPEEDS)


def test_a_first_frame_tells_the_direction_and_not_the_speed():
    """The tail is behind the shape, does not disturb the reading, and both speeds start alike."""
    for i in range(8):
        scene = random_scene(random.Random(f"tail/{i}"), tail=True)
        video = render([scene], frame_times(14, 7)[None])[0].permute(0, 2, 3, 1)
        reading = read(video)
        assert (reading.color, reading.shape) == (scene.color, scene.shape)
        assert reading.goes(scene.direction, 7) and reading.has_speed(scene.speed, 7)
        plain = render([replace(scene, tail=False)], torch.zeros(1, 1))[0, 0].permute(1, 2, 0)
        changed = (video[0] - plain).abs().amax(-1) > 0.05
        changed = changed.nonzero().float().mean(0)  # row, column
        x, y = scene.position(0)
        dx, dy = DIRECTIONS[scene.direction]
        assert (changed[1] / 64 - x) * dx + (changed[0] / 64 - y) * dy < -scene.radius
        start = 0.5 - SPEEDS["quickly"]  # of the way ahead
        assert abs((x - 0.5) * dx + (y - 0.5) * dy - (start - 0.5)) <= 0.04 + 1e-6


@pytest.fixture(scope="module")
def dense():
    """A true video of 64 frames, 4 for one key frame, and its scene."""
    scene = next(s for s in SCENES if s.speed == "quickly" and s.direction == "right")
    return render([scene], frame_times(64, 32)[None])[0].permute(0, 2, 3, 1), scene


def test_true_motion_is_smooth(dense):
    reading = read(dense[0])
    got = smoothness(reading, 4, size=64)
    assert jitter(reading, 64) < 0.1  # of a pixel: how well it is read
    assert got["off path"] < 0.1 and got["area"] < 0.02 and got["color"] < 2


def test_stutter_jitter_swelling_and_fading_are_seen(dense):
    video, scene = dense
    still = video[::4].repeat_interleave(4, 0)  # every key frame held
    step = SPEEDS[scene.speed] * 64 / 8  # pixels from key frame to key frame
    mean = step * (sum((i / 4) ** 2 for i in (1, 2, 3)) / 3) ** 0.5
    assert abs(smoothness(read(still), 4, 64)["off path"] - mean) < 0.3
    assert jitter(read(still), 64) > 3 * jitter(read(video), 64)
    shaken = video.clone()
    shaken[1::2] = shaken[1::2].roll(2, dims=1)  # every other frame two pixels down
    assert jitter(read(shaken), 64) == pytest.approx(4, abs=0.5)  # 2 - 2 * 0 + 2
    times, larger = frame_times(64, 32), replace(scene, radius=scene.radius * 1.2)
    swollen = render([larger], times[None])[0].permute(0, 2, 3, 1)
    swollen[::4] = video[::4]
    area = smoothness(read(swollen), 4, 64)["area"]
    assert area == pytest.approx(0.44, abs=0.06)  # 1.2 squared, less one
    pale = video * 0.8
    pale[::4] = video[::4]
    expected = 0.2 * 255 * torch.tensor(COLORS[scene.color]).norm().item()
    assert smoothness(read(pale), 4, 64)["color"] == pytest.approx(expected, rel=0.1)


def test_a_lost_shape_is_no_number(dense):
    for lost in (4, 5):  # a key frame, an inserted one
        video = dense[0].clone()
        video[lost] = 0.5
        reading = read(video)
        measured = jitter(reading, 64), *smoothness(reading, 4, 64).values()
        assert all(map(math.isnan, measured))


def test_scenes_of_both_speeds_are_made_as_one_by_one():
    """From first frames, with the speed told by a setting: one batch for each. Up to rounding."""
    pipeline = load("svd-small", "cpu")
    scenes = [replace(SCENES[0], speed=speed, tail=True) for speed in ("slowly", "quickly")]
    settings = pipeline.settings(scale=1, steps=1)
    together = make(pipeline, [*scenes, scenes[0]], [1, 2, 3], settings)
    for scene, seed, video in zip([*scenes, scenes[0]], [1, 2, 3], together):
        (alone,) = make(pipeline, [scene], [seed], settings)
        torch.testing.assert_close(alone.latents[0], video.latents[0], atol=1e-3, rtol=1e-3)


@torch.inference_mode(False)
def test_a_run_goes_on_from_its_weights_alone_and_then_from_its_state(tmp_path):
    kept = torch.nn.Linear(3, 2)
    lay_out(tmp_path, dict(kept.named_parameters()), step=7)
    module = torch.nn.Linear(3, 2)
    trainer = Trainer(module, SCHEDULE, tmp_path)
    assert trainer.step == 7 and torch.equal(module.weight, kept.weight)
    assert trainer.rate.get_last_lr()[0] < 0.1 * SCHEDULE.share(7)  # Adam warms up again
    trainer.train(lambda step: module(torch.ones(1, 3)).square().sum(), lambda *of: None, every=1)
    again = torch.nn.Linear(3, 2)
    resumed = Trainer(again, SCHEDULE, tmp_path)
    assert resumed.step == 10 and torch.equal(again.weight, module.weight)
    assert not torch.equal(again.weight, kept.weight)
    assert resumed.optimizer.state[again.weight]["step"] == 3


@torch.inference_mode(False)
def test_the_rate_warms_up_and_the_average_forgets_its_first_weights(tmp_path):
    """Both as written out by hand, the average to the bit."""
    module = torch.nn.Linear(3, 2)
    trainer = Trainer(module, SCHEDULE, tmp_path)
    by_hand, rates, shown = module.weight.detach().clone(), [], []

    def loss_at(step):
        if step:
            by_hand.lerp_(module.weight.detach(), 1 - min(SCHEDULE.average, step / (9 + step)))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return module(torch.ones(1, 3)).square().sum()

    averaged = trainer.train(loss_at,
                             lambda step, averaged: shown.append((step, averaged)),
                             every=1)
    by_hand.lerp_(module.weight.detach(), 1 - min(SCHEDULE.average, 10 / 19))
    assert torch.equal(averaged.weight, by_hand) and not torch.equal(by_hand, module.weight)
    cosine = [0.05 * (1 + math.cos(math.pi * max(0, step - 2) / 8)) for step in range(10)]
    assert rates == pytest.approx([0.05, *cosine[1:]])
    assert shown == [(5, averaged), (10, averaged)]


def test_a_state_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="earlier version.*--start"):
        Trainer(torch.nn.Linear(3, 2), SCHEDULE, tmp_path)


@pytest.mark.parametrize("start", ["svd-small", "smallworld/latte-small.safetensors",
                                   "smallworld/wan-small.safetensors"])
def test_a_run_goes_on_from_an_exported_checkpoint_and_exports_it_again(start, tmp_path):
    name, path = Path(start).stem, tmp_path / "again.safetensors"
    recipe, family = recipes.RECIPES[name], recipes.FAMILIES[recipes.RECIPES[name].config.family]
    train.go_on_from(start, recipe, tmp_path)
    train.export(name, tmp_path, "cpu", path)
    shipped, again = (load_file(find(file)) for file in (start, path))
    assert shipped.keys() == again.keys() and all(
        torch.equal(shipped[name], again[name]) for name in shipped)
    assert describe(path, family).source == describe(start, family).source


def test_a_run_of_another_recipe_does_not_go_on(tmp_path):
    with pytest.raises(ValueError, match="not exported by a run of this recipe"):
        train.go_on_from("vc2-small", recipes.RECIPES["svd-small"], tmp_path)


@torch.inference_mode(False)
def test_muon_moves_kernels_along_their_gradients_singular_vectors_and_biases_as_adam_does():
    layer, other = torch.nn.Conv2d(4, 10, 3), torch.nn.Conv2d(4, 10, 3)
    other.load_state_dict(before := {name: x.clone() for name, x in layer.state_dict().items()})
    gradients = torch.randn(10, 4, 3, 3), torch.randn(10)
    for kind, module in ((Muon, layer), (torch.optim.AdamW, other)):
        optimizer = kind(module.parameters(), lr=0.1, weight_decay=0.5)
        module.weight.grad, module.bias.grad = (g.clone() for g in gradients)
        optimizer.step()
    assert torch.equal(layer.bias, other.bias) and not torch.equal(layer.bias, before["bias"])
    moved = (0.95 * before["weight"] - layer.weight.detach()).flatten(1) / (0.1 * 0.2 * 6)
    u, _, v = torch.linalg.svd(gradients[0].flatten(1), full_matrices=False)
    along = u.T @ moved @ v.T  # near the identity
    assert (along.diagonal() - 1).abs().max() < 0.35
    assert (along - along.diagonal().diag()).abs().max() < 1e-4
    assert torch.allclose(orthogonal(moved.T), orthogonal(moved).T)


@pytest.mark.parametrize("muon", [False, True])
@torch.inference_mode(False)
def test_a_resumed_run_is_the_unbroken_one(muon, tmp_path):
    """Layers that join late, as temporal ones do, begin with Adam of their own, before and after a
    stop."""

    def run(folder, stops):
        torch.manual_seed(0)
        while True:
            module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))

            def loss_at(step):
                if step in stops:
                    stops.remove(step)
                    raise InterruptedError
                x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
                return (module[0](x) if step < 6 else module(x)).square().sum()

            try:
                schedule = Schedule(12, rate=0.1, warmup=2, muon=muon)
                Trainer(module, schedule, folder).train(loss_at, lambda *of: None, every=1)
                return module.state_dict()
            except InterruptedError:
                pass

    whole, resumed = run(tmp_path / "whole", []), run(tmp_path / "resumed", [4, 8])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_can_hide_where_a_clip_ends_and_tell_any_positions():
    """Of a video of one frame again and again, only ends and positions tell frames apart."""
    torch.manual_seed(0)
    unet = randomise(SVDUNet(TINY_FAMILIES["svd"].unet)).eval()
    endless = train.with_repeated_ends(unet)
    x = torch.randn(1, 1, unet.config.in_channels, 4, 6).expand(-1, FRAMES, -1, -1, -1)
    given = told(unet, 1)

    def spread(y: torch.Tensor) -> float:
        return (y - y[:, :1]).abs().max().item()

    def at(positions: torch.Tensor) -> dict:
        states = {**unet.project_context(given["context"]), "positions": (positions,)}
        return {**given, "context": states}

    plain, nowhere = unet(x, **given), torch.zeros(FRAMES)
    assert torch.equal(unet(x, **at(frame_positions(FRAMES, None))), plain)
    assert spread(unet(x, **at(nowhere))) > 1e-3  # the zeros beyond the ends
    assert spread(endless(x, **given)) > 1e-3  # the positions
    assert spread(endless(x, **at(nowhere))) < 1e-5
    assert torch.equal(unet(x, **given), plain)


@torch.inference_mode(False)
@pytest.mark.parametrize("name", ["vc2", "vc1", "lavie"])
def test_single_frames_train_none_of_the_temporal_layers(name):
    """A fresh network's temporal layers hand on what they get; left out, they get no gradients
    either."""
    torch.manual_seed(0)
    unet = tiny_pipeline(name).networks.unet.requires_grad_(True)
    train.start_as_identity(unet)
    torch.nn.init.normal_(unet.conv_out.weight)  # or nothing would be seen of what is before
    stills = train.without_temporal_layers(unet)
    x = torch.randn(3, 1, 4, 4, 6)
    given = told(unet, 3) | ({} if name == "vc2" else {"condition": None})
    y = stills(x, **given)
    assert torch.equal(y, unet(x, **given)) and y.abs().max() > 0.1
    y.square().sum().backward()
    temporal = (".temporal_conv.", ".temporal.", "init_attn.", ".temporal_attn.", ".norm_temporal.")
    for path, p in unet.named_parameters():
        assert (p.grad is None) == any(part in path for part in temporal), path


def test_clips_of_another_recipe_are_drawn_anew(tmp_path):
    recipe = replace(recipes.RECIPES["svd-small"], clips=2, size=32)
    vae = Autoencoder(recipe.config.vae)

    def draw(recipe: recipes.Recipe) -> torch.Tensor:
        return train.draw_clips(recipe, vae, tmp_path, "cpu", *train.choose_clips(recipe))

    assert torch.equal(draw(recipe), draw(recipe)) and len(list(tmp_path.iterdir())) == 1
    draw(replace(recipe, tail=False))
    vae.config = replace(vae.config, scale=2.0)
    draw(recipe)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_laws_numbers_are_read_off_fixed_sums():
    laws = torch.tensor([[0.5, math.nan], [-0.25, 1.0]])
    assert train.law_loss(torch.zeros(2, 16), laws).item() == pytest.approx(1.3125 / 4)
    with torch.inference_mode(False), torch.enable_grad():
        h = torch.zeros(2, 16, requires_grad=True)
        optimizer = torch.optim.Adam([h], 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss = train.law_loss(h, laws)
            loss.backward()
            optimizer.step()
    assert loss < 1e-4 and h.isfinite().all()


def test_noise_levels_lie_where_a_recipe_puts_them():
    config, spread = recipes.RECIPES["latte-small"].config.sampler, torch.arange(1000) / 1000
    _, alpha, sigma = train.noise_levels(config, spread, early=True, log_sigma=(1.0, 1.4))
    logs = (sigma / alpha).log()
    assert logs.median().item() == pytest.approx(1.0, abs=0.02)
    assert logs.quantile(0.84).item() == pytest.approx(2.4, abs=0.05)
    assert (alpha**2 + sigma**2).sub(1).abs().max() < 1e-6


def test_lattes_class_trains_as_the_others_do():
    """Fresh, it says nothing; and frames alone train none of its temporal attention."""
    recipe = recipes.RECIPES["latte-small"]
    unet = train.new_networks(recipe, "cpu").unet
    x, context = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 5, 64)
    assert unet(x, torch.tensor([500, 500]), context).abs().max() == 0
    with torch.inference_mode(False), torch.enable_grad():
        unet = train.new_networks(recipe, "cpu").unet
        torch.nn.init.normal_(unet.proj_out.weight)
        stills = train.without_temporal_layers(unet)
        y = stills(torch.randn(2, 1, 4, 8, 8), torch.tensor([500, 500]), torch.randn(2, 5, 64))
        y.square().sum().backward()
    assert all(p.grad is None for block in unet.temporal_blocks for p in block.attn.parameters())
    assert unet.spatial_blocks[0].ff.proj_out.weight.grad.abs().max() > 0


def test_what_was_not_measured_misses_a_limit(capsys):
    for value, kept in ((0.01, True), (0.2, False), (float("nan"), False)):
        assert gate.verdict("x", {"off path": value}, {"off path": 0.1}, {}) is kept
    assert capsys.readouterr().out.count("MISSED") == 2


def test_a_finished_run_says_that_nothing_is_left(tmp_path, capsys):
    lay_out(tmp_path, torch.nn.Linear(2, 2).state_dict(), 7)
    Trainer(torch.nn.Linear(2, 2), Schedule(7, 1e-3), tmp_path)
    assert "has all of 7 steps; give it more to go on" in capsys.readouterr().out
    Trainer(torch.nn.Linear(2, 2), Schedule(9, 1e-3), tmp_path)
    assert "goes on from step 7" in capsys.readouterr().out


def test_an_error_counts_along_what_would_change_and_nowhere_else():
    change = torch.zeros(2, 3, 4, 5, 5)
    change[:, :, 0] = torch.randn(2, 3, 5, 5) * 100
    off = torch.zeros_like(change)
    off[:, :, 1] = 1
    assert train.told_loss(off, change) == 0
    assert train.told_loss(change, 0 * change) == 0  # where nothing would
    # beside it, the whole square of an error is in it, whatever the change's size
    along = 0.01 * change
    got, expected = train.told_loss(along + off, change), along.square().mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-3)


@torch.inference_mode(False)
def test_wans_class_trains_from_its_autoencoder_to_a_checkpoint_with_rows(tmp_path, monkeypatch,
                                                                          capsys):
    """Whole, with a few steps of each part."""
    few = replace(recipes.RECIPES["wan-small"], autoencoder_steps=5, autoencoder_batch=34, clips=4,
                  encoder_steps=2, image_steps=1, places_steps=1, steps=3, batch=10,
                  told=1.0, muon=True, bfloat16=False)
    monkeypatch.setitem(recipes.RECIPES, "wan-small", few)
    monkeypatch.setattr(train, "SCENES", 16)
    # there are no parts of scenes to choose
    monkeypatch.setattr(train, "PLACES", (1.0, train.PLACES[1]))
    levels, noise_levels = [], train.noise_levels
    monkeypatch.setattr(train, "noise_levels",
                        lambda *of: [levels.append(of[3]), noise_levels(*of)][1])
    monkeypatch.setattr("sys.argv", ["train", "wan-small", "--runs", str(tmp_path)])
    with torch.enable_grad():
        train.main()
    assert levels == [few.log_sigma, train.PLACES[1], few.log_sigma]
    path = tmp_path / "wan-small/wan-small.safetensors"
    pipeline = load(path, family=WAN)
    vae = pipeline.config.vae
    assert "step 3 of 3" in describe(path, WAN).source and vae.mean != few.config.vae.mean
    z = load_file(next(tmp_path.rglob("clips-*")))["clips"].float()
    assert z.shape == (4, 5, 16, 8, 8) and z.std() == pytest.approx(1, abs=0.3)
    monkeypatch.setattr("sys.argv", [
        "wan_rows", "--ckpt", str(path), "--n", "2", "--steps", "2", "--outdir", str(tmp_path),
        "--rows", "truth", "hold", "lines+join"])
    assert wan_rows.main() == 0
    said = capsys.readouterr().out.splitlines()[-3:]
    assert [line.partition(":")[0] for line in said] == ["truth", "hold", "lines+join"]
    assert all("keys 100.00" in line for line in said[:2])
    assert (tmp_path / "lines+join.png").exists()

    torch.manual_seed(0)
    for p in pipeline.networks.unet.parameters():  # three steps taught it next to nothing
        torch.nn.init.normal_(p, std=0.1)
    all_scenes = gate.scenes_of
    monkeypatch.setattr(gate, "scenes_of", lambda family, seed, n: all_scenes(family, seed,
                                                                              min(n, 4)))
    maker = wan_rows.Maker(pipeline, 2, (0.5,))
    made = {row: maker.make(row, gate.scenes_of(WAN, 0, 2), (0, 1), 2) for row in wan_rows.WORDS}
    keys, _ = made["whole"]  # the key video is what it is
    assert all(torch.equal(keys, others) for others, _ in made.values())
    assert len({dense.numpy().tobytes() for _, dense in made.values()}) == len(made)


# RIFE's file is not given
@pytest.mark.parametrize("row", ["rife", "lins", "lines+rife", "lines+carried", ""])
def test_rows_that_are_none_are_refused(row, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["wan_rows", "--rows", "base", row])
    with pytest.raises(SystemExit):
        wan_rows.main()
    assert f"no row {row!r}" in capsys.readouterr().err


def test_a_jump_at_each_latents_border_is_told(dense):
    """Frames 4k + 1 .. 4k + 4, which a latent holds, are moved to and fro by turns."""
    video, scene = (dense[0][:33] * 255).round().byte(), dense[1]
    frame = torch.arange(33)
    apart = torch.stack([x.roll(int((i + 3) // 4 % 2), 0) for i, x in zip(frame, video)])
    smooth, jumpy = (wan_rows.measured(x, video[::2], scene, 2, 32) for x in (video, apart))
    assert smooth["speed right"] == smooth["direction right"] == smooth["color right"] == 1
    assert 0.5 < smooth["border"] < 2 and jumpy["border"] > 4
    assert smooth["keys"] == 100 > jumpy["keys"] and jumpy["jitter"] > 4 * smooth["jitter"]
