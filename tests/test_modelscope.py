"""ModelScope in `examples/`: its published folder. Its figures are in `tests/golden`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from weights_convert import __main__ as cli
from weights_convert.engine import ConversionError, convert, plan
from zerosmooth.checkpoint import load, tensor_shapes

from .conformance import check, report
from .full_size import shapes
from .parity import weight

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))
import modelscope  # noqa: E402 - the package does not know it

FULL = modelscope.FAMILY.config
SMALL = replace(FULL, unet=replace(FULL.unet, channels=32, head_dim=8, context_dim=16, frames=4),
                vae=replace(FULL.vae, channels=32),
                encoder=replace(FULL.encoder, vocab_size=600, width=16, heads=2, layers=23),
                defaults=replace(FULL.defaults, height=64, width=64, steps=1))
PUBLISHED = {f"{folder}.{name}": shape
             for folder, manifest in {"unet": "modelscope_unet_diffusers",
                                      "vae": "lavie_vae_diffusers",
                                      "text_encoder": "modelscope_text_hf"}.items()
             for name, shape in shapes(manifest).items()}


def test_every_published_tensor_has_its_place():
    """At full size: names and shapes only. All are read, each once."""
    read: list[str] = []

    def read_meta(name: str) -> Tensor:
        read.append(name)
        return torch.empty(PUBLISHED[name], device="meta")

    table, expected = modelscope.table(FULL), tensor_shapes(modelscope.FAMILY, FULL)
    assert {name: tuple(x.shape)
            for name, x in convert(table, PUBLISHED, read_meta, expected)} == expected
    assert sorted(read) == sorted(PUBLISHED)
    for gone in (read[0], read[-1]):
        rest = {name: shape for name, shape in PUBLISHED.items() if name != gone}
        with pytest.raises(ConversionError, match="has no tensor for 1|of another shape 1"):
            convert(table, rest, read_meta, expected)


def test_a_small_folder_converts_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(modelscope.ModelScope, "config", SMALL)
    monkeypatch.setattr(cli, "load_family", lambda name, built_in: modelscope.FAMILY)
    ours = tensor_shapes(modelscope.FAMILY, SMALL)
    held: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "text_encoder": {}}
    for target, names in plan(modelscope.table(SMALL), PUBLISHED)[0].items():
        whole = weight(target, ours[target])
        for name, part in zip(names, whole.chunk(len(names))):
            folder, _, rest = name.partition(".")
            held[folder][rest] = part.contiguous()
    for folder, tensors in held.items():
        (tmp_path / folder).mkdir()
        name = "model" if folder == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, tmp_path / folder / f"{name}.safetensors")
    out = tmp_path / "ms.safetensors"
    assert cli.main(["--family", "examples/modelscope.py", str(tmp_path), "-o", str(out)]) == 0
    (video,) = load(out, family=modelscope.FAMILY).sample("a test", scale=2)
    assert [tuple(x.shape) for x in video.frames] == [(4, 64, 64, 3), (8, 64, 64, 3)]


def test_it_conforms():
    torch.manual_seed(0)
    unet = modelscope.FAMILY.unet(replace(SMALL.unet, channel_mult=(1, 2), res_blocks=1)).eval()

    context = torch.randn(1, 5, 16)

    def run(x: Tensor, stage=None) -> Tensor:
        return unet(x, torch.full((len(x),), 300), context.expand(len(x), -1, -1), None, stage)

    broken = check(unet, run, 4, (4, 4, 4))
    assert not broken, report(broken)
