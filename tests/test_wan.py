"""Wan in `examples/wan`: its published files, its positions and windows, dense clips and their
corrections. Its figures are in `tests/golden`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from examples import wan
from examples.wan import dense, text
from examples.wan.__main__ import main
from examples.wan.conversion import TEXT
from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError, convert, plan
from zerosmooth.attention import fusion_matrix, windows
from zerosmooth.bus import HiddenStateBus
from zerosmooth.checkpoint import describe, load, looks_like, tensor_shapes
from zerosmooth.extensions.motion import carried
from zerosmooth.extensions.predictions import lines
from zerosmooth.family import Networks
from zerosmooth.fields import UserError
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.operators import A2, back_project
from zerosmooth.settings import Running, settings_for
from zerosmooth_cli import check
from zerosmooth_cli.estimate import needs
from zerosmooth_cli.results import Result

from .full_size import shapes
from .parity import weight

FULL = wan.FAMILY.config
SMALL = replace(
    FULL,
    unet=replace(FULL.unet, heads=2, head_dim=12, layers=2, feed_forward=32, context_dim=12,
                 time_dim=8, frames=3, overlap=2),
    vae=replace(FULL.vae, channels=4), encoder=wan.UMT5Config(tokens=9, width=12),
    defaults=replace(FULL.defaults, height=16, width=32, steps=2))
LAYOUTS = {"authors": ("diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"),
           "diffusers": ("transformer/diffusion_pytorch_model.safetensors",
                         "vae/diffusion_pytorch_model.safetensors")}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return wan.Transformer(SMALL.unet).eval()


@pytest.fixture
def vae() -> wan.Autoencoder:
    torch.manual_seed(0)
    return wan.Autoencoder(SMALL.vae).eval()


# --- its published files


def published(layout: str) -> dict[str, tuple[int, ...]]:
    return {f"{part}.{name}": shape for part in ("transformer", "vae")
            for name, shape in shapes(f"wan_{part}_{layout}").items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_tensor_has_its_place(layout):
    """At full size: names and shapes only. All are read."""
    source, read = published(layout), []

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(source[name], device="meta")

    expected = tensor_shapes(wan.FAMILY, FULL)
    made = dict(convert(wan.table(FULL, source), source, read_meta, expected))
    assert {name: tuple(x.shape) for name, x in made.items()} == expected
    assert sorted(read) == sorted(source)
    for gone in (read[0], read[-1]):
        rest = {name: shape for name, shape in source.items() if name != gone}
        with pytest.raises(ConversionError, match="has no tensor for 1|of another shape 1"):
            convert(wan.table(FULL, source), rest, read_meta, expected)


def test_the_authors_text_encoder_has_the_names_of_transformers():
    theirs, ours = shapes("wan_text_authors"), shapes("wan_text_hf")
    places, unknown = plan(TEXT, theirs)
    assert not unknown and {name: theirs[source] for name, (source,) in places.items()} == ours


SAME = [  # in the authors' files, and in diffusers' or transformers'
    ("vae.conv1.weight", "vae.quant_conv.weight"),
    ("vae.conv2.weight", "vae.post_quant_conv.weight"),
    ("vae.encoder.middle.0.residual.2.weight", "vae.encoder.mid_block.resnets.0.conv1.weight"),
    ("vae.encoder.downsamples.4.residual.0.gamma", "vae.encoder.down_blocks.4.norm1.gamma"),
    ("vae.encoder.downsamples.5.resample.1.weight", "vae.encoder.down_blocks.5.resample.1.weight"),
    ("vae.decoder.middle.2.residual.3.gamma", "vae.decoder.mid_block.resnets.1.norm2.gamma"),
    ("vae.decoder.upsamples.9.residual.6.weight", "vae.decoder.up_blocks.2.resnets.1.conv2.weight"),
    ("vae.decoder.upsamples.7.time_conv.weight",
     "vae.decoder.up_blocks.1.upsamplers.0.time_conv.weight"),
    ("blocks.3.norm1.weight", "encoder.block.3.layer.0.layer_norm.weight"),
    ("blocks.3.norm2.weight", "encoder.block.3.layer.1.layer_norm.weight"),
    ("blocks.3.attn.k.weight", "encoder.block.3.layer.0.SelfAttention.k.weight"),
    ("blocks.3.ffn.gate.0.weight", "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"),
    ("blocks.3.ffn.fc1.weight", "encoder.block.3.layer.1.DenseReluDense.wi_1.weight")]


def test_both_layouts_name_the_same_tensors():
    """Where shapes are equal and no reference file is in the authors' names."""
    for theirs, other in SAME:
        if not theirs.startswith("vae."):
            assert plan(TEXT, [theirs])[0] == {other: [theirs]}
            continue
        tables = [wan.table(FULL, [name, "vae.conv1.weight"][:n]) for name, n in
                  ((theirs, 2), (other, 1))]
        made = [list(plan(table, [name])[0]) for table, name in zip(tables, (theirs, other))]
        assert made[0] == made[1] != []


@pytest.fixture(params=LAYOUTS)
def small_folder(request, tmp_path, monkeypatch) -> Path:
    """A published folder in a small size, and the family in that size."""
    monkeypatch.setattr(wan.WanFamily, "config", SMALL)
    monkeypatch.setattr(cli, "load_family", lambda name, built_in: wan.FAMILY)
    expected, source = tensor_shapes(wan.FAMILY, SMALL), published(request.param)
    held: dict[str, dict[str, Tensor]] = {"transformer": {}, "vae": {}}
    for target, names in plan(wan.table(SMALL, source), source)[0].items():
        if target not in expected:  # of a layer that the small one has not
            continue
        whole = weight(target, expected[target])
        for name, one in zip(names, whole.chunk(len(names))):
            of, _, rest = name.partition(".")
            held[of][rest] = one.contiguous()
    for file, tensors in zip(LAYOUTS[request.param], held.values()):
        path = tmp_path / "Wan2.1" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (torch.save if path.suffix == ".pth" else save_file)(tensors, path)
    return tmp_path / "Wan2.1"


@pytest.fixture
def encoded(monkeypatch) -> None:
    """Prompts have states, without UMT5."""
    def encode(self, prompts, device, dtype):
        return torch.stack([weight(p, self.config.context_shape) for p in prompts]).to(
            device, dtype)

    monkeypatch.setattr(wan.PromptEncoder, "encode", encode)


def converted(source: Path, out: Path) -> int:
    return cli.main(["--family", "examples.wan", str(source), "-o", str(out)])


def test_a_small_folder_converts_and_samples(small_folder, tmp_path, encoded, monkeypatch):
    """The same network from both layouts: the weights that the rule gives to our names."""
    out = tmp_path / "a.safetensors"
    assert converted(small_folder, out) == 0
    pipeline = load(out, family=wan.FAMILY)
    state = pipeline.networks.state_dict()
    assert all(torch.equal(x, weight(name, tuple(x.shape))) for name, x in state.items())
    assert pipeline.config.encoder.folder == str(small_folder) and pipeline.config.side == 16
    (video,) = pipeline.sample("a test")
    assert video.frames[0].shape == (9, 16, 32, 3) and video.fps == [16]
    with pytest.raises(UserError, match="scale=2; of wan"):
        pipeline.sample("a test", scale=2)
    monkeypatch.setattr(check, "matrix_rate", lambda *_: 1e12)
    checkpoint, settings = describe(out, wan.FAMILY), pipeline.settings()
    with pytest.raises(UserError, match="scale=2; of wan this makes key frames alone"):
        pipeline.sample("a test", replace(settings, scale=2))
    said = check.report(checkpoint, settings, Running())
    assert any("  9 frames of 16x32, 2 steps" in line for line in said)
    lengths = checkpoint.lengths(settings)  # of frames, not of latents
    (named,) = Result(tmp_path, "a test", {}, 0, settings, "", lengths, [16.0]).videos
    assert named.name.startswith("a-test") and named.name.endswith("_9f.mp4")


def test_the_command_writes_each_clip(small_folder, tmp_path, encoded, capsys):
    """The key video is that of `Pipeline.sample`; each correction runs, in bfloat16 too."""
    out, made = tmp_path / "a.safetensors", tmp_path / "made"
    assert converted(small_folder, out) == 0
    asked = [str(out), "--frames", "9", "--height", "16", "--width", "32", "--steps", "2",
             "--device", "cpu", "--outdir", str(made)]
    assert main([*asked, "--scale", "4", "--correct", "carried", "--join", "0.5"]) == 0
    assert sorted(path.name for path in made.iterdir()) == [
        "wan-0-17.mp4", "wan-0-33.mp4", "wan-0-9.mp4"]
    assert main(asked) == 1 and "wan-0-9.mp4 is there already" in capsys.readouterr().err
    for correct in ("none", "averages"):
        assert main([*asked, "--correct", correct, "--dtype", "bfloat16", "--outdir",
                     str(made / correct)]) == 0
    capsys.readouterr()
    for wrong, said in ((["--frames", "8"], "1 + 4m frames"),
                        (["--correct", "lines", "--at", "2"], "are 0 to 1"),
                        (["--frames", "13"], "needed, 5 to 9"),
                        (["--correct", "lines", "--rounds", "0"], "one or more is needed"),
                        (["--at", "0.5"], "are of corrections through frames"),
                        (["--outdir", str(out)], "is a file; name a folder"),
                        (["--height", "20"], "multiple of 16")):
        assert main([*asked, "--seed", "2", *wrong]) == 1
        assert said in capsys.readouterr().err
    assert looks_like(published("authors")) == looks_like(published("diffusers"))


def test_a_folder_without_its_autoencoder_is_refused(small_folder, tmp_path, capsys):
    for path in small_folder.rglob("*"):
        if path.is_file() and "vae" in str(path.relative_to(small_folder)).lower():
            path.unlink()
    assert converted(small_folder, tmp_path / "a.safetensors") == 1
    said = capsys.readouterr().err
    assert "vae has no weights" in said or "Wan2.1_VAE.pth" in said


@pytest.mark.parametrize("change", [{"heads": 1, "head_dim": 7}, {"heads": 0}, {"patch": 0},
                                    {"time_dim": 7}, {"overlap": 3}])
def test_a_config_that_is_no_network_is_refused(change):
    with pytest.raises(UserError):
        replace(SMALL.unet, **change)


@pytest.mark.parametrize("change", [{"time": (True,)}, {"mean": (0.0,)}, {"channels": 3},
                                    {"std": (0.0,) * 16}])
def test_a_config_that_is_no_autoencoder_is_refused(change):
    with pytest.raises(UserError):
        replace(SMALL.vae, **change)


def test_what_the_text_encoder_needs_is_told(tmp_path, monkeypatch):
    def read(folder: Path | str) -> None:
        wan.PromptEncoder(wan.UMT5Config(str(folder))).encode(["a"], torch.device("cpu"),
                                                              torch.float32)

    monkeypatch.delenv("WAN_TEXT", raising=False)
    with pytest.raises(UserError, match="neither a folder text_encoder/ nor a .*WAN_TEXT"):
        read("/nowhere")
    (tmp_path / "text_encoder").mkdir()
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setenv("WAN_TEXT", str(tmp_path))
    with pytest.raises(UserError, match=r'pip install "\.\[t5\]"'):
        read("/nowhere")


def test_a_real_umt5_is_read_from_both_layouts(tmp_path, monkeypatch):
    """A tiny one with random weights: the folder, and its authors' file."""
    transformers = pytest.importorskip("transformers", reason='needs pip install ".[t5]"')
    sentencepiece = pytest.importorskip("sentencepiece", reason='needs pip install ".[t5]"')
    for tokenizer in (tmp_path / "folder/tokenizer", tmp_path / "authors/google/umt5-xxl"):
        tokenizer.mkdir(parents=True)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([f"a {c} circle" for c in ("red", "blue", "green")] * 3),
            model_prefix=str(tokenizer / "spiece"), vocab_size=25, pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, hard_vocab_limit=False, minloglevel=2)
        (tokenizer / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>",
            "unk_token": "<unk>", "extra_ids": 0}))
    sizes = {"vocab_size": 40, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2,
             "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    monkeypatch.setattr(text, "XXL", sizes)
    with torch.inference_mode(False):
        umt5 = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes))
        umt5.save_pretrained(tmp_path / "folder/text_encoder")
        state, names = umt5.state_dict(), plan(TEXT, shapes("wan_text_authors"))[0]
        torch.save({theirs: state[ours] for ours, (theirs,) in names.items() if ours in state},
                   tmp_path / "authors/models_t5_umt5-xxl-enc-bf16.pth")

    def encode(folder: str, width: int = 12) -> Tensor:
        encoder = wan.PromptEncoder(wan.UMT5Config(str(tmp_path / folder), 9, width))
        return encoder.encode(["a  red circle", ""], torch.device("cpu"), torch.float32)

    states = encode("folder")
    assert states.shape == (2, 9, 12) and states[1, 0].abs().max() > 0
    assert not states[1, 1:].any() and torch.equal(states, encode("authors"))
    with pytest.raises(UserError, match="12 channels, not 16"):
        encode("folder", 16)


def test_a_long_prompt_keeps_its_end():
    encoder = wan.PromptEncoder(wan.UMT5Config(tokens=4, width=1))
    umt5 = lambda ids, attention_mask: (ids[..., None].float(),)  # noqa: E731
    umt5.device = "cpu"
    states, lost = encoder.run(lambda _: {"input_ids": [5, 6, 7, 8, 9, 1]}, umt5, "")
    assert states.flatten().tolist() == [5, 6, 7, 1] and lost == 2
    states, lost = encoder.run(lambda _: {"input_ids": [5, 1]}, umt5, "")
    assert states.flatten().tolist() == [5, 1, 0, 0] and lost == 0


def test_prompts_are_cleaned_as_published():
    assert text.cleaned("  a&amp;amp;b \n  c ") == "a&b c"


# --- its autoencoder


def test_a_prefix_of_frames_is_a_prefix_of_latents(vae):
    x = torch.randn(2, 17, 3, 16, 16)
    with torch.inference_mode():
        whole, pieces, part = vae.encode(x), vae.encode(x, 2), vae.encode(x[:, :9])
        assert_close(whole, pieces)
        assert_close(whole[:, :3], part)
        assert_close(vae.decode(whole)[:, :9], vae.decode(part))
        assert_close(vae.decode(whole, 2), vae.decode(whole))
        assert torch.equal(vae.decode(whole[0]), vae.decode(whole[:1])[0])
    with pytest.raises(ValueError, match=r"7 frames; 1 \+ 4m are needed, 5 for one"):
        vae.encode(x[:, :7])


# --- positions and windows

CONTEXT = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(1))
T = torch.full((1,), 600.0)


def test_whole_positions_are_those_it_was_trained_on_and_only_distances_count(network):
    x, at = torch.randn(1, 3, 16, 4, 4), torch.arange(3.0)[None]
    plain = network(x, T, CONTEXT)
    assert torch.equal(network(x, T, CONTEXT, at), plain)
    half = network(x, T, CONTEXT, at / 2)
    assert_close(network(x, T, CONTEXT, at / 2 + 7.25), half, rtol=0, atol=1e-5)
    assert (half - plain).abs().max() > 1e-3
    near = network(x, T, CONTEXT, at / 2 + torch.tensor([[0.0, 1e-4, 0.0]]))
    assert 0 < (near - half).abs().max() < 1e-2 * (half - plain).abs().max()


def test_positions_stand_where_the_frames_of_latents_do():
    assert dense.last_frames(5, 2).tolist() == [0, 0.5, 1, 1.5, 2]


def test_each_window_attends_to_itself_and_windows_are_fused(network):
    """Inside attention: as attention of each window's frames alone, weighted."""
    attn, h, spans = network.blocks[0].attn, torch.randn(1, 5, 4, 24), windows(5, 3, 2)
    assert spans == [(0, 3), (1, 4), (2, 5)]
    at = dense.last_frames(5, 2)[None]

    def alone(start: int, end: int) -> Tensor:
        rope = wan.transformer.rotations(at[:, start:end], 2, 2, 12)
        return attn(h[:, start:end], rope, [(0, end - start)])

    wanted = torch.zeros_like(h)
    for (start, end), share in zip(spans, fusion_matrix(spans)):
        wanted[:, start:end] += share[:, None, None] * alone(start, end)
    rope = wan.transformer.rotations(at, 2, 2, 12)
    assert_close(attn(h, rope, spans), wanted)
    assert (attn(h, rope, [(0, 5)]) - wanted).abs().max() > 1e-3


def test_a_clip_of_one_window_has_none(network):
    x, bus = torch.randn(1, 3, 16, 4, 4), HiddenStateBus(3, (2,), 2)
    assert torch.equal(network(x, T, CONTEXT, None, bus.stage(1)), network(x, T, CONTEXT))


def test_windows_are_the_stages(network):
    """Not the config's; without a stage there are none."""
    x = torch.randn(1, 5, 16, 4, 4)
    whole, *others = (network(x, T, CONTEXT, None, HiddenStateBus(w, (2,), overlap).stage(1))
                      for w, overlap in ((5, 0), (3, 2), (3, 0)))
    assert torch.equal(network(x, T, CONTEXT), whole)
    assert not torch.equal(others[0], others[1]) and not torch.equal(others[0], whole)


def test_norms_are_in_float32():
    h = torch.randn(1, 1, 4, 24).bfloat16() + 30
    shift, scale = torch.randn(2, 24).bfloat16()
    made = wan.transformer.modulated(h, shift, scale)
    assert torch.equal(made, wan.transformer.modulated(h.float(), shift, scale).bfloat16())


# --- corrections


class Frames:
    """An autoencoder that has frames for latents."""

    def decode(self, z: Tensor, chunk: int | None) -> Tensor:
        return z

    encode = decode


@pytest.mark.parametrize("lift", [lines, carried])
def test_frames_that_agree_with_the_key_frames_stay(lift):
    x = torch.rand(1, 9, 3, 12, 12)
    assert torch.equal(dense.corrected(x, x[:, ::2], lift), x)
    through = dense.ThroughFrames(Frames(), lift)
    assert torch.equal(through(0, x, x[:, ::2]), x)
    other = torch.rand(1, 5, 3, 12, 12)
    assert torch.equal(dense.corrected(x, other, lift)[:, ::2], other)
    assert_close(through(0, x, other)[:, ::2], other)
    with pytest.raises(ValueError, match="9 frames for 4 key frames"):
        dense.corrected(x, other[:, :4], lift)


def test_each_round_of_a_correction_is_one_more():
    class Half(Frames):  # an autoencoder that loses half of what is changed
        def encode(self, x: Tensor, chunk: int | None) -> Tensor:
            return x / 2

    x, y = torch.rand(1, 9, 3, 4, 4), torch.rand(1, 5, 3, 4, 4)
    for rounds in (1, 3):
        left = y - dense.ThroughFrames(Half(), rounds=rounds)(0, x, y)[:, ::2]
        assert_close(left, (y - x[:, ::2]) / 2**rounds)


def test_the_lift_is_guided_by_the_key_frames():
    x, y, seen = torch.rand(1, 9, 3, 4, 4), torch.rand(1, 5, 3, 4, 4), []

    def lift(n: int, change: Tensor, keys: Tensor) -> Tensor:
        seen.append((n, change, keys))
        return lines(n, change, keys)

    through = dense.ThroughFrames(Frames(), lift)
    through(0, x, y)
    assert seen[0][0] == 2 and torch.equal(seen[0][1], y - x[:, ::2])
    assert torch.equal(seen[0][2], y)
    begun = through.begin(y)
    assert begun.shape == x.shape and torch.equal(begun[:, ::2], y)
    assert_close(begun[:, 1::2], (y[:, 1:] + y[:, :-1]) / 2)


def test_a_correction_through_frames_leaves_what_the_autoencoder_cannot_hold(vae):
    """Of a clip that agrees with itself nothing changes, though encoding what was decoded does not
    give it back; another clip's frames come nearer."""
    z = torch.randn(1, 3, 16, 2, 2)
    with torch.inference_mode():
        frames = vae.decode(z).clamp(-1, 1)
        assert (vae.encode(frames) - z).abs().max() > 0.1

        class Keys(dense.ThroughFrames):
            def decode(self, z: Tensor) -> Tensor:
                return frames[:, ::2] if z.shape[1] == 2 else super().decode(z)

        assert torch.equal(Keys(vae)(0, z, z[:, :2]), z)
    assert torch.equal(dense.ThroughFrames(vae, steps=(1,))(0, z, z[:, :2]), z)


def test_averages_of_pairs_are_the_operator_a2():
    x, y = torch.randn(1, 5, 4, 2, 2), torch.randn(1, 3, 4, 2, 2)
    padded = torch.cat([x, x[:, :1]], dim=1)  # A2 does not observe the last
    a2 = dense.Pairs.averages(4)
    assert_close(a2.measure(x), A2(2).measure(padded))
    assert_close(a2(0, x, y), back_project(padded, y, A2(2))[:, :5])
    assert torch.equal(a2(0, x, a2.measure(x)), x)


def test_a_fitted_map_is_the_one_that_made_the_latents():
    matrix, bias, longer = torch.randn(4, 8), torch.randn(4), torch.randn(3, 9, 4, 4, 4)
    shorter = dense.Pairs(matrix, bias).measure(longer)
    fitted = dense.Pairs.fitted(shorter, longer)
    assert_close(fitted.matrix, matrix, rtol=1e-3, atol=1e-4)
    assert_close(fitted.bias, bias, rtol=1e-3, atol=1e-4)
    y = torch.randn(3, 5, 4, 4, 4)
    assert_close(fitted.measure(fitted(0, longer, y)), y, rtol=1e-3, atol=1e-3)


# --- dense clips


def predicted(network: nn.Module) -> dense.Predict:
    settings = settings_for(wan.FAMILY, SMALL)
    guide = Guidance(network, [Branch(CONTEXT), Branch(-CONTEXT)], settings)
    return lambda timestep, x, at, stage: guide(x, timestep, at, stage)


def clips(network: nn.Module, noise: list[Tensor], **given) -> list[Tensor]:
    with torch.inference_mode():
        return dense.sample_dense(predicted(network), SMALL.sampler, 3, noise, 3, 2, **given)


NOISE = [e[None] for e in dense.noises((16, 4, 4), 3, 3, seed=5)]


def test_the_key_video_is_what_it_is_alone(network, vae):
    """Bitwise, whatever follows it; what is switched off changes nothing, bitwise."""
    (alone,) = clips(network, NOISE[:1])
    plain = clips(network, NOISE)
    assert [x.shape[1] for x in plain] == [3, 5, 9]
    through = dense.ThroughFrames(vae, steps=(1, 2))
    for given in ({}, {"correct": through}, {"correct": dense.Pairs.averages(16)},
                  {"join": 2, "begin": through.begin}):
        made = clips(network, NOISE, **given)
        assert torch.equal(made[0], alone)
        assert all(torch.equal(x, y) for x, y in zip(made, plain)) == (not given)
    off = clips(network, NOISE, correct=replace(through, steps=()))
    assert all(torch.equal(x, y) for x, y in zip(off, plain))


def test_the_network_sees_each_clip_in_windows_at_its_own_rate(network):
    seen, indices = [], []

    def watch(timestep, x, at, stage):
        indices.append(stage.index)
        seen.append((at.tolist(), windows(x.shape[1], stage.window, stage.overlap)))
        return x

    dense.sample_dense(watch, SMALL.sampler, 1, NOISE, 3, 2)
    assert indices == [0, 1, 2] and seen[1] == ([0, 0.5, 1, 1.5, 2], [(0, 3), (1, 4), (2, 5)])
    assert [len(at) for at, _ in seen] == [3, 5, 9] and seen[2][0][-1] == 2


def test_longer_clips_join_at_the_level_of_their_step():
    """As what `begin` makes of predicted data, with their own noise; and are corrected, each by the
    one before, from then on."""
    steps, begun, corrected = [], [], []

    def predict(timestep, x, at, stage):
        steps.append((stage.index, x))
        return x

    def begin(y: Tensor) -> Tensor:
        begun.append(y)
        return lines(2, y)[:, :-1]

    def correct(step: int, x0: Tensor, y: Tensor) -> Tensor:
        corrected.append((step, x0.shape[1], y.shape[1]))
        return x0

    dense.sample_dense(predict, SMALL.sampler, 4, NOISE, 3, 2, correct, 2, begin)
    assert [index for index, _ in steps] == [0, 0, 0, 1, 2, 0, 1, 2]
    levels, x = SMALL.sampler.sampler(4).levels, steps[1][1]
    assert_close(begun[0], (1 - levels[1]) * x)  # with v = x
    for s in (1, 2):
        data = lines(2, begun[s - 1])[:, :-1]
        assert_close(steps[2 + s][1], data + levels[2] * (NOISE[s] - data))
    assert corrected == [(2, 5, 3), (2, 9, 5), (3, 5, 3), (3, 9, 5)]


def test_each_clip_has_noise_of_its_own_and_the_seeds():
    made, other = (dense.noises((4, 2, 2), 3, 3, seed) for seed in (1, 2))
    assert [len(e) for e in made] == [3, 5, 9]
    assert torch.equal(made[0], dense.noises((4, 2, 2), 3, 1, 1)[0])
    assert not made[0].eq(made[1][:3]).any() and not made[1].eq(made[2][::2]).any()
    assert not any(x.eq(y).any() for x, y in zip(made, other))


def test_shares_are_of_the_steps():
    assert [dense.step_at(share, 50) for share in (0, 0.5, 0.7, 0.9, 1)] == [0, 25, 35, 45, 49]
    assert dense.step_at(0.9, 1) == 0
    for share in (-0.1, 2, float("nan")):
        with pytest.raises(UserError, match="are 0 to 1"):
            dense.step_at(share, 50)


def test_clips_that_do_not_fit_are_refused(network):
    with pytest.raises(ValueError, match=r"clips of \[3, 9\] latents"):
        clips(network, [NOISE[0], NOISE[2]])
    for join in (3, 1):
        with pytest.raises(ValueError, match=f"join={join} of 3 steps"):
            clips(network, NOISE, join=join)


def test_unipc_begins_anew_where_steps_do_not_follow():
    x, data = torch.randn(4), torch.randn(4)
    sampler = wan.FlowConfig().sampler(4)
    first = sampler.step(2, x, data)
    sampler.step(3, first, data)
    assert torch.equal(sampler.step(2, x, data), first)
    with pytest.raises(UserError, match="adds no noise"):
        wan.FlowConfig().sampler(4, eta=1.0)


@pytest.mark.parametrize("kind", ["unipc", "unipc_authors", "euler"])
def test_a_flow_to_a_point_ends_there(kind):
    sampler, data = wan.FlowConfig(kind).sampler(5), torch.randn(4)
    noise = torch.randn(4)
    x = sampler.start(noise)
    for i in range(len(sampler)):
        x = sampler.step(i, x, sampler.x0(i, x, (x - data) / sampler.levels[i]))
    assert_close(x, data)


def test_what_a_video_needs_is_counted_in_frames():
    """A latent but the first is four frames: decoding it takes more than where each is one, though
    not four times, since the last frames of layers' inputs are held in both."""
    single = replace(SMALL, vae=replace(SMALL.vae, time=(False,) * 3))
    four, one = (needs(wan.FAMILY, config, settings_for(wan.FAMILY, config)).decoding
                 for config in (SMALL, single))
    assert 1.4 < four / one < 4
    assert [wan.FAMILY.frames(FULL, n) for n in (1, 2, 21)] == [1, 5, 81]


def test_networks_of_the_family_fit():
    assert isinstance(Networks(wan.FAMILY, SMALL).vae, wan.Autoencoder)
