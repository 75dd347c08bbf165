"""Damaged and crafted headers and configs: refused with the field that is at fault, before anything
is built."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zerosmooth.checkpoint import (
    CheckpointError,
    check_tensors,
    describe,
    load,
    read_header,
    save,
    sha256,
)
from zerosmooth.families import FAMILIES

from .conftest import TINY_CONFIG


def parts(path: Path) -> tuple[dict, bytes]:
    """A safetensors file's header and its tensors' bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header, body: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.fixture
def tiny_file(tmp_path, pipeline) -> Path:
    path = tmp_path / "tiny.safetensors"
    tensors = pipeline.networks.state_dict().items()
    save(path, FAMILIES["vc2"], TINY_CONFIG, tensors, torch.float32, "a test", "0" * 64)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header,size,reason",
    [
        ({"a": {**ENTRY, "shape": 5}}, 8, "is cut off or damaged"),
        ({"a": {**ENTRY, "shape": [-2]}}, 8, "is cut off or damaged"),
        ({"a": {**ENTRY, "shape": [1 << 40, 1 << 40]}}, 8, "is cut off or damaged"),
        ({"a": {**ENTRY, "data_offsets": [0.0, 8.0]}}, 8, "is cut off or damaged"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, 12, "is cut off or damaged"),  # a gap
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, 12, "is cut off or damaged"),
        # an overlap
        ({"a": {**ENTRY, "dtype": "F99"}}, 8, "is cut off or damaged"),
        ({"__metadata__": {"format": 5}, "a": ENTRY}, 8, "is cut off or damaged"),
        (b'{"a":' * 100_000, 0, "is cut off or damaged"),
        (b'{"\xff": 1}', 0, "is cut off or damaged"),
        ({"a": ENTRY}, 7, "is cut off or damaged"),
        ({"a": ENTRY}, 9, "is cut off or damaged"),
        ({"__metadata__": None, "a": ENTRY}, 8, "is not a converted checkpoint"),
    ],
)
def test_damaged_headers_are_told(tmp_path, header, size, reason):
    with pytest.raises(CheckpointError, match=reason):
        describe(write(tmp_path / "x.safetensors", header, bytes(size)))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        describe(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize(
    "field,value,reason",
    [
        ("unet.res_blocks", 1_000_000_000, "unet.res_blocks=1000000000; use 1 to 16"),
        ("unet.channels", None, "unet.channels=None is NoneType; int is needed"),
        ("unet.channels", True, "unet.channels=True is bool; int is needed"),
        ("unet.channels", 16.5, "unet.channels=16.5 is float; int is needed"),
        ("unet.channels", "16", "unet.channels='16' is str; int is needed"),
        ("unet.groups", 3, "do not fit together|divisible"),
        ("unet.channel_mult", [], "channel_mult is empty"),
        ("unet.channel_mult", 5, "unet.channel_mult=5; a tuple is needed"),
        ("unet.channel_mult", [1] * 99, "unet.channel_mult has 99 items"),
        ("unet.channel_mult", [1, "2"], "unet.channel_mult='2' is str; int is needed"),
        ("unet.frames", 1, "unet.frames=1; use 2 to 1024"),
        ("unet.in_channels", 8, "do not fit together"),
        ("unet.context_dim", 24, "do not fit together"),
        ("encoder.heads", 5, "do not fit together"),
        ("encoder.layers", 1_000_000, "encoder.layers=1000000; use 1 to 128"),
        ("encoder.pad_token", 9999, "encoder: pad_token=9999; use 0 to 553"),
        ("encoder.vocab_size", 100, "merges|vocab_size"),
        ("encoder.activation", "relu", "encoder.activation='relu'; use gelu or quick_gelu"),
        ("sampler.prediction", "x", "sampler.prediction='x'; use noise or v"),
        ("sampler.beta_end", 2.0, "sampler.beta_end=2.0"),
        ("sampler.beta_end", float("nan"), "sampler.beta_end=nan"),
        ("vae.scale", 0, "vae.scale=0"),
        ("defaults.prompt", 5, "defaults.prompt=5 is int; str is needed"),
        ("defaults.prompt", "x" * 100_000, "defaults.prompt has 100,000 letters"),
        ("defaults.preset", "none", "preset='none'"),
        ("defaults.height", 17, "height 17 is not a multiple"),
        ("defaults.steps", 0, "defaults: steps=0"),
        ("defaults.eta", 1e400, "defaults.eta=inf"),
        ("unet", 5, "unet.? is 5, not an object"),
        ("surprise", 1, "'surprise' is no field"),
        ("family", "svd", "family 'svd', the file of 'vc2'"),
    ],
)
def test_a_configs_fields_have_types_and_ranges(tiny_file, field, value, reason):
    header, body = parts(tiny_file)
    config = json.loads(header["__metadata__"]["config"])
    *outer, name = field.split(".")
    inner = config[outer[0]] if outer else config
    inner[name] = value
    header["__metadata__"]["config"] = json.dumps(config)
    with pytest.raises(CheckpointError, match=f"has an invalid config: .*({reason})"):
        describe(write(tiny_file, header, body))


@pytest.mark.parametrize("config",
                         ["", "[]", "null", "{", "[" * 100_000, '{"unet":' * 100_000, "9" * 5000])
def test_a_config_that_is_no_config_is_told(tiny_file, config):
    header, body = parts(tiny_file)
    header["__metadata__"]["config"] = config
    with pytest.raises(CheckpointError, match="has an invalid config"):
        describe(write(tiny_file, header, body))


def test_messages_say_what_is_at_fault(tiny_file, tmp_path):
    header, body = parts(tiny_file)
    config = json.loads(header["__metadata__"]["config"])
    config["unet"]["res_blocks"] = 2
    changed = {**header, "__metadata__": {**header["__metadata__"], "config": json.dumps(config)}}
    with pytest.raises(
        CheckpointError,
        match="do not fit its config: it has an unexpected unet.decoder.1",
    ):
        describe(write(tmp_path / "x.safetensors", changed, body))
    changed["__metadata__"] = {**header["__metadata__"], "format_version": "1 "}
    with pytest.raises(CheckpointError, match="format version '1 ', not '1'"):
        describe(write(tmp_path / "x.safetensors", changed, body))


def test_a_digest_stands_for_the_tensors_without_reading_them(tiny_file, pipeline, tmp_path):
    checkpoint, (header, body) = describe(tiny_file), parts(tiny_file)
    digest = checkpoint.sha256()
    assert checkpoint.tensors_sha256 == sha256(tiny_file, checkpoint.start)
    assert checkpoint.start < 0.5 * len(body)
    tiny_file.write_bytes(tiny_file.read_bytes()[: checkpoint.start] + bytes(len(body)))
    assert checkpoint.sha256() == digest  # it read the header alone
    other = tmp_path / "other.safetensors"
    ones = [(name, torch.ones_like(x)) for name, x in pipeline.networks.state_dict().items()]
    save(other, FAMILIES["vc2"], TINY_CONFIG, ones, torch.float32, "a test", "0" * 64)
    assert describe(other).sha256() != digest
    del header["__metadata__"]["tensors_sha256"]  # as files of before that
    older = write(tmp_path / "older.safetensors", header, body)
    assert describe(older).sha256() == sha256(older)


def test_all_tensors_can_be_checked(tiny_file, pipeline, tmp_path):
    checkpoint = describe(tiny_file)
    check_tensors(checkpoint)
    with tiny_file.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(CheckpointError, match="other tensors than were written"):
        check_tensors(checkpoint)
    state = {name: x.clone() for name, x in pipeline.networks.state_dict().items()}
    state["unet.conv_out.bias"][0] = torch.nan
    path = tmp_path / "nan.safetensors"
    save(path, FAMILIES["vc2"], TINY_CONFIG, state.items(), torch.float32, "a test", "0" * 64)
    with pytest.raises(CheckpointError, match="NaN or infinity in unet.conv_out.bias"):
        check_tensors(describe(path))
    with pytest.raises(CheckpointError,
                       match="unet.conv_out.bias has NaN, infinity or values beyond"):
        load(path)


def test_zeros_are_damage_only_where_no_digest_tells(tiny_file, pipeline, tmp_path):
    state = {name: x.clone() for name, x in pipeline.networks.state_dict().items()}
    state["unet.conv_out.weight"].zero_()  # as a network may begin
    path = tmp_path / "zeros.safetensors"
    save(path, FAMILIES["vc2"], TINY_CONFIG, state.items(), torch.float32, "a test", "0" * 64)
    assert not load(path).networks.unet.conv_out.weight.any()
    header, body = parts(path)
    del header["__metadata__"]["tensors_sha256"]
    with pytest.raises(CheckpointError, match="zeros alone in .*, and no digest"):
        load(write(path, header, body))
    with pytest.raises(CheckpointError, match="zeros alone in .*, and no digest"):
        check_tensors(describe(path))


def test_values_beyond_float16_are_told_when_loaded_as_that(pipeline, tmp_path):
    state = {name: x.clone() for name, x in pipeline.networks.state_dict().items()}
    state["unet.conv_out.bias"][0] = 1e6
    path = tmp_path / "large.safetensors"
    save(path, FAMILIES["vc2"], TINY_CONFIG, state.items(), torch.float32, "a test", "0" * 64)
    assert load(path).dtype == torch.float32
    with pytest.raises(CheckpointError,
                       match="beyond the range of torch.float16.*--dtype bfloat16 or float32"):
        load(path, dtype=torch.float16)


def test_a_family_with_its_own_classes_is_read_as_strictly():
    config = FAMILIES["svd"].config
    values = json.loads(config.to_json())
    assert config.like(json.dumps(values)) == config
    values["unet"]["condition_dim"] = [256]
    with pytest.raises(ValueError, match="unet.condition_dim=.256. is list; int is needed"):
        config.like(json.dumps(values))
    assert config.like(replace(config, defaults=replace(config.defaults,
                                                        first_guidance_scale=None)).to_json())


def test_the_header_is_read_alone(tiny_file):
    header = read_header(tiny_file)
    assert header.shapes["unet.conv_in.bias"] == (16,) and set(header.dtypes.values()) == {"F32"}
    assert header.metadata["family"] == "vc2"
