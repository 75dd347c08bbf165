"""AnimateDiff in `examples/`: its published files, its LoRAs, its positions. Its figures are in
`tests/golden`."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError, convert, plan
from weights_convert.lora import merged
from weights_convert.source import LORA, Source, open_source
from zerosmooth.attention import frame_positions
from zerosmooth.bus import HiddenStateBus
from zerosmooth.checkpoint import load, tensor_shapes
from zerosmooth.config import ModelConfig
from zerosmooth.family import load_family
from zerosmooth.samplers import DDIMConfig

from .conformance import check, report
from .full_size import EXAMPLES, Shapes, schedule, shapes
from .parity import weight

ROOT = Path(__file__).parent.parent
# as the commands load it
ad = sys.modules[type(load_family(str(ROOT / "examples/animatediff.py"), {})).__module__]
IMAGES = ("folder", "file")
OWNERS = ("authors", "diffusers")  # whose names the motion modules have


def variant(config: ModelConfig, version: str, norms: str = "authors") -> ModelConfig:
    return replace(config, unet=replace(config.unet, version=version, norms=norms))


def published(image: str, version: str, owner: str) -> Shapes:
    """All names and shapes as the converter sees them."""
    files = {"folder": {"unet.": ("animatediff_sd15_unet_diffusers",),
                        "vae.": ("lavie_vae_diffusers",), "text_encoder.": ("lavie_text_hf",)},
             "file": {"sd.": EXAMPLES["animatediff_file"]["fine_tune.safetensors"]}}[image]
    files = {**files, "motion.": (f"animatediff_{version}_motion_{owner}",)}
    return {prefix + name: shape for prefix, names in files.items()
            for name, shape in shapes(*names).items()}


FULL = ad.FAMILY.config


@pytest.mark.parametrize(("image", "version", "owner"), [
    ("folder", "v3", "authors"),
    pytest.param("file", "v1", "authors", marks=pytest.mark.long),
    pytest.param("file", "v2", "diffusers", marks=pytest.mark.long)])
def test_every_published_tensor_has_its_place(image, version, owner):
    """At full size: names and shapes only. All are read but the positions' tables."""
    source, read = published(image, version, owner), []
    config = variant(FULL, ad.version_of(source))
    assert config.unet.version == version

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(source[name], device="meta")

    expected = tensor_shapes(ad.FAMILY, config)
    made = {name: tuple(x.shape)
            for name, x in convert(ad.table(config), source, read_meta, expected)}
    assert made == expected and len(read) == len(set(read))
    assert {name for name in source if name not in read} == {name for name in source
                                                             if name.endswith(".pe")}
    rest = {name: shape for name, shape in source.items() if name != read[0]}
    with pytest.raises(ConversionError, match="has no tensor for 1|of another shape 1"):
        convert(ad.table(config), rest, read_meta, expected)


def test_a_version_is_told_by_what_is_in_the_file():
    v3 = shapes("animatediff_v3_motion_authors")
    assert ad.version_of(v3) == "v3"
    with pytest.raises(ConversionError, match="add --motion"):
        ad.version_of(shapes("animatediff_sd15_unet_diffusers"))
    with pytest.raises(ConversionError, match="lack the positions"):
        ad.version_of({name: shape for name, shape in v3.items() if not name.endswith(".pe")})


# --- files of a small size through the command


SMALL = replace(FULL, unet=replace(FULL.unet, channels=32, context_dim=16, frames=4),
                vae=replace(FULL.vae, channels=32),
                encoder=replace(FULL.encoder, vocab_size=600, width=16, heads=2, pad_token=599),
                defaults=replace(FULL.defaults, height=64, width=64, steps=1))


@pytest.fixture(autouse=True)
def small_family(monkeypatch):
    """The family in a small size, so that the command itself can run on small files."""
    monkeypatch.setattr(ad.AnimateDiff, "config", SMALL)
    monkeypatch.setattr(cli, "load_family", lambda name, built_in: ad.FAMILY)


@cache
def tensors(image: str, version: str, owner: str) -> dict[str, Tensor]:
    """Published names with small tensors, of which those that go to one place in any layout are the
    same."""
    full, config = published(image, version, owner), variant(SMALL, version)
    ours, table, made = tensor_shapes(ad.FAMILY, config), ad.table(config), {}
    for target, names in plan(table, full)[0].items():
        whole = weight(target, ours[target])
        for name, part in zip(names, whole.chunk(len(names))):
            made[name] = part.reshape(*part.shape, *(1,)
                                      * (len(full[name]) - part.ndim)).contiguous()
    return {**{name: torch.zeros(shape[:2]) for name, shape in full.items()
               if name.endswith(".pe")}, **made}


def write(path: Path, image: str, version: str, owner: str) -> list:
    """Writes the files, and returns the converter's arguments for them."""
    held = tensors(image, version, owner)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in held.items() if name.startswith(prefix)}

    source, motion = path / "sd15", path / "motion.ckpt"
    if image == "folder":
        for folder, name in {"unet": "diffusion_pytorch_model",
                             "vae": "diffusion_pytorch_model"}.items():
            (source / folder).mkdir(parents=True)
            save_file(part(f"{folder}."), source / folder / f"{name}.safetensors")
        (source / "text_encoder").mkdir()
        save_file(part("text_encoder."), source / "text_encoder/model.safetensors")
    else:
        path.mkdir(parents=True, exist_ok=True)
        source = path / "fine_tune.safetensors"
        extra = {"model_ema.decay": torch.ones(()), **schedule(DDIMConfig())}
        save_file({**part("sd."), **extra}, source)
    if owner == "authors":
        torch.save({"state_dict": {f"module.{name}": x for name, x in part("motion.").items()}},
                   motion)
    else:
        motion = path / "adapter"
        motion.mkdir()
        save_file(part("motion."), motion / "diffusion_pytorch_model.safetensors")
    return [source, "--motion", motion]


def in_memory(held: dict[str, Tensor]) -> Source:
    return Source(Path("held"), {name: tuple(x.shape) for name, x in held.items()},
                  held.__getitem__, (Path("held"),))


def run(*arguments) -> int:
    return cli.main(["--family", "examples/animatediff.py", *map(str, arguments)])


@pytest.mark.long
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_layout_gives_the_same_checkpoint_and_it_samples(tmp_path, version):
    made = []
    for image in IMAGES:
        for owner in OWNERS:
            out = tmp_path / f"{image}_{owner}.safetensors"
            assert run(*write(tmp_path / out.stem, image, version, owner), "-o", out) == 0
            made.append(load_file(out))
    assert all(torch.equal(other[name], x) for other in made for name, x in made[0].items())
    pipeline = load(out, family=ad.FAMILY)
    assert pipeline.config.unet.version == version and pipeline.config.unet.norms == "authors"
    (video,) = pipeline.sample("a test", key_frames=4, scale=2)
    assert [tuple(x.shape) for x in video.frames] == [(4, 64, 64, 3), (8, 64, 64, 3)]


@pytest.mark.long
def test_a_pipelines_folder_and_files_of_old_convert_too(tmp_path):
    """A UNet with motion modules in it, as diffusers saves a pipeline; a text encoder without one
    level of names."""
    whole = tmp_path / "a.safetensors"
    source, _, motion = write(tmp_path / "a", "folder", "v3", "diffusers")
    assert run(source, "--motion", motion, "-o", whole, "--norms", "diffusers") == 0
    weights = source / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | load_file(motion / "diffusion_pytorch_model.safetensors"),
              weights)
    assert run(source, "-o", tmp_path / "b.safetensors") == 0
    source, _, motion = write(tmp_path / "c", "file", "v3", "diffusers")
    save_file({name.replace("text_model.", ""): x for name, x in load_file(source).items()}, source)
    assert run(source, "--motion", motion, "-o", tmp_path / "c.safetensors") == 0
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(b[name], x) and torch.equal(c[name], x) for name, x in a.items())
    assert load(whole, family=ad.FAMILY).config.unet.norms == "diffusers"


def test_wrong_sources_are_told(tmp_path, capsys):
    source, _, motion = write(tmp_path / "a", "folder", "v3", "authors")
    out = tmp_path / "out.safetensors"
    for reason, arguments in {"add --motion": [source],
                              "1 --lora and 2 --lora_scale": [source, "--lora", motion,
                                                              "--lora_scale", 1, "--lora_scale", 2],
                              "is no LoRA of these networks": [source, "--motion", motion, "--lora",
                                                               motion],
                              "there are no motion modules": [source, "--motion", source / "vae"],
                              "unet has no weights": [source / "unet", "--motion", motion]}.items():
        assert run(*arguments, "-o", out) == 1
        assert reason in (said := capsys.readouterr().err), said
        assert not out.exists()


# --- LoRAs

QUERY = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"
MOTION = "up_blocks.1.motion_modules.0."
INSIDE = "temporal_transformer.transformer_blocks.0"
# up and down; our tensor; which third of it; whether alpha is said
NAMINGS: dict[str, tuple[str, str, str, bool]] = {
    "kohya": (
        "lora_unet_" + QUERY.replace(".", "_") + "_to_k.lora_{}.weight",
        "unet.encoder.1.transformer.blocks.0.self_attn.to_qkv.weight",
        "1/3",
        True,
    ),
    "kohya's feed-forward": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_{}.weight",
        "unet.middle.transformer.blocks.0.ff.proj_in.weight",
        "0/1",
        True,
    ),
    "kohya's projection, a 1x1 convolution": (
        "lora_unet_up_blocks_3_attentions_2_proj_in.lora_{}.weight",
        "unet.decoder.11.transformer.proj_in.weight",
        "0/1",
        True,
    ),
    "kohya's text encoder": (
        "lora_te_text_model_encoder_layers_3_self_attn_v_proj.lora_{}.weight",
        "encoder.blocks.3.to_qkv.weight",
        "2/3",
        True,
    ),
    "the authors'": (
        QUERY + ".processor.to_q_lora.{}.weight",
        "unet.encoder.1.transformer.blocks.0.self_attn.to_qkv.weight",
        "0/3",
        False,
    ),
    "the authors' output": (
        QUERY.replace("attn1", "attn2") + ".processor.to_out_lora.{}.weight",
        "unet.encoder.1.transformer.blocks.0.cross_attn.to_out.weight",
        "0/1",
        False,
    ),
    "the authors' motion": (
        f"{MOTION}{INSIDE}.attention_blocks.1.processor.to_v_lora.{{}}.weight",
        "unet.decoder.3.motion.blocks.0.attns.1.to_qkv.weight",
        "2/3",
        False,
    ),
    "diffusers' motion": (
        "unet." + MOTION + "transformer_blocks.0.attn2.to_k.lora.{}.weight",
        "unet.decoder.3.motion.blocks.0.attns.1.to_qkv.weight",
        "1/3",
        False,
    ),
    "diffusers' text encoder": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight",
        "encoder.blocks.0.to_qkv.weight",
        "0/3",
        False,
    ),
    "PEFT": (
        "base_model.model." + QUERY.replace("attn1", "attn2") + ".to_v.lora_{}.default.weight",
        "unet.encoder.1.transformer.blocks.0.cross_attn.to_kv.weight",
        "1/2",
        False,
    ),
    "PEFT with a name of its own": (
        "base_model.model." + QUERY + ".to_q.lora_{}.my_style.weight",
        "unet.encoder.1.transformer.blocks.0.self_attn.to_qkv.weight",
        "0/3",
        False,
    ),
    "ComfyUI": (
        "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_k.lora_{}.weight",
        "unet.encoder.1.transformer.blocks.0.self_attn.to_qkv.weight",
        "1/3",
        True,
    ),
    "kohya's first text encoder": (
        "lora_te1_text_model_encoder_layers_3_self_attn_v_proj.lora_{}.weight",
        "encoder.blocks.3.to_qkv.weight",
        "2/3",
        True,
    ),
    "PEFT in diffusers": (
        "unet." + QUERY + ".to_out.0.lora_{}.weight",
        "unet.encoder.1.transformer.blocks.0.self_attn.to_out.weight",
        "0/1",
        False,
    ),
}


@pytest.mark.parametrize(("naming", "image"), [
    *((naming, "folder") for naming in NAMINGS),
    *(pytest.param(naming, "file", marks=pytest.mark.long) for naming in NAMINGS)])
def test_a_lora_is_added_to_its_weight_and_to_no_other(naming, image):
    """W + scale * alpha / rank * up @ down, where alpha is the rank if nothing is said."""
    pattern, target, part, says_alpha = NAMINGS[naming]
    table, source = ad.table(ad.FAMILY.config), in_memory(tensors(image, "v3", "authors"))
    index, parts = map(int, part.split("/"))
    changed = [name for name in source.shapes if table.place(name) == (target, index)]
    assert len(changed) == 1
    plain = source.read(changed[0])
    down, up = torch.randn(3, *plain.shape[1:]), torch.randn(len(plain), 3, *(1,)
                                                             * (plain.ndim - 2))
    lora = {pattern.format(side): x
            for side, x in zip(("A", "B") if "PEFT" in naming else ("down", "up"), (down, up))}
    if says_alpha:
        lora[pattern.partition(".lora_{}")[0] + ".alpha"] = torch.tensor(6.0)
    result = merged(source, in_memory(lora), table, 0.5)
    factor = 0.5 * (2 if says_alpha else 1)
    expected = plain + factor * torch.einsum("or,ri->oi", up.flatten(1),
                                             down.flatten(1)).reshape(plain.shape)
    assert_close(result.read(changed[0]), expected)
    assert all(result.read(name) is source.read(name) for name in source.shapes
               if name not in changed)


def test_alpha_in_a_files_settings_counts(tmp_path):
    """As diffusers writes them beside what PEFT trained; alphas by layer it refuses."""
    table, source = ad.table(ad.FAMILY.config), in_memory(tensors("folder", "v3", "authors"))
    begin = f"unet.{QUERY}.to_out.0.lora_"
    lora = {f"{begin}A.weight": torch.randn(3, 32), f"{begin}B.weight": torch.randn(32, 3)}

    def change(**told) -> Tensor:
        text = json.dumps({f"unet.{key}": value for key, value in told.items()})
        save_file(lora, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": text})
        update = open_source(tmp_path / "lora.safetensors", takes=(LORA,))
        name = f"unet.{QUERY}.to_out.0.weight"
        return merged(source, update, table, 0.5).read(name) - source.read(name)

    plain = change(r=3)
    assert_close(plain, 0.5 * lora[f"{begin}B.weight"] @ lora[f"{begin}A.weight"])
    assert_close(change(lora_alpha=12, r=3, alpha_pattern={}, use_dora=False), 4 * plain,
                 atol=1e-5, rtol=1e-5)
    for told in ({"alpha_pattern": {"to_q": 8}}, {"use_rslora": True}, {"lora_alpha": "a"},
                 {"lora_alpha": math.nan}):
        with pytest.raises(ConversionError, match="is not possible here; merge it"):
            change(**told)


def test_several_loras_add_up(tmp_path):
    arguments = write(tmp_path, "folder", "v2", "authors")
    name = f"mid_block.motion_modules.0.{INSIDE}.attention_blocks.0.processor.to_q_lora"
    lora = {f"{name}.down.weight": torch.randn(2, 128), f"{name}.up.weight": torch.randn(128, 2)}
    torch.save({"state_dict": lora}, tmp_path / "lora.ckpt")
    made = []
    for scales in ([], [0.5, 0.25], [0.75]):
        flags = [flag for scale in scales
                 for flag in ("--lora", tmp_path / "lora.ckpt", "--lora_scale", scale)]
        assert run(*arguments, *flags, "-o", tmp_path / "out.safetensors", "--overwrite") == 0
        made.append(load_file(tmp_path
                              / "out.safetensors")[
                "unet.middle.motion.blocks.0.attns.0.to_qkv.weight"])
    assert_close(made[1], made[2])
    assert not torch.allclose(made[0], made[1])


def test_a_lora_that_does_not_fit_is_refused():
    table, source = ad.table(ad.FAMILY.config), in_memory(tensors("folder", "v3", "authors"))
    fits = {f"{QUERY}.to_q.lora_A.weight": torch.zeros(2, 32),
            f"{QUERY}.to_q.lora_B.weight": torch.zeros(32, 2)}
    middle = "mid_block.motion_modules.0.transformer_blocks.0.attn1.to_q"  # which v3 has not
    for reason, lora in {
        "is a DoRA, not a LoRA; 1 of its": {**fits, f"{QUERY}.to_q.dora_scale": torch.zeros(32)},
        "2 of its tensors": {
            **fits,
            f"{middle}.lora_A.weight": torch.zeros(2, 128),
            f"{middle}.lora_B.weight": torch.zeros(128, 2),
        },
        "for a weight of (32, 32)": {**fits, f"{QUERY}.to_q.lora_A.weight": torch.zeros(2, 16)},
        "1 of its tensors have": {f"{QUERY}.to_q.lora_A.weight": torch.zeros(2, 32)},
        "is no LoRA of these networks; 0 of its tensors": {},
        "is for Stable Diffusion XL": {**fits, "lora_te2_x.lora_up.weight": torch.zeros(2, 2)},
        "is a LoHa": {f"{QUERY}.to_q.hada_w1_a": torch.zeros(2, 2)},
        "(32, 0) times (0, 32), for": {f"{QUERY}.to_q.lora_A.weight": torch.zeros(0, 32),
                         f"{QUERY}.to_q.lora_B.weight": torch.zeros(32, 0)},
        "as torch.int8": {name: x.to(torch.int8) for name, x in fits.items()},
        "has NaN": {name: x + torch.nan for name, x in fits.items()},
        "alpha of (2,); one finite number": {**fits, f"{QUERY}.to_q.alpha": torch.ones(2)},
        "alpha of (); one finite number": {**fits, f"{QUERY}.to_q.alpha": torch.tensor(torch.inf)},
        "twice, by " + QUERY: {**fits, **{f"unet.{name}": x for name, x in fits.items()}},
        f"twice, by {QUERY}.to_q.lora_A": {**fits, f"{QUERY}.to_q.lora.down.weight":
                                           torch.zeros(2, 32)},
    }.items():
        with pytest.raises(ConversionError, match=re.escape(reason)):
            merged(source, in_memory(lora), table, 1.0)


# --- the network


def network(version: str, norms: str) -> ad.AnimateDiffUNet:
    torch.manual_seed(0)
    config = ad.AnimateDiffConfig(channels=32, channel_mult=(1, 2), res_blocks=1,
                                  attention_resolutions=(1,), context_dim=12, frames=4, heads=2)
    return ad.AnimateDiffUNet(replace(config, motion_heads=2, version=version, norms=norms)).eval()


def ask(unet: ad.AnimateDiffUNet) -> Callable:
    context = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(1))

    def run(x, stage=None):
        return unet(x, torch.full((len(x),), 300), context.expand(len(x), -1, -1), stage=stage)

    return run


@pytest.mark.parametrize(("version", "norms"), [("v1", "authors"), ("v2", "diffusers")])
def test_it_conforms(version, norms):
    unet = network(version, norms)
    broken = check(unet, ask(unet), 4, (4, 4, 4), positions=frame_positions)
    assert not broken, report(broken)


def test_key_frames_keep_their_positions_and_the_others_lie_between():
    """Sines at even channels and cosines at odd ones, of position times 10000^(-2i/d)."""
    keys = ad.embed_positions(frame_positions(16, None), 8)
    angle = np.arange(16)[:, None] * 10_000.0 ** (-2 * np.arange(4) / 8)
    assert_close(keys[:, ::2], torch.from_numpy(np.sin(angle)).float())
    assert_close(keys[:, 1::2], torch.from_numpy(np.cos(angle)).float())
    more = ad.embed_positions(frame_positions(64, HiddenStateBus(16, (2, 2)).stage(2)), 8)
    assert_close(more[::4], keys)
    assert_close(more[2, 0], torch.tensor(np.sin(0.5)).float())


@pytest.mark.parametrize("norms", ad.NORMS)
@pytest.mark.parametrize("version", ad.VERSIONS)
def test_frames_do_not_move_through_norms_where_they_should_not(version, norms):
    """With motion modules that add nothing, a change in one frame reaches another only through
    shared statistics."""
    unet = network(version, norms)
    for module in unet.modules():
        if isinstance(module, ad.MotionModule):
            module.proj_out.weight.zero_()
            module.proj_out.bias.zero_()
    x = torch.randn(1, 4, 4, 4, 4)
    changed = torch.cat([x[:, :1] + 1, x[:, 1:]], dim=1)
    a, b = (ask(unet)(z)[:, 1:] for z in (x, changed))
    assert torch.equal(a, b) == (not unet.config.res_across_frames)
    assert unet.config.res_across_frames == (version == "v1" and norms == "authors")


def test_the_sampler_ends_at_the_data():
    """Its last step leads to no noise at all; from timestep 1, the next to last keeps a little."""
    sampler = ad.FAMILY.config.sampler.sampler(25, 0.0)
    assert sampler.timesteps[:2] == [961, 921] and sampler.timesteps[-1] == 1
    assert sampler.alpha_prev[-1] == 1 and sampler.sigma_prev[-1] == 0
    assert DDIMConfig(beta_schedule="linear").sampler(25, 0.0).sigma_prev[-1] > 0
