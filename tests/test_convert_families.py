"""Every layout that a family is published in: at full size by name and shape, in a small size
through the command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weights_convert import __main__ as cli
from weights_convert import svd
from weights_convert.engine import ConversionError, Table, convert, plan
from zerosmooth.checkpoint import describe, load, tensor_shapes
from zerosmooth.config import ModelConfig
from zerosmooth.families import FAMILIES

from .full_size import LAYOUTS, Shapes, shapes, write

PARTS = {  # of a layout's files: the prefix that its tensors get
    "lavie": {
        "lavie_base.pt": "unet",
        "stable-diffusion-v1-4/vae": "vae",
        "stable-diffusion-v1-4/text": "text_encoder",
    },
    "svd_folder": {"unet": "unet", "vae": "vae", "image_encoder": "image_encoder"},
}
SVD_UNUSED = ("attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias")


def prefix_of(layout: str, file: str) -> str:
    found = next((part for start, part in PARTS.get(layout, {}).items() if file.startswith(start)),
                 "")
    return f"{found}." if found else ""


def family_of(layout: str) -> str:
    return layout.removesuffix("_folder")


def published(layout: str) -> Shapes:
    """All names of a layout as the converter sees them."""
    return {prefix_of(layout, file) + name: shape for file, manifests in LAYOUTS[layout].items()
            for name, shape in shapes(*manifests).items()}


def small(family: str) -> ModelConfig:
    """The published config with fewer channels."""
    c = FAMILIES[family].config
    unet = {"channels": 32, "context_dim": 16}
    if family == "svd":
        return replace(c, unet=replace(c.unet, **unet, head_dim=8, condition_dim=8),
                       vae=replace(c.vae, channels=32),
                       encoder=replace(c.encoder, width=32, heads=2, out=16, image_size=28),
                       defaults=replace(c.defaults, height=64, width=64, steps=1))
    return replace(c, unet=replace(c.unet, **unet), vae=replace(c.vae, channels=32),
                   encoder=replace(c.encoder, vocab_size=600, width=16, heads=2, pad_token=599),
                   defaults=replace(c.defaults, height=64, width=64, steps=1))


def sources(layout: str, config: ModelConfig) -> Iterator[tuple[str, str, int, int, bool]]:
    """Of each published tensor that has a place: name, our tensor, which part of it, of how many,
    transposed."""
    full = published(layout)
    table: Table = FAMILIES[family_of(layout)].conversion.table(config, full)
    transposed = {target.removesuffix("^T") for _, target in table.rows if target.endswith("^T")}
    for target, names in plan(table, full)[0].items():
        for i, name in enumerate(names):
            yield name, target, i, len(names), target in transposed


def small_shapes(layout: str, config: ModelConfig) -> dict[str, Shapes]:
    """The layout's files with the shapes that a small config gives them; what has no place keeps a
    few numbers."""
    ours, full = tensor_shapes(FAMILIES[family_of(layout)], config), published(layout)
    found: Shapes = {}
    for name, target, _, parts, transposed in sources(layout, config):
        shape = ours[target][::-1] if transposed else ours[target]
        # a 1x1 convolution that is a linear layer here
        tail = (1,) * (len(full[name]) - len(shape))
        found[name] = (shape[0] // parts, *shape[1:], *tail)
    own, video = "conditioner.embedders.3.encoder.encoder.", "first_stage_model.encoder."
    found |= {video + name.removeprefix(own): shape for name, shape in found.items()
              if name.startswith(own)}
    return {file: {name: found.get(prefix_of(layout, file) + name, (2,) if "freqs" in name
                                   else (1,)) for name in shapes(*manifests)}
            for file, manifests in LAYOUTS[layout].items()}


@pytest.fixture
def small_families(monkeypatch):
    for family in ("lavie", "svd"):
        monkeypatch.setattr(FAMILIES[family], "config", small(family))


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, arguments)])
    return cli.main()


def make(layout: str, path: Path) -> Path:
    write(layout, path, small_shapes(layout, small(family_of(layout))))
    return path


def lavie_arguments(folder: Path) -> list:
    return ["lavie", folder / "lavie_base.pt", "--sd", folder / "stable-diffusion-v1-4"]


@pytest.mark.parametrize("layout", [
    layout if layout == "lavie" else pytest.param(layout, marks=pytest.mark.long)
    for layout in LAYOUTS])
def test_every_tensor_of_the_published_checkpoints_has_its_place(layout):
    """At full size: names and shapes only. Every one is read once, but for those that are dropped
    on purpose."""
    config, source, read = FAMILIES[family_of(layout)].config, published(layout), []

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(source[name], device="meta")

    table = FAMILIES[family_of(layout)].conversion.table(config, source)
    made = {name: tuple(x.shape)
            for name, x in convert(table, source, read_meta,
                                   tensor_shapes(FAMILIES[family_of(layout)], config))}
    assert made == tensor_shapes(FAMILIES[family_of(layout)], config)
    assert len(read) == len(set(read))
    left = {name for name in source if name not in read}
    text = "cond_stage_model.model."
    clip, own = "conditioner.embedders.0.open_clip.model.", "conditioner.embedders.3.encoder."
    allowed = {"vc": (f"{text}transformer.resblocks.23.", f"{text}logit_scale",
                      f"{text}text_projection"), "la": ("rotary_emb.freqs",),
               "sv": (*SVD_UNUSED, "first_stage_model.encoder.", f"{own}decoder.",
                      f"{own}post_quant_conv.", clip)}[layout[:2]]
    assert left and all(any(part in name for part in allowed) for name in left)
    assert not any(f"{clip}visual." in name or "resnets" in name for name in left)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_tensor_of_any_part_is_named(layout):
    config, source = FAMILIES[family_of(layout)].config, published(layout)
    used = [name for name, *_ in sources(layout, config)]
    for name in (used[0], used[len(used) // 2], used[-1]):
        rest = {k: v for k, v in source.items() if k != name}
        with pytest.raises(ConversionError, match="has no tensor for 1|of another shape 1"):
            convert(FAMILIES[family_of(layout)].conversion.table(config, rest),
                    rest, lambda n: None, tensor_shapes(FAMILIES[family_of(layout)], config))


@pytest.mark.parametrize("layout", ["lavie", "svd",
                                    pytest.param("svd_folder", marks=pytest.mark.long)])
def test_a_small_checkpoint_converts_and_samples(tmp_path, monkeypatch, small_families, layout):
    source, out = tmp_path / "stable-video-diffusion-img2vid", tmp_path / "out.safetensors"
    if layout == "svd":
        source = tmp_path / "svd.safetensors"
    make(layout, source)
    arguments = lavie_arguments(source) if layout == "lavie" else ["svd", source]
    assert run(monkeypatch, *arguments, "-o", out) == 0
    checkpoint = describe(out)
    assert checkpoint.config == small(family_of(layout)) and len(checkpoint.source_sha256) == 64
    pipeline = load(out)
    what = torch.zeros(30, 50, 3, dtype=torch.uint8) if "svd" in layout else "x"
    (video,) = pipeline.sample(what, key_frames=4, scale=2)
    assert [tuple(x.shape) for x in video.frames] == [(4, 64, 64, 3), (8, 64, 64, 3)]


@pytest.mark.parametrize("base", [pytest.param("svd", marks=pytest.mark.long), "svd_folder"])
def test_another_unet_in_diffusers_layout_goes_into_either_base(tmp_path, monkeypatch,
                                                                small_families, base):
    """As AnimateLCM publishes its own; the command says that it is a consistency model."""
    folder, source = make("svd_folder", tmp_path / "img2vid-xt"), tmp_path / "img2vid-xt"
    if base == "svd":
        source = make("svd", tmp_path / "svd_xt.safetensors")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    out = tmp_path / "lcm.safetensors"
    state = {name: torch.full_like(x, 0.25) for name, x in load_file(unet).items()}
    save_file(state, tmp_path / "AnimateLCM.safetensors")
    flags = ["--unet", tmp_path / "AnimateLCM.safetensors", "--consistency", "--num_frames", 25]
    assert run(monkeypatch, "svd", source, *flags, "-o", out) == 0
    made, config = load_file(out), describe(out).config
    assert all((x == 0.25).all() for name, x in made.items() if name.startswith("unet."))
    assert not any((x == 0.25).all() for name, x in made.items() if name.endswith("conv_in.weight")
                   and "vae" in name)
    assert (config.sampler.consistency, config.unet.frames) == (40, 25)
    assert (config.defaults.steps, config.defaults.eta, config.defaults.guidance_scale) == (4, 1.0,
                                                                                            1.2)


@pytest.mark.long
def test_a_folder_of_renamed_tensors_gives_the_same_checkpoint(tmp_path, monkeypatch,
                                                               small_families):
    """A single file's tensors under diffusers' names."""
    single, folder = make("svd", tmp_path / "svd.safetensors"), tmp_path / "img2vid"
    assert run(monkeypatch, "svd", single, "-o", tmp_path / "a.safetensors") == 0
    ours, config = load_file(tmp_path / "a.safetensors"), small("svd")
    held = small_shapes("svd_folder", config)
    places = {name: place for name, *place in sources("svd_folder", config)}
    for file, names in held.items():
        state = {}
        for name, shape in names.items():
            target, i, parts, _ = places.get(prefix_of("svd_folder", file) + name,
                                             (None, 0, 1, False))
            state[name] = torch.zeros(shape) if target is None else ours[target].chunk(parts)[
                i].reshape(shape).clone()
        (folder / file).parent.mkdir(parents=True)
        save_file(state, folder / file)
    assert run(monkeypatch, "svd", folder, "-o", tmp_path / "b.safetensors") == 0
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == ours.keys() and all(torch.equal(again[name], x)
                                               for name, x in ours.items())
    assert describe(tmp_path / "a.safetensors").config == describe(tmp_path
                                                                   / "b.safetensors").config


@pytest.mark.long
def test_other_file_kinds_and_names_in_a_folder_give_the_same(tmp_path, monkeypatch,
                                                              small_families):
    """Attention names of before 2023, .bin and .safetensors, half-precision files, where there is
    nothing better."""
    folder = make("lavie", tmp_path / "lavie")
    assert run(monkeypatch, *lavie_arguments(folder), "-o", tmp_path / "a.safetensors", "--dtype",
               "float16") == 0
    sd = folder / "stable-diffusion-v1-4"
    state = torch.load(sd / "vae/diffusion_pytorch_model.bin", weights_only=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, x in state.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = x.half()
    assert renamed.keys() != state.keys()
    (sd / "vae/diffusion_pytorch_model.bin").unlink()
    save_file(renamed, sd / "vae/diffusion_pytorch_model.fp16.safetensors")
    text = load_file(sd / "text_encoder/model.safetensors")
    (sd / "text_encoder/model.safetensors").unlink()
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(text, sd / "text_encoder/pytorch_model.bin")
    torch.save(torch.load(folder / "lavie_base.pt", weights_only=True)["ema"], folder
               / "lavie_base.pt")
    assert run(monkeypatch, *lavie_arguments(folder), "-o", tmp_path / "b.safetensors", "--dtype",
               "float16") == 0
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(b[name], x) for name, x in a.items())


def test_the_reference_image_has_its_own_encoder_or_the_videos(tmp_path, monkeypatch,
                                                               small_families):
    single = make("svd", tmp_path / "svd.safetensors")
    assert run(monkeypatch, "svd", single, "-o", tmp_path / "own.safetensors") == 0
    state = load_file(single)
    own = "conditioner.embedders.3.encoder."
    left = {name: x for name, x in state.items() if not name.startswith(own)}
    save_file(left, single)
    assert run(monkeypatch, "svd", single, "-o", tmp_path / "video.safetensors") == 0
    name = "vae.encoder.conv_in.weight"
    made = {which: load_file(tmp_path / f"{which}.safetensors") for which in ("own", "video")}
    assert torch.equal(made["own"][name], state[f"{own}encoder.conv_in.weight"])
    assert torch.equal(made["video"][name], state["first_stage_model.encoder.conv_in.weight"])
    assert torch.equal(made["video"]["vae.quant_conv.weight"][..., 0, 0], torch.eye(8))
    assert not made["video"]["vae.quant_conv.bias"].any() and made["own"][
        "vae.quant_conv.bias"].any()


def test_the_source_is_never_overwritten(tmp_path, monkeypatch, small_families, capsys):
    single = make("svd", tmp_path / "svd_xt.safetensors")
    size = single.stat().st_size
    assert run(monkeypatch, "svd", single, "-o", single, "--overwrite") == 1
    assert "is the source itself" in capsys.readouterr().err and single.stat().st_size == size


def test_the_variant_is_told_by_the_name_or_the_flag(tmp_path, monkeypatch, small_families, capsys):
    single = make("svd", tmp_path / "svd_xt_1_1.safetensors")
    out = tmp_path / "out.safetensors"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match="add --num_frames"):
        svd.frames_of(Path("model.safetensors"), None)
    for frames, names in {
        25: "svd_xt.safetensors  svd_xt.fp16.safetensors  svd_xt (1).safetensors  svd_xt1.1  "
            "svd-img2vid-xt1-1  stable-video-diffusion-img2vid-xt-1-1  svdXT_v11.ckpt  "
            "stableVideoDiffusion_img2vidXt11.safetensors",
        14: "svd.safetensors  svd (1).safetensors  svd.fp16.safetensors  SVD.safetensors  "
            "stable-video-diffusion-img2vid",
    }.items():
        for name in names.split("  "):
            assert svd.frames_of(Path(name), None)[0] == frames, name
    # 1.1 is an xt
    for name in ("my_text_svd.safetensors", "svd_next", "svd_1_1.safetensors", "snapshot"):
        with pytest.raises(ConversionError, match="add --num_frames"):
            svd.frames_of(Path(name), None)
    (tmp_path / "snapshot/unet").mkdir(parents=True)
    (tmp_path / "snapshot/unet/config.json").write_text('{"num_frames": 25}')
    assert svd.frames_of(tmp_path / "snapshot", None)[0] == 25 and svd.frames_of(tmp_path
                                                                                 / "snapshot",
                                                                                 14)[0] == 14
    (tmp_path / "snapshot/unet/config.json").write_text('{"num_frames": "25"}')
    with pytest.raises(ConversionError, match="has no usable num_frames .num_frames is '25'"):
        svd.frames_of(tmp_path / "snapshot", None)
    assert run(monkeypatch, "svd", single, "-o", out) == 0
    assert describe(out).config.unet.frames == 25
    assert "taken for a model of 25 frames, " in capsys.readouterr().out
    mine = single.rename(tmp_path / "mine.safetensors")
    assert run(monkeypatch, "svd", mine, "-o", out, "--overwrite") == 1
    assert "add --num_frames 14, or 25" in capsys.readouterr().err


def test_wrong_sources_are_told(tmp_path, monkeypatch, small_families, capsys):
    folder, out = make("lavie", tmp_path / "lavie"), tmp_path / "out.safetensors"
    sd = folder / "stable-diffusion-v1-4"
    single = make("svd", tmp_path / "svd.safetensors")

    def refuse(reason: str, *arguments) -> None:
        assert run(monkeypatch, *arguments, "-o", out) == 1
        assert reason in (said := capsys.readouterr().err), said
        assert not out.exists()

    for said, *arguments in (  # flags of another family, by argparse
        ("required: --sd", "lavie", folder / "lavie_base.pt"),
        ("unrecognized arguments: --sd", "svd", single, "--sd", sd),
        ("unrecognized arguments: --num_frames", *lavie_arguments(folder), "--num_frames", 14),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments, "-o", out)
        assert said in capsys.readouterr().err
    refuse("looks like Stable Video Diffusion in its authors' layout", "lavie", single, "--sd", sd)
    refuse("looks like LaVie", "svd", folder / "lavie_base.pt", "--num_frames", 14)
    refuse("unet has no weights", "svd", sd, "--num_frames", 14)
    refuse("is not a folder with vae, text_encoder", "lavie", folder / "lavie_base.pt", "--sd",
           single)
    whole = load_file(single)
    save_file({name: x for name, x in whole.items() if not name.endswith("out.2.bias")}, tmp_path
              / "part.safetensors")
    refuse("it is incomplete, or changed", "svd", tmp_path / "part.safetensors", "--num_frames", 14)
    state = torch.load(folder / "lavie_base.pt", weights_only=True)["ema"]
    name = next(name for name in state if name.endswith("freqs"))
    torch.save({"ema": {**state, name: state[name] + 1}}, folder / "lavie_base.pt")
    refuse("other rotary frequencies", *lavie_arguments(folder))
    shutil.rmtree(sd / "text_encoder")
    refuse("text_encoder has no weights", *lavie_arguments(folder))
