"""What comes in to be converted: unwrapped where it is only wrapped, else told for what it is, in
one line."""

import argparse
import io
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError
from weights_convert.source import open_folder, open_source
from weights_convert.svd import CONVERSION
from zerosmooth.families import FAMILIES

from .test_convert import published, small_family  # noqa: F401

TWO = {"a.weight": torch.ones(2), "b.c.weight": torch.zeros(3)}


def refused(path: Path) -> str:
    """What is said of a file, in one line without escape codes or a traceback's worth."""
    with pytest.raises(ConversionError) as error:
        open_source(path)
    text = str(error.value)
    assert text.startswith(str(path)) and text.isprintable() and len(text) < len(str(path)) + 400
    return text.removeprefix(str(path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{name}": x for name, x in s.items()},
        lambda s: {f"_orig_mod.{name}": x for name, x in s.items()},
        lambda s: {re.sub("^b.", "b._orig_mod.", name): x for name, x in s.items()},
        lambda s: {f"module._orig_mod.{name}": x for name, x in s.items()},
        lambda s: {"model": s, "optimizer": {"lr": 1}, "step": 3},
        lambda s: {"model": {"state_dict": {f"module.{name}": x for name, x in s.items()}}},
        lambda s: {"state_dict": {}, "model": s},
    ],
)
@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_wrapped_names_and_dicts_are_unwrapped(tmp_path, wrap, kind):
    path, content = tmp_path / f"file.{kind}", wrap(TWO)
    if kind == "safetensors":
        if not all(isinstance(x, torch.Tensor) for x in content.values()):
            pytest.skip("safetensors hold no dicts")
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "pt")
    source = open_source(path)
    assert source.shapes == {"a.weight": (2,), "b.c.weight": (3,)}
    assert all(torch.equal(source.read(name), x) for name, x in TWO.items())


@pytest.mark.parametrize("names,reason",
                         [("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
                           "holds a LoRA.*merge it"),
                          ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "holds a LoRA"),
                          ("unet.mid_block.to_q_lora.up.weight", "holds a LoRA"),
                          ("model.diffusion_model.out.weight scaled_fp8",
                           "weights scaled to 8-bit floats.*take the file in float16"),
                          ("out.weight out.scale_weight", "weights scaled to 8-bit floats"),
                          ("out.weight out.weight.absmax", "has quantised weights"),
                          ("out.weight module.out.weight", "both with and without module")])
def test_what_is_no_plain_checkpoint_is_told(tmp_path, names, reason):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(1) for name in names.split()}, path)
    assert re.search(reason, refused(path))


def test_the_frame_wise_decoder_is_told(tmp_path):
    names = ["model.diffusion_model.middle_block.0.time_stack.x",
             "first_stage_model.decoder.mid.block_1.conv1.weight"]
    path = tmp_path / "svd_xt_image_decoder.safetensors"
    save_file({name: torch.ones(1) for name in names}, path)
    with pytest.raises(ConversionError, match="frame-wise decoder .image_decoder.; take the file"):
        CONVERSION.open(path, argparse.Namespace(unet=None, weights=None))
    save_file({name: torch.ones(1) for name in [*names, f"{names[1][:33]}.time_stack.x"]}, path)
    CONVERSION.open(path, argparse.Namespace(unet=None, weights=None))


def test_a_sharded_folder_is_read_by_its_index(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file({"a.weight": TWO["a.weight"]}, folder
              / "diffusion_pytorch_model-00001-of-00002.safetensors")
    save_file({"b.c.weight": TWO["b.c.weight"]}, folder
              / "diffusion_pytorch_model-00002-of-00002.safetensors")
    places = {name: f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
              for i, name in enumerate(TWO)}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"

    def write(content) -> None:
        index.write_text(content if isinstance(content, str) else json.dumps(content))

    write({"weight_map": places})
    for source in (open_folder(tmp_path, ("unet",))["unet"], open_source(index)):
        assert source.shapes == {"a.weight": (2,), "b.c.weight": (3,)} and len(source.files) == 2
        assert all(torch.equal(source.read(name), x) for name, x in TWO.items())
        assert len(source.sha256(
                )) == 64 and "unet/diffusion_pytorch_model-00002-of-00002" in source.name
    for bad in ("[", "[]", "{}", {"weight_map": []}, {"weight_map": {"a": 5}},
                {"weight_map": {"a": "../x"}}):
        write(bad)
        assert "is no index of shards" in refused(index)
    write("[" * 100_000)
    assert "is no index of shards" in refused(index)
    write({"weight_map": {**places, "d": places["a.weight"]}})
    assert "names tensors that its files lack, d for one" in refused(index)
    write({"weight_map": {"a.weight": "none.safetensors"}})
    with pytest.raises(ConversionError, match="none.safetensors does not exist"):
        open_source(index)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_of_other_things_are_told(tmp_path):
    path = tmp_path / "x.pt"

    def said(content, legacy: bool = False) -> str:
        if not isinstance(content, bytes):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
            content = buffer.getvalue()
        path.write_bytes(content)
        return refused(path)

    for legacy in (False, True):
        args = {"model": TWO, "args": argparse.Namespace(lr=1)}
        assert "Python objects besides tensors (argparse.Namespace)" in (text := said(args, legacy))
        assert "torch.save its state_dict alone" in text
        assert "Python objects besides tensors" in said({"a": Code()}, legacy)
        assert "holds no tensors by name, but a dict of 1;" in said({1: torch.ones(2)}, legacy)
        assert "holds a list of tensors, without names" in said([torch.ones(2)], legacy)
        assert "holds no tensors by name" in said({},
                                                  legacy) and "but a Tensor" in said(torch.ones(2),
                                                                                     legacy)
        loop: dict = {}
        loop["model"] = loop
        assert "holds no tensors by name, but a dict of model" in said(loop, legacy)
    assert "is cut off or damaged" in said(b"\x80")
    buffer = io.BytesIO()
    torch.save(TWO, buffer, _use_new_zipfile_serialization=False)
    for end in (5, 30, 100, len(buffer.getvalue()) - 5):
        assert "is cut off or damaged" in said(buffer.getvalue()[:end])
    jit = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), jit)
    assert "is a TorchScript program" in said(jit.getvalue())
    assert "a GGUF file, of quantised weights" in said(b"GGUF\3\0\0\0\0\0\0\0")
    assert "is JSON" in said(b'{"num_frames": 25}')


def test_of_weights_and_their_average_one_set_is_taken_as_asked(tmp_path):
    plain, average = torch.ones(2), torch.zeros(2)
    inside = {"model.diffusion_model.a.b": plain, "model_ema.diffusion_modelab": average,
              "model_ema.decay": torch.ones(()), "vae.x": torch.ones(1)}
    beside = {"ema": {"a": average}, "model": {"a": plain}}
    for state, name, usual in ((inside, "model.diffusion_model.a.b", "plain"),
                               (beside, "a", "ema")):
        torch.save(state, tmp_path / "x.ckpt")
        for asked in (None, "plain", "ema"):
            source = open_source(tmp_path / "x.ckpt", weights=asked)
            assert source.chosen == (asked or usual)
            assert torch.equal(source.read(name), plain if source.chosen == "plain" else average)
            assert not any("ema" in name for name in source.shapes)
    torch.save({"model.diffusion_model.a.c": plain, **inside}, tmp_path / "x.ckpt")
    with pytest.raises(ConversionError, match="lacks an average of model.diffusion_model.a.c"):
        open_source(tmp_path / "x.ckpt", weights="ema")
    torch.save({"model": {"a": plain}}, tmp_path / "x.ckpt")
    assert open_source(tmp_path / "x.ckpt").chosen == ""


@pytest.mark.usefixtures("small_family")
def test_which_set_of_weights_is_said(tmp_path, monkeypatch, capsys):
    source, out = published(tmp_path), tmp_path / "out.safetensors"
    assert convert(monkeypatch, "vc2", source, "-o", out, "--weights", "ema") == 1
    assert "model.ckpt holds one set of weights alone" in capsys.readouterr().err
    state = torch.load(source, weights_only=True)["state_dict"]
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): x + 1
                for name, x in state.items() if name.startswith("model.")}
    torch.save({"state_dict": state | averages}, source)
    plain = state[NAME]
    for asked, taken in ((), plain), (("--weights", "ema"), plain + 1):
        assert convert(monkeypatch, "vc2", source, "-o", out, "--overwrite", *asked) == 0
        assert torch.equal(load_file(out)["unet.conv_out.bias"], taken)
        which, other = ("ema", "plain") if asked else ("plain", "ema")
        said = f"average (ema): {which} is taken; --weights {other} takes the other"
        assert said in capsys.readouterr().out


def test_a_pickle_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    path, many = tmp_path / "x.ckpt", b"\x80\x02](" + b"}" * 1_000_001 + b"e."
    bare = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    for content in (many, bare):
        path.write_bytes(content)
        assert "holds far more than tensors" in refused(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
        assert "holds far more than tensors" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(100_000_000))
    assert "is a compressed archive" in refused(path) and path.stat().st_size < 200_000


def test_fifos_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert "is no regular file" in refused(tmp_path / "pipe.ckpt")


def convert(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, arguments)])
    return cli.main()


NAME = "model.diffusion_model.out.2.bias"


@pytest.mark.usefixtures("small_family")
@pytest.mark.parametrize(
    "value,dtype,reason",
    [
        (1e6, "float16", f"up to 1e+06 in {NAME}, and torch.float16 ends at 6.55e+04; use --dtype"),
        (1e39, "float32", "numbers up to 1e+39"),
        (float("nan"), "float32", f"has NaN or infinity in {NAME}"),
        (float("inf"), "float16", f"has NaN or infinity in {NAME}"),
        (1e6, "float32", None),
        (1e6, "bfloat16", None),
        (65504.0, "float16", None),
    ],
)
def test_numbers_that_a_precision_cannot_hold_are_refused(tmp_path, monkeypatch, capsys, value,
                                                          dtype, reason):
    size = FAMILIES["vc2"].config.unet.out_channels
    source = published(tmp_path, **{NAME: torch.full((size,), value, dtype=torch.float64)})
    out = tmp_path / "out.safetensors"
    assert convert(monkeypatch, "vc2", source, "-o", out, "--dtype",
                   dtype) == int(reason is not None)
    said = capsys.readouterr().err
    assert reason is None or reason in said
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == ([] if reason
                                                                       else ["out.safetensors"])
    if reason is None:
        assert load_file(out)["unet.conv_out.bias"].isfinite().all()


@pytest.mark.usefixtures("small_family")
def test_tensors_of_whole_numbers_are_refused(tmp_path, monkeypatch, capsys):
    size = FAMILIES["vc2"].config.unet.out_channels
    source = published(tmp_path, **{NAME: torch.ones(size, dtype=torch.int8)})
    assert convert(monkeypatch, "vc2", source, "-o", tmp_path / "out.safetensors") == 1
    assert f"has {NAME} as torch.int8" in capsys.readouterr().err


@pytest.mark.usefixtures("small_family")
def test_plain_8_bit_floats_convert(tmp_path, monkeypatch):
    size = FAMILIES["vc2"].config.unet.out_channels
    source = published(tmp_path, **{NAME: torch.full((size,), 0.5).to(torch.float8_e4m3fn)})
    assert convert(monkeypatch, "vc2", source, "-o", tmp_path / "out.safetensors") == 0
    assert (load_file(tmp_path / "out.safetensors")["unet.conv_out.bias"] == 0.5).all()


def test_an_output_that_is_no_file_is_told_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, what in {"folder": "a folder", "pipe": "no regular file"}.items():
        output = tmp_path / f"{name}.safetensors"
        assert convert(monkeypatch, "vc2", tmp_path / "none.ckpt", "-o", output, "--overwrite") == 1
        assert f"the output {output} is {what}" in capsys.readouterr().err


def test_shards_that_hold_both_sets_say_which_is_taken(tmp_path):
    content = {"ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(1)}}
    torch.save(content, tmp_path / "one.bin")
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"a": "one.bin"}}))
    for asked, value in (("ema", 0), ("plain", 1)):
        source = open_source(tmp_path / "x.index.json", weights=asked)
        assert source.chosen == asked and source.read("a") == value
