"""Checkpoint files: converted whole, or refused with a reason."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError, Table, convert, plan
from weights_convert.source import open_source
from zerosmooth.checkpoint import CheckpointError, describe, load, save
from zerosmooth.families import FAMILIES
from zerosmooth.models.clip import TextConfig

from .conftest import TINY_CONFIG
from .parity import read, vae_config, videocrafter_unet, weight

GOLDEN = Path(__file__).parent / "golden"


def test_indices_parts_and_drops():
    table = Table([("in.{}.q", "out.{-1}.qk#0"), ("in.{}.k", "out.{-1}.qk#1"), ("r.*", "s.*")],
                  {"old.*": "unused"})
    sources, unknown = plan(table, ["in.1.k", "in.1.q", "r.a.b", "old.x", "new"])
    assert sources == {"out.0.qk": ["in.1.q", "in.1.k"], "s.a.b": ["r.a.b"]} and unknown == ["new"]


def test_problems_are_named():
    table, expected = Table([("a", "x"), ("b", "y"), ("c", "z")]), {"x": (2,), "y": (3,)}
    with pytest.raises(ConversionError) as error:
        convert(table, {"a": (4,), "c": (1,), "d": (1,)}, lambda name: None, expected)
    assert all(text in str(error.value)
               for text in ("no tensor for 1: y", "unexpected tensors 2: d, c",
                            "another shape 1: a (4,) for (2,)"))


def test_parts_of_unequal_size_and_second_sources_are_refused():
    table = Table([("q", "x#0"), ("k", "x#1"), ("other", "x#0")])
    for source in ({"q": (1, 3), "k": (3, 3)}, {"q": (2, 3), "k": (2, 5)}, {"q": (2, 3)}):
        with pytest.raises(ConversionError, match="of another shape 1"):
            convert(table, source, {}.get, {"x": (4, 3)})
    with pytest.raises(ConversionError, match="unexpected tensors 1: other"):
        convert(table, {"q": (2, 3), "k": (2, 3), "other": (2, 3)}, {}.get, {"x": (4, 3)})


def test_1x1_convolutions_become_linear():
    w = torch.randn(3, 2, 1)
    assert torch.equal(dict(convert(Table([("a", "x")]), {"a": (3, 2, 1)}, {"a": w}.get,
                                    {"x": (3, 2)}))["x"], w[..., 0])
    with pytest.raises(ConversionError):
        convert(Table([("a", "x")]), {"a": (3, 2, 2)}, {}.get, {"x": (3, 2)})


def published_shapes() -> dict[str, tuple[int, ...]]:
    """VideoCrafter2's names and shapes in a small size, from the reference files, made to fit each
    other."""
    shapes = {}
    for name in ("golden_windowed_vc2", "golden_vc2_vae", "golden_vc2_text"):
        shapes |= {k: tuple(v)
                   for k, v in read(GOLDEN / f"{name}.safetensors").json("keys").items()}
    for name, shape in shapes.items():
        if "attn2.to_" in name and shape[-1] == 24:  # the text's channels
            shapes[name] = (*shape[:-1], 64)
    shapes["cond_stage_model.model.token_embedding.weight"] = (554, 64)
    return shapes


SMALL = replace(FAMILIES["vc2"].config,
                unet=replace(videocrafter_unet(read(GOLDEN
                                                    / "golden_windowed_vc2.safetensors").json(
                "config")), context_dim=64),
                vae=vae_config(read(GOLDEN / "golden_vc2_vae.safetensors").json("config")),
                encoder=TextConfig(vocab_size=554, width=64, heads=4, layers=2),
                defaults=replace(FAMILIES["vc2"].config.defaults, height=16, width=16))


@pytest.fixture
def small_family(monkeypatch):
    """vc2 and vc1 in a small size, so that the command itself can run on small files."""
    monkeypatch.setattr(FAMILIES["vc2"], "config", SMALL)
    vc1 = replace(SMALL.unet, temporal_conv=False, relative_position=True, fps_condition=False)
    sampler = FAMILIES["vc1"].config.sampler
    monkeypatch.setattr(FAMILIES["vc1"], "config",
                        replace(SMALL, family="vc1", unet=vc1, sampler=sampler))


def published(tmp_path, **extra):
    """A .ckpt as its authors ship it."""
    state = {name: weight(name, shape) for name, shape in published_shapes().items()}
    schedule = {"alphas_cumprod": torch.from_numpy(SMALL.sampler.alphas_cumprod()).float()}
    schedule["scale_arr"] = torch.cat([torch.from_numpy(SMALL.sampler.data_scales()),
                                       torch.full((400,), 0.7)]).float()
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {**state, **schedule, **extra}, "epoch": 3}, path)
    return path


def convert_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, arguments)])
    return cli.main()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_checkpoint_converts_and_says_what_it_is(tmp_path, monkeypatch, small_family, dtype):
    source, out = published(tmp_path), tmp_path / "vc2.safetensors"
    assert convert_main(monkeypatch, "vc2", source, "-o", out, "--dtype", dtype) == 0
    checkpoint = describe(out)
    assert checkpoint.config == SMALL and checkpoint.source == "model.ckpt" and len(
        checkpoint.source_sha256) == 64
    assert checkpoint.dtype == {"float32": "F32", "float16": "F16"}[dtype]
    tensors, original = load_file(out), torch.load(source, weights_only=True)["state_dict"]
    q = original["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"]
    ours = tensors["unet.encoder.0.spatial.blocks.0.self_attn.to_qkv.weight"][: len(q)]
    assert torch.equal(ours, q.to(ours.dtype))
    pipeline = load(out)
    assert pipeline.dtype == torch.float32
    (video,) = pipeline.sample("x", key_frames=4, scale=2, steps=1)
    assert [tuple(frames.shape) for frames in video.frames] == [(4, 16, 16, 3), (8, 16, 16, 3)]


def test_an_existing_file_is_not_replaced_unasked(tmp_path, monkeypatch, small_family, capsys):
    out = tmp_path / "vc2.safetensors"
    out.write_text("precious")
    assert convert_main(monkeypatch, "vc2", published(tmp_path), "-o", out) == 1
    assert out.read_text() == "precious" and "--overwrite" in capsys.readouterr().err


def test_another_family_is_named(tmp_path, monkeypatch, small_family, capsys):
    out = tmp_path / "out.safetensors"
    assert convert_main(monkeypatch, "vc1", published(tmp_path), "-o", out) == 1
    assert "is not vc1" in (text := capsys.readouterr().err) and "looks like VideoCrafter2" in text
    assert not out.exists()


@pytest.mark.parametrize("extra,reason",
                         [({"model.diffusion_model.new.weight": torch.ones(2)},
                           "unexpected tensors 1: model.diffusion_model.new.weight"),
                          ({"model.diffusion_model.out.2.bias": torch.ones(7)},
                           "of another shape 1: model.diffusion_model.out.2.bias"),
                          ({"alphas_cumprod": torch.linspace(1, 0, 1000)},
                           "another noise schedule")])
def test_a_tensor_too_many_or_wrong_is_named(tmp_path, monkeypatch, small_family, capsys, extra,
                                             reason):
    assert convert_main(monkeypatch, "vc2", published(tmp_path, **extra), "-o", tmp_path
                        / "out.safetensors") == 1
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_are_no_checkpoints_are_told_apart(tmp_path):
    def refuse(content: bytes, reason: str) -> None:
        path = tmp_path / "file.ckpt"
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=reason):
            open_source(path)

    whole = published(tmp_path).read_bytes()
    refuse(b"", "is empty")
    refuse(b"<!DOCTYPE html><html>", "a web page")
    refuse(b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer")
    refuse(b"hello, this is no checkpoint", "neither a pickle nor safetensors")
    refuse(whole[: len(whole) // 2], "cut off or damaged")
    with pytest.raises(ConversionError, match="is a folder"):
        open_source(tmp_path)
    with pytest.raises(ConversionError, match="does not exist"):
        open_source(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"a": Malicious()}}, tmp_path / "evil.ckpt")
    with pytest.raises(ConversionError, match="Python objects besides tensors"):
        open_source(tmp_path / "evil.ckpt")


def test_deepspeed_files_and_safetensors_open_too(tmp_path):
    torch.save({"module": {"_forward_module.a": torch.ones(2)}}, tmp_path / "ds.ckpt")
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    for name in ("ds.ckpt", "a.safetensors"):
        source = open_source(tmp_path / name)
        assert source.shapes == {"a": (2,)} and torch.equal(source.read("a"), torch.ones(2))


@pytest.fixture
def converted(tmp_path, pipeline):
    path = tmp_path / "tiny.safetensors"
    save(path, FAMILIES["vc2"], TINY_CONFIG, pipeline.networks.state_dict().items(), torch.float32,
         "a test", "0" * 64)
    return path


def test_options_may_come_before_the_family():
    family, args = cli.parse(["--dtype", "float16", "vc2", "model.ckpt", "-o", "a.safetensors"])
    assert (family.name, args.dtype, args.lora) == ("vc2", "float16", [])


def test_a_saved_checkpoint_loads_bitwise(converted, pipeline):
    state = load(converted).networks.state_dict()
    assert all(torch.equal(state[name], x) for name, x in pipeline.networks.state_dict().items())


def test_a_failed_save_leaves_nothing(tmp_path):
    def broken():
        yield from ()
        raise OSError("disk full")

    with pytest.raises(OSError):
        save(tmp_path / "x.safetensors", FAMILIES["vc2"], TINY_CONFIG, broken(), torch.float32, "",
             "")
    assert not list(tmp_path.iterdir())


def test_damaged_checkpoints_are_told_apart(converted, tmp_path):
    whole = converted.read_bytes()

    def refuse(content: bytes, reason: str) -> None:
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            describe(path)

    refuse(whole[:-10], "cut off")
    refuse(whole[:50], "cut off")
    refuse(b"", "empty")
    refuse(b"PK\x03\x04 zip", "PyTorch pickle")
    refuse(whole.replace(b'"format_version": "1"', b'"format_version": "9"'), "format version '9'")
    refuse(whole.replace(b'"family": "vc2"', b'"family": "vc9"'),
           "family 'vc9', not vc2, vc1, lavie, svd; add --family")
    refuse(whole.replace(b'"data_offsets": [0, ', b'"data_offsets": [4, '), "is cut off or damaged")
    refuse(whole.replace(b"unet.conv_in.bias", b"unet.conv_in.bios"),
           "tensors that do not fit its config")
    with pytest.raises(CheckpointError, match="does not exist"):
        describe(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        describe(tmp_path)
    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a converted checkpoint"):
        describe(tmp_path / "other.safetensors")


def test_configs_survive_json():
    for config in (*(family.config for family in FAMILIES.values()), TINY_CONFIG):
        assert config.like(config.to_json()) == config
    values = json.loads(TINY_CONFIG.to_json())
    values["unet"]["surprise"] = 1
    with pytest.raises(ValueError, match="surprise"):
        TINY_CONFIG.like(json.dumps(values))


def test_what_an_older_file_does_not_say_has_its_default():
    values = json.loads(TINY_CONFIG.to_json())
    del values["defaults"]["preset"], values["unet"]["groups"]
    read = TINY_CONFIG.like(json.dumps(values))
    assert read.defaults.preset == "paper" and read.unet.groups == 32
    del values["encoder"]
    with pytest.raises(ValueError, match="encoder"):
        TINY_CONFIG.like(json.dumps(values))


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "weights_convert", "vc2", "none.ckpt", "-o",
                           "x.safetensors"], capture_output=True)
    assert done.returncode == 1 and b"none.ckpt does not exist" in done.stderr
