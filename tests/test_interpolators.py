"""The interpolators of the evaluation: their parts, their files, and their rows. `tests.parity`
holds them to the authors' code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation import __main__ as command
from evaluation.interpolators import Blend, TorchScript, lavie, ldmvfi, open_interpolators
from evaluation.interpolators.ldmvfi import LDMVFI, padding
from evaluation.interpolators.vqfigan import TAPS, MaxViT, VQFIGANConfig, deformable
from smallworld import interpolation, world
from weights_convert.engine import ConversionError, convert, plan
from weights_convert.source import Source, one_set
from zerosmooth.checkpoint import tensor_shapes, try_out
from zerosmooth.family import Networks
from zerosmooth.fields import UserError
from zerosmooth.models.autoencoder import AutoencoderConfig
from zerosmooth.models.lavie import LaVieConfig
from zerosmooth.samplers import DDIM, DDIMConfig
from zerosmooth.settings import Settings

from .full_size import constant, shapes, write

CPU = torch.device("cpu")
TINY = LaVieConfig(8, 4, 32, (1, 2), 1, (1, 2), 12, groups=4, heads=2)
TINY_UNET = ldmvfi.UNetConfig(channels=32)  # of the published depth
TINY_VAE = VQFIGANConfig(channels=32, codes=16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def videos(k: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (k, size, size, 3), dtype=torch.uint8, generator=generator)


# --- LaVie's interpolation


def test_a_frame_attends_to_the_first_one_and_the_one_before_alone():
    attention = lavie.SparseCausalAttention(8, 2, 4)
    q, k, v = drawn(3, 1, 5, 6, 8)
    before = attention.attend(q, k, v)
    for changed in range(5):
        other = v.clone()
        other[:, changed] += 1
        moved = (attention.attend(q, k, other) != before).any(-1).any(-1)[0]
        assert moved.tolist() == [changed == 0 or i == changed + 1 for i in range(5)]


def test_frames_carry_no_positions_along_time():
    """Frames in another order come out the same: nothing counts them but the attention to the
    previous one, which is switched off here."""
    network = lavie.InterpolationUNet(TINY).eval()
    for module in network.modules():
        if isinstance(module, lavie.SparseCausalAttention):
            nn.init.zeros_(module.to_out.weight)
    x, order = drawn(1, 5, 8, 4, 4), [3, 0, 4, 1, 2]
    told = torch.tensor([7.0]), drawn(1, 2, 12)
    with torch.no_grad():
        y, expected = network(x[:, order], *told), network(x, *told)[:, order]
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


def test_every_frame_has_the_key_frame_that_upstream_gives_it():
    keys = torch.arange(16)[None]
    assert lavie.beside(keys)[0].tolist() == [(j + 1) // 4 for j in range(61)]


def test_timesteps_are_even_from_999_to_0_and_end_in_clean_data():
    sampler = lavie.EvenDDIM(DDIMConfig(), 25)
    assert [sampler.timesteps[i] for i in (0, -1)] == [999, 0]
    assert {166, 208, 500} <= set(sampler.timesteps)
    assert lavie.EvenDDIM(DDIMConfig(), 50).timesteps[-4:] == [61, 41, 20, 0]
    x, x0 = drawn(2, 3), drawn(2, 3, seed=1)
    torch.testing.assert_close(sampler.step(24, x, x0, None), x0)
    with pytest.raises(ValueError, match="2 to 1000"):
        lavie.EvenDDIM(DDIMConfig(), 1)


def test_guidance_one_is_the_conditional_branch_alone():
    torch.manual_seed(0)
    small = AutoencoderConfig(8, (1, 2), 1, groups=4)
    networks = Networks(lavie.FAMILY, replace(lavie.FAMILY.config, unet=TINY, vae=small)).eval()
    keys, noise = drawn(1, 2, 4, 4, 4), drawn(1, 5, 4, 4, 4, seed=1)
    told, other = drawn(2, 1, 2, 12, seed=2)
    sampler = lavie.EvenDDIM(DDIMConfig(), 3)

    def made(scale: float, contexts: tuple[Tensor, Tensor]) -> Tensor:
        return lavie.sample(networks, sampler, keys, noise, contexts, scale)

    plain = made(1.0, (told, other))
    assert torch.equal(plain, made(1.0, (told, told)))
    assert not torch.allclose(plain, made(4.0, (told, other)))
    torch.testing.assert_close(plain, made(4.0, (told, told)), atol=1e-3, rtol=1e-3)


def test_a_video_with_other_key_frames_is_refused():
    interpolator = lavie.LaVieInterpolator.__new__(lavie.LaVieInterpolator)
    interpolator.check(Settings(scale=4))
    interpolator.check(Settings(scale=2))
    for settings in (Settings(scale=8), Settings(scale=4, key_frames=14)):
        with pytest.raises(ValueError, match="makes 4 frames for each of 16 key frames"):
            interpolator.check(settings)


# --- LDMVFI


def test_the_first_attention_sees_neighbours_and_the_second_a_grid():
    """With one part alone, a pixel depends on its tile, or on those height/w and width/w apart."""
    torch.manual_seed(0)
    network = MaxViT(8, 8, 2).double()
    x = drawn(1, 8, 4, 6).double()
    for still, seen in ((network.attn_grid, [[2, 2], [2, 3], [3, 2], [3, 3]]),
                        (network.attn_block, [[0, 0], [0, 3], [2, 0], [2, 3]])):
        kept = still.to_out.weight.clone()
        with torch.no_grad():
            still.to_out.weight.zero_()
            other = x.clone()
            other[..., 2, 3] += drawn(8, seed=1)
            moved = (network(other) - network(x)).abs().amax((0, 1)) > 1e-9
            still.to_out.weight.copy_(kept)
        assert moved.nonzero().tolist() == seen
    with pytest.raises(ValueError, match="multiples of 2"):
        network(x[..., :5])


def tap(frame: Tensor, down: float, right: float) -> Tensor:
    """The synthesis of a frame with one tap of weight 1, that on its own pixel, moved."""
    size = frame.shape[-1]
    one, mask = torch.zeros(1, TAPS, size, size), torch.ones(1, TAPS**2, size, size)
    one[:, 1] = 1
    return deformable(frame, one, one, down * mask, right * mask, mask)


def test_synthesis_counts_the_border_twice():
    """In a frame of ones: 1 inside, 2 over an edge, 4 over a corner."""
    frame = torch.ones(1, 1, 6, 6)
    assert torch.equal(tap(frame, 0, 0)[:, :, 1:, 1:], frame[:, :, 1:, 1:])
    assert torch.equal(tap(frame, -100, 0)[:, :, :, 1:], 2 * frame[:, :, :, 1:])
    assert torch.equal(tap(frame, -100, -100), 4 * frame)


def test_synthesis_moves_pixels_down_and_right():
    frame = drawn(1, 2, 8, 8)
    moved = tap(frame, 2, 3)  # 2 is the padding: place (y, x + 1) of the frame
    torch.testing.assert_close(moved[..., 1:-1, 1:-2], frame[..., 1:-1, 2:-1])


def test_frames_are_padded_as_upstream():
    assert padding(320, 512) == (192, 0)
    assert padding(256, 256) == padding(512, 256) == (0, 0)  # a side that would double stays
    assert padding(129, 140) == (127, 116)
    for size in ((64, 64), (100, 300), (128, 128), (320, 128)):
        with pytest.raises(ValueError, match="at least 129"):
            padding(*size)


def tiny_ldmvfi() -> LDMVFI:
    torch.manual_seed(0)
    network = LDMVFI(TINY_UNET, TINY_VAE).eval().requires_grad_(False)
    nn.init.normal_(network.vae.codebook)
    return network


def test_frames_given_are_kept_and_one_is_made_between_each_two():
    network, keys = tiny_ldmvfi(), videos(2, size=130)
    sampler = DDIM(ldmvfi.SAMPLER, 1, 0.0)
    made = network.between(keys, sampler, lambda shape, step: torch.zeros(shape))
    assert len(made) == 3 and torch.equal(made[::2], keys) and not torch.equal(made[1], keys[0])


def test_every_tensor_of_the_published_files_has_its_place():
    """At full size, names and shapes only: each is read once, or dropped on purpose."""
    held, read = shapes("ldmvfi"), []
    held = {name: tuple(shape) for name, shape in held.items()}
    whole = Source(Path("ldmvfi.ckpt"), held, lambda name: read.append(name) or name, ())
    source = one_set(whole, "ema")

    def read_meta(name: str) -> Tensor:
        source.read(name)
        return torch.empty(source.shapes[name], device="meta")

    with torch.device("meta"):
        state = LDMVFI(ldmvfi.UNetConfig(), VQFIGANConfig()).state_dict()
    expected = {name: tuple(x.shape) for name, x in state.items() if "num_batches" not in name}
    converted = convert(ldmvfi.TABLE, source.shapes, read_meta, expected)
    assert {name: tuple(x.shape) for name, x in converted} == expected
    assert len(read) == len(set(read)) and not any("model.diff" in name for name in read)
    assert sum(name.startswith("model_ema.") for name in read) == 626
    left = [name for name in held
            if name not in read and not name.startswith(("model.", "cond_stage_model."))]
    parts = ("model_ema.decay", "model_ema.num_updates", "cross_attn.out_conv.", ldmvfi.COUNTER)
    assert all(any(part in name for part in parts) or "." not in name for name in left)


def test_every_tensor_of_lavies_interpolation_has_its_place():
    config, read = lavie.FAMILY.config, []
    held = {f"unet.{name}": shape for name, shape in shapes("lavie_interpolation_unet").items()}
    held |= {f"vae.{name}": shape for name, shape in shapes("lavie_vae_diffusers").items()}
    held |= {f"text_encoder.{name}": shape for name, shape in shapes("lavie_text_hf").items()}
    expected = tensor_shapes(lavie.FAMILY, config)
    assert try_out(lavie.FAMILY, config) == expected
    table = lavie.FAMILY.conversion.table(config, held)

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(held[name], device="meta")

    converted = convert(table, held, read_meta, expected)
    assert {name: tuple(x.shape) for name, x in converted} == expected
    assert sorted(read) == sorted(held)


def tiny_file(path: Path) -> Path:
    """A file of LDMVFI's layout in a tiny size: the published names, by the rule."""
    state = LDMVFI(TINY_UNET, TINY_VAE).state_dict()
    names = [name for name in shapes("ldmvfi") if not name.startswith("model_ema.")]
    places = plan(ldmvfi.TABLE, names)[0]
    held = {theirs[0]: tuple(state[ours].shape) for ours, theirs in places.items()}
    held |= {"model_ema." + name.removeprefix("model.").replace(".", ""): shape
             for name, shape in held.items() if name.startswith("model.")}
    write("ldmvfi", path, {"": held | {"model_ema.decay": (), "betas": (1000,)}})
    return path


def test_the_running_average_is_what_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(ldmvfi, "LDMVFI", lambda *of: LDMVFI(TINY_UNET, TINY_VAE))
    path = tiny_file(tmp_path / "ldmvfi.ckpt")
    loaded = ldmvfi.load(path).unet.conv_in.weight
    named = constant("model_ema.diffusion_modelinput_blocks00weight", tuple(loaded.shape))
    assert torch.equal(loaded, named)
    state = torch.load(path, weights_only=True)["state_dict"]
    trained = {name: x for name, x in state.items() if not name.startswith("model_ema.")}
    torch.save({"state_dict": trained}, path)
    with pytest.raises(ConversionError, match="the running average is missing"):
        ldmvfi.load(path)


# --- files that users bring, and rows


class Middle(nn.Module):
    def forward(self, a: Tensor, b: Tensor, time: Tensor) -> Tensor:
        return a + (b - a) * time[0, 0]


class Small(nn.Module):
    def forward(self, a: Tensor, b: Tensor, time: Tensor) -> Tensor:
        return a[..., :-1]


def test_a_torchscript_file_is_told_the_time_between(tmp_path):
    torch.jit.script(Middle()).save(tmp_path / "middle.pt")
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    keys = videos()
    ours = TorchScript(tmp_path / "middle.pt", CPU)(keys, 4, "", 0)
    blend = Blend()(keys, 4, "", 0)
    assert ours.shape == (9, 16, 16, 3)
    assert torch.equal(blend[::4], keys) and torch.equal(ours[::4], keys)
    assert (ours.int() - blend.int()).abs().max() <= 1  # rounding of halves
    with pytest.raises(ValueError, match="answers with"):
        TorchScript(tmp_path / "small.pt", CPU).check(Settings())
    torch.jit.script(nn.Linear(3, 3)).save(tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="linear.pt does not take two frames of .* and a time"):
        TorchScript(tmp_path / "linear.pt", CPU).check(Settings())
    for name in ("windowed", "blend"):
        with pytest.raises(ValueError, match=f"a row {name} is there already; give"):
            open_interpolators([tmp_path / f"{name}.pt"], CPU, torch.float32)
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        TorchScript(tmp_path / "text.pt", CPU)
    with pytest.raises(ValueError, match="does not exist"):
        TorchScript(tmp_path / "none.pt", CPU)


def records_of(folder: Path) -> dict[str, dict]:
    made = (json.loads(path.read_text()) for path in (folder / "videos").glob("*.json"))
    return {record["row"]: record for record in made}


def test_interpolators_fill_in_the_key_frames_of_the_other_rows(tmp_path, capsys, monkeypatch):
    """The same base video, measured up to the last key frame in every row."""
    monkeypatch.setattr(world, "REFERENCES", 8)
    torch.jit.script(Middle()).save(tmp_path / "mine.pt")
    arguments = ["--scenes", "1", "--steps", "1", "--show", "1", "--outdir", str(tmp_path / "out")]
    brought = ["--rows", "windowed", "blend", "--interpolator", str(tmp_path / "mine.pt")]
    assert command.main([*arguments, *brought]) == 0
    made = records_of(tmp_path / "out")
    assert made.keys() == {"windowed", "blend", "mine", "true rendering"}
    for record in made.values():
        assert [stage["frames"] for stage in record["stages"]] == [16, 31, 61]
    assert made["blend"]["settings"]["interpolator"] == "linear in pixels"
    psnr = [stage.get("PSNR") for stage in made["blend"]["stages"]]
    assert psnr == [None, 100.0, 100.0]
    kept = (tmp_path / "out/videos").glob("*.frames")
    frames = {path.name.partition("-")[0]: load_file(path) for path in kept}
    assert torch.equal(frames["blend"]["0"], frames["windowed"]["0"])
    assert torch.equal(frames["blend"]["2"][::2], frames["blend"]["1"])
    said = capsys.readouterr().out
    assert "up to the last key frame" in said and "sha256" in said
    assert command.main([*arguments, "--rows", "windowed"]) == 1
    assert "differs in frames" in capsys.readouterr().err


@pytest.mark.long
def test_the_small_world_brings_an_interpolator_of_its_own(tmp_path):
    """On a scene that it never saw it moves the shape where a blend fades."""
    arguments = ["--scenes", "1", "--seed", "77", "--show", "0", "--outdir", str(tmp_path)]
    assert command.main([*arguments, "--rows", "blend", "lavie-interpolation"]) == 0
    made = records_of(tmp_path)
    small, blend = (made[row]["stages"][-1] for row in ("lavie-interpolation", "blend"))
    assert small["off path"] < 0.3 and small["PSNR"] > 30 and small["lost"] == 0
    assert small["color"] < blend["color"] and 30 < small["blend"] < 60


def test_the_shipped_interpolator_is_small_and_says_what_it_is():
    ours = lavie.LaVieInterpolator(interpolation.SHIPPED, CPU, torch.float32)
    assert interpolation.SHIPPED.stat().st_size < 8_000_000
    assert ours.protocol.startswith(interpolation.SHIPPED.name)


def test_table_2_leaves_out_what_cannot_be(tmp_path, capsys):
    """LaVie's interpolation takes 16 key frames, svd-small makes 14."""
    torch.jit.script(Middle()).save(tmp_path / "mine.pt")
    arguments = ["--ckpt", "svd-small", "--scenes", "1", "--outdir", str(tmp_path)]

    def prepared(*more: str) -> command.Work:
        return command.prepare(command.parse([*arguments, *more]))

    work = prepared("--table", "2", "--interpolator", str(tmp_path / "mine.pt"))
    assert list(work.plan.rows) == ["zerosmooth", "hold", "blend", "minterpolate", "mine"]
    said = capsys.readouterr().err
    assert "without the row lavie-interpolation: lavie-interpolation makes 4 frames" in said
    assert "without the row ldmvfi: it needs its weights" in said
    with pytest.raises(UserError, match="the row lavie-interpolation cannot be made: "):
        prepared("--rows", "lavie-interpolation")


# --- its training


def test_training_starts_with_a_network_that_answers_zero():
    fresh = interpolation.new_networks("cpu").unet
    assert not fresh(drawn(1, 5, 8, 8, 8), torch.tensor([9.0]), torch.zeros(1, 1, 64)).any()


@pytest.mark.long
@torch.inference_mode(False)
def test_training_gives_a_checkpoint(tmp_path):
    trainer = interpolation.trainer_of(tmp_path, 2, 1e-3, "cpu")
    fixed = {name: x.clone() for name, x in trainer.module.state_dict().items()
             if not name.startswith("unet.")}
    interpolation.train(trainer, count=2, batch=1, device="cpu")
    out = tmp_path / "small.safetensors"
    interpolation.export(interpolation.trainer_of(tmp_path, 2, 1e-3, "cpu"), out)
    after = trainer.average.module.state_dict()
    assert all(torch.equal(after[name], x) for name, x in fixed.items())
    assert after["unet.conv_out.weight"].any() and out.stat().st_size < 8_000_000
    made = lavie.LaVieInterpolator(out, CPU, torch.float32)(videos(16, 64), 2, "a red circle", 5)
    assert made.shape == (31, 64, 64, 3)


def test_an_interpolator_may_make_the_last_doubling_of_a_method(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(world, "REFERENCES", 8)
    arguments = ["--scenes", "1", "--steps", "1", "--show", "1", "--outdir", str(tmp_path)]
    assert command.main([*arguments, "--rows", "windowed", "windowed+blend", "+ spatial"]) == 0
    made, kept = records_of(tmp_path), (tmp_path / "videos").glob("*.frames")
    assert [stage["frames"] for stage in made["windowed+blend"]["stages"]] == [16, 31, 61]
    assert made["windowed+blend"]["settings"]["method"] == "windowed"
    assert made["windowed+blend"]["settings"]["interpolator"] == "linear in pixels, from 2x on"
    frames = {json.loads(path.with_suffix(".json").read_text())["row"]: load_file(path)
              for path in kept}
    both, alone = frames["windowed+blend"], frames["windowed"]
    assert torch.equal(both["1"], alone["1"]) and torch.equal(both["2"][::2], both["1"])
    assert not torch.equal(both["2"], alone["2"])
    expected = Blend()(both["1"], 2, "", 0)
    assert torch.equal(both["2"], expected)
    capsys.readouterr()
    for row, more, said in (("anchored+blend", ["--scale", "2"], "from a scale of 4 on"),
                            ("anchored+lavie-interpolation", [], "not 2 for 32"),
                            ("anchored+rife", [], "no row 'anchored+rife'")):
        assert command.main([*arguments, "--rows", row, *more]) == 1
        assert said in capsys.readouterr().err
